"""Referee and calibration on values set by hand, where everything can be worked out."""

import numpy as np
import pytest

from mtf.evaluation.primary import primary
from mtf.evaluation.referee import calibrate, referee, slope_agreement
from mtf.evaluation.steps import make_steps
from mtf.evaluation.values import ActionValue, fit_action_value


def action_value(steps, value=0.0, logged=None, bend=0.0):
    """A Q given by hand: the same V everywhere, no advantage of any policy."""
    n, count = len(steps), len(steps.state)
    return ActionValue(
        value=np.full(count, float(value)),
        logged=np.zeros(n) if logged is None else logged,
        target=np.zeros(count),
        deployed=np.zeros(count),
        bend=np.full(n, float(bend)),
        bend_se=0.0,
        ridge=0.0,
        prior_sd={},
        explained=0.0,
    )


@pytest.fixture
def steps(world, constant):
    return make_steps(world(200, seed=0, slope=np.array([1.0, 0.0]), longest=3), constant([0.15, -0.06]), constant([0.03, 0.0]))[
        0
    ]


def test_the_referee_is_its_formula(steps):
    q = action_value(steps, value=2.0)
    first = primary(steps, q, 0.04)
    found = referee(steps, q, first, 0.04)
    gamma, total = 0.9, 0.0
    for start, end in zip(steps.starts, [*steps.starts[1:], len(steps)], strict=True):
        cut = steps.successor[end - 1] >= 0
        for t in range(start, end):
            realised = sum(gamma ** (k - t) * steps.reward[k] for k in range(t, end)) + cut * gamma ** (end - t) * 2.0
            apart = 3 * ((steps.y[t] - steps.y0[t]) @ steps.x[t])
            total += gamma ** (t - start) * apart * (realised - 2.0)
    assert found.lift.mean == pytest.approx(total / first.denominator.sum(), rel=1e-5)
    # without a bend the gap is the plain difference
    assert found.gap.mean == pytest.approx(found.lift.mean - first.lift.mean, rel=1e-6)


def test_the_bend_is_taken_off_the_primary_for_the_comparison(steps):
    flat, bent = action_value(steps), action_value(steps, bend=0.3)
    first = primary(steps, flat, 0.04)
    gaps = [referee(steps, q, first, 0.04).gap.mean for q in (flat, bent)]
    size = 0.3 * steps.discount.sum() / first.denominator.sum()
    assert gaps[1] - gaps[0] == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_calibration_reads_off_the_scale_of_q(world, constant, changed, scale):
    """One step a session, reward = 3 + 2 s: a Q of that times `scale` has slope and level 1 / scale."""
    data = world(500, seed=1, slope=np.zeros(1), end=1.0)
    data = changed(data, reward=(3 + 2 * data.state[:, :1]))
    steps, _ = make_steps(data, constant([0.0]), None)
    q = action_value(steps)
    object.__setattr__(q, "value", scale * steps.reward)
    found = calibrate(steps, q)
    assert found.slope.mean == pytest.approx(1 / scale, rel=1e-5)
    assert found.level.mean == pytest.approx(1 / scale, rel=1e-5)


def test_the_level_keeps_its_meaning_below_zero(world, constant, changed):
    data = world(100, seed=1, slope=np.zeros(1), end=1.0)
    steps, _ = make_steps(changed(data, reward=np.full((100, 1), -2.0, np.float32)), constant([0.0]), None)
    assert calibrate(steps, action_value(steps, value=-4.0)).level.mean == pytest.approx(0.5)


def test_slopes_that_miss_the_future_are_seen(world, constant):
    """Leaving moves with the action: a V of 0 credits a step with its reward alone and misses the rest of the session."""
    data = world(4000, seed=2, slope=np.array([0.8, -0.5, 0.3]), leave=3.0)
    steps, _ = make_steps(data, constant(np.zeros(3)), None)
    chi2, dof = slope_agreement(steps, action_value(steps))
    assert dof == 3
    assert chi2 > 30
    still, _ = make_steps(world(4000, seed=2, slope=np.array([0.8, -0.5, 0.3])), constant(np.zeros(3)), None)
    assert slope_agreement(still, action_value(still))[0] < 16.3  # one in a thousand


@pytest.mark.parametrize(("longest", "end"), [(1, 0.02), (2, 0.02), (12, 0.15)])
def test_the_referee_agrees_where_sessions_are_cut(world, constant, longest, end):
    """The primary adds the advantages at the state where a session was cut, which returns do not show."""
    target = constant([0.15, -0.15, 0.15])
    steps, _ = make_steps(world(6000, seed=3, slope=np.array([0.8, -0.5, 0.3]), end=end, longest=longest), target, None)
    assert steps.cut_sessions == steps.cut.sum() > 800
    q = fit_action_value(steps)
    gap = referee(steps, q, primary(steps, q, 0.04), 0.04).gap
    assert abs(gap.mean) < 2.5 * gap.se
