"""Fitted Q on a linear system with quadratic reward, where it is exact, and on the tiny recommender."""

import numpy as np
import pytest

from mtf.evaluation.fqe import fqe, settle
from mtf.evaluation.primary import primary
from mtf.evaluation.steps import make_steps
from mtf.evaluation.values import fit_action_value
from mtf.policy import Lineage, Policy
from mtf.transitions.table import TransitionSet

BEST, VALUE = 1.32462, 1.23843
"""s' = .9 s + .5 u, r = -(s^2 + .1 u^2), gamma .9: the best gain and its value -P s^2, by the Riccati equation."""
LOGGED = 1.2
HALF = 0.5


def gain(k: float) -> Policy:
    """u = -k s, as a bundle."""
    zero = np.zeros((1, 1))
    arrays = {"mean": np.zeros(1), "scale": np.ones(1), "skip": zero - k, "weight_0": zero, "bias_0": np.zeros(1)}
    return Policy(arrays, spec=None, lineage=Lineage(algorithm="gain"))


def value_of(k: float) -> float:
    """P of u = -k s: `1 + .1 k^2 + gamma (.9 - .5 k)^2 P`."""
    return (1 + 0.1 * k**2) / (1 - 0.9 * (0.9 - 0.5 * k) ** 2)


@pytest.fixture(scope="module")
def system() -> TransitionSet:
    """Sessions of eight steps under u = -1.2 s with a box of half-width .5, cut at their end; 300 users."""
    rng = np.random.default_rng(0)
    users, length = 300, 8
    state = rng.uniform(-0.35, 0.35, users)
    rows = []
    for _ in range(length):
        center = -LOGGED * state
        action = center + rng.uniform(-HALF, HALF, users)
        following = 0.9 * state + 0.5 * action
        rows.append((state, center, action, -(state**2) - 0.1 * action**2, following))
        state = following
    state, center, action, reward, following = (np.stack([r[i] for r in rows], axis=1).reshape(-1, 1) for i in range(5))
    n = users * length
    step = np.tile(np.arange(length), users)
    nothing = np.full(n, None, object)
    half = np.full((n, 1), HALF, np.float32)
    return TransitionSet(
        session=np.repeat(np.arange(users), length),
        step=step,
        user=np.repeat(np.arange(users), length),
        user_ids=np.arange(users).astype(str).astype(object),
        state=state.astype(np.float32),
        next_state=following.astype(np.float32),
        action=action.astype(np.float32),
        center=center.astype(np.float32),
        lower=-half,
        upper=half,
        next_center=(-LOGGED * following).astype(np.float32),
        next_lower=-half,
        next_upper=half,
        reward=reward.astype(np.float32),
        terminal=np.zeros(n, bool),
        truncated=step == length - 1,
        exploring=np.ones(n, bool),
        policy_sha=nothing,
        arm=nothing,
        dt=nothing,
        fallback=nothing,
        ts=np.arange(n),
        value_mask=np.ones(1, bool),
    )


def test_the_closed_form_is_the_riccati_equations():
    assert value_of(BEST) == pytest.approx(VALUE, abs=5e-6)
    assert value_of(BEST) < min(value_of(BEST - 1e-3), value_of(BEST + 1e-3))


@pytest.mark.parametrize(("target", "deployed"), [(BEST, 0.4), (BEST, LOGGED), (0.9, BEST), (1.5, 0.7)])
def test_the_lift_is_exact_where_q_is_in_the_class(system, target, deployed):
    steps, _ = make_steps(system, gain(target), gain(deployed))
    found = fqe(steps, 0.04, ridge=1e-3)
    # values are negative: a lift above 0 is still the better policy
    assert found.mean == pytest.approx(1 - value_of(target) / value_of(deployed), abs=2e-4)
    # the state at the start cancels, so that nothing is left to be uncertain of
    assert found.se < 1e-3


def test_the_best_gain_has_the_greatest_lift(system):
    def lift(k: float) -> float:
        return fqe(make_steps(system, gain(k), gain(LOGGED))[0], 0.04, ridge=1e-3).mean

    below, at, above = lift(BEST - 0.1), lift(BEST), lift(BEST + 0.1)
    assert at > max(below, above)
    # the vertex of the parabola through them
    assert BEST + 0.05 * (above - below) / (2 * at - above - below) == pytest.approx(BEST, abs=0.01)


def test_a_session_that_may_end_is_worth_less_later(system, changed):
    """Half of the requests end the session at random: gamma (1 - q) in place of gamma; a cut goes on (above)."""
    ended = np.random.default_rng(1).random(len(system)) < 0.5
    steps, _ = make_steps(changed(system, terminal=ended, truncated=system.truncated & ~ended), gain(BEST), gain(0.4))

    def worth(k: float) -> float:
        return (1 + 0.1 * k**2) / (1 - 0.45 * (0.9 - 0.5 * k) ** 2)

    assert 1 - worth(BEST) / worth(0.4) == pytest.approx(0.0747, abs=1e-4)
    assert fqe(steps, 0.04, ridge=1e-3).mean == pytest.approx(0.0747, abs=0.01)


def test_sessions_that_a_policy_makes_longer_are_worth_more(world, constant):
    """Half of the lift comes from ends that do not happen: constant hazard, V = E r / (1 - gamma (1 - p)) for each policy."""
    slope, leave = np.array([0.8, -0.5, 0.3]), 2.0
    steps, _ = make_steps(world(8000, seed=2, slope=slope, leave=leave), constant(np.sign(slope) * 0.1), None)
    gain = float(np.abs(slope).sum() * 0.1)
    truth = (1 + gain) * (1 - 0.9 * 0.85) / (1 - 0.9 * (1 - 0.15 * (1 - leave * gain))) - 1
    found = fqe(steps, 0.04)
    assert truth > 1.8 * gain
    assert found.mean == pytest.approx(truth, abs=3 * found.se)
    assert found.se < 0.03


def test_where_the_iteration_does_not_stand_still_there_is_no_number():
    assert settle(np.array([[0.5]]), np.array([1.0])) == pytest.approx(2.0)
    assert np.isnan(settle(np.array([[1.01]]), np.array([1.0]))).all()
    with np.errstate(over="ignore"):
        assert np.isnan(settle(np.array([[1e200]]), np.array([1e200]))).all()


def test_it_agrees_with_the_primary_where_actions_move_no_state(world, constant):
    steps, _ = make_steps(world(4000, seed=1, slope=np.array([0.8, -0.5])), constant([0.15, -0.15]), None)
    found, first = fqe(steps, 0.04), primary(steps, fit_action_value(steps), 0.04).lift
    truth = 0.15 * 1.3
    assert found.mean == pytest.approx(truth, abs=3 * first.se)
    assert first.se / 2 < found.se < 2 * first.se
    assert found.low < found.mean < found.high
