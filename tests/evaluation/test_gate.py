"""The gate's decisions, one condition at a time, each at both sides of its limit."""

import numpy as np
import pytest

from mtf.evaluation import gate
from mtf.evaluation.intervals import Estimate
from mtf.evaluation.referee import Calibration, Referee
from mtf.evaluation.steps import Coverage, make_steps


def estimate(mean, se=0.01, low=None, high=None):
    return Estimate(mean=mean, se=se, low=mean - 2 * se if low is None else low, high=mean + 2 * se if high is None else high)


GOOD = {
    "step": 0.4,
    "calibration": Calibration(slope=estimate(1.0), level=estimate(1.0)),
    "lift": estimate(0.05),
    "deployed": estimate(10.0, se=0.1),
    "second": Referee(lift=estimate(0.04), gap=estimate(-0.005)),
}


def broken(**changes):
    """Names of the checks that do not hold."""
    return {c.name for c in gate.estimate_checks(**(GOOD | changes)) if not c.holds}


def test_a_good_estimate_breaks_nothing():
    assert broken() == set()
    assert all(c.votes for c in gate.estimate_checks(**GOOD))


@pytest.mark.parametrize(
    ("inside", "outside", "name"),
    [
        ({"step": 0.52}, {"step": 0.53}, "step"),
        ({"deployed": estimate(0.41, se=0.1)}, {"deployed": estimate(0.39, se=0.1)}, "value"),
        ({"deployed": estimate(-0.41, se=0.1)}, {"deployed": estimate(-0.39, se=0.1)}, "value"),
        # the slope's interval must miss the range, the level itself must lie in it
        (
            {"calibration": Calibration(slope=estimate(1.3, low=1.09, high=1.5), level=estimate(1.0))},
            {"calibration": Calibration(slope=estimate(1.3, low=1.11, high=1.5), level=estimate(1.0))},
            "calibration",
        ),
        (
            {"calibration": Calibration(slope=estimate(0.7, low=0.5, high=0.91), level=estimate(1.0))},
            {"calibration": Calibration(slope=estimate(0.7, low=0.5, high=0.89), level=estimate(1.0))},
            "calibration",
        ),
        (
            {"calibration": Calibration(slope=estimate(1.0), level=estimate(1.09, se=9))},
            {"calibration": Calibration(slope=estimate(1.0), level=estimate(1.11, se=9))},
            "calibration",
        ),
        # two standard errors apart, beside what is of second order in the lift
        (
            {"second": Referee(lift=estimate(0.04), gap=estimate(-0.0205, se=0.01))},
            {"second": Referee(lift=estimate(0.04), gap=estimate(-0.0215, se=0.01))},
            "referee",
        ),
        (
            {"second": Referee(lift=estimate(0.001), gap=estimate(0.0))},
            {"second": Referee(lift=estimate(-0.001), gap=estimate(0.0))},
            "referee",
        ),
    ],
)
def test_each_limit(inside, outside, name):
    assert broken(**inside) == set()
    assert broken(**outside) == {name}


def test_a_referee_below_zero_does_not_contradict_a_lift_below_zero():
    low = {"lift": estimate(-0.05), "second": Referee(lift=estimate(-0.04), gap=estimate(0.005))}
    assert broken(**low) == set()


def check(name, holds, votes=True):
    return gate.Check(name=name, holds=holds, votes=votes, value="", allowed="", meaning="", why=f"{name} is broken")


ABOVE, ACROSS, BELOW = (estimate(m, se=0.02, low=m - 0.04, high=m + 0.04) for m in (0.05, 0.01, -0.05))


@pytest.mark.parametrize(
    ("lift", "broken_checks", "verdict", "says"),
    [
        (
            ABOVE,
            [],
            "pass",
            "interval of +1.00% to +9.00% lies above 0, and all checks that vote hold; but talk is broken.",
        ),
        (
            ACROSS,
            [],
            "inconclusive",
            "includes 0; this far from the deployed policy a lift of 8.0% is found four times in five.",
        ),
        (BELOW, [], "fail", "lies below 0."),
        (ABOVE, ["coverage"], "fail", "Coverage is broken."),
        (None, ["coverage"], "fail", "Coverage is broken."),
        (ABOVE, ["referee", "coverage"], "fail", "Coverage is broken."),
        (ABOVE, ["calibration"], "inconclusive", "Calibration is broken."),
        (None, ["users"], "inconclusive", "Users is broken."),
        (None, [], "inconclusive", "There is nothing to estimate from."),
        # a lift below 0 is a failure although its size is in doubt, but not where the rows themselves are
        (BELOW, ["calibration", "referee", "step"], "fail", "lies below 0."),
        (BELOW, ["propensities"], "inconclusive", "Propensities is broken."),
        (BELOW, ["baseline"], "inconclusive", "Baseline is broken."),
        (BELOW, ["value"], "inconclusive", "Value is broken."),
        (estimate(0.04, low=0.0, high=0.08), [], "inconclusive", "includes 0"),
        (estimate(-0.04, low=-0.08, high=0.0), [], "inconclusive", "includes 0"),
    ],
)
def test_the_verdict(lift, broken_checks, verdict, says):
    checks = [check("fine", True), *(check(name, False) for name in broken_checks), check("talk", False, votes=False)]
    found, reason = gate.decide(lift, checks, 0.04, 0.08)
    assert (found, says in reason) == (verdict, True), reason


def test_nothing_else_is_said_where_all_checks_hold():
    assert gate.decide(ABOVE, [check("fine", True), check("talk", True, votes=False)], 0.04, None)[1].endswith("vote hold.")


def test_without_a_detectable_lift_none_is_named():
    assert gate.decide(ACROSS, [], 0.04, None)[1].endswith("includes 0.")


@pytest.mark.parametrize(("states", "holds"), [(0.0, True), (0.01, True), (0.0101, False)])
def test_coverage_and_baseline_allow_one_state_in_a_hundred(world, constant, states, holds):
    assert gate.coverage_check(Coverage(states=states, dims=np.zeros(1), deployed_off=0)).holds is holds
    steps, _ = make_steps(world(50, seed=0, slope=np.zeros(1)), constant([0.0]), None)
    checks = {c.name: c for c in gate.row_checks(steps, Coverage(states=0, dims=np.zeros(1), deployed_off=states), 200)}
    assert checks["baseline"].holds is holds


@pytest.mark.parametrize(("users", "holds"), [(199, False), (200, True)])
def test_users(world, constant, users, holds):
    steps, coverage = make_steps(world(300, seed=0, slope=np.zeros(2)), constant([0.0, 0.0]), None)
    checks = {c.name: c.holds for c in gate.row_checks(steps, coverage, users)}
    assert checks == {"users": holds, "baseline": True, "propensities": True}


def moved(data, changed, shift=0.0, scale=1.0, share=1.0):
    """`data` with its logged actions moved inside their boxes, in a share of the rows."""
    rows = np.random.default_rng(0).random(len(data)) < share
    action = np.where(rows[:, None], np.clip(data.action * scale + shift, data.lower, data.upper), data.action)
    return changed(data, action=action.astype(np.float32))


@pytest.mark.parametrize(
    "spoil",
    [{"shift": 0.02}, {"scale": 0.9}, {"shift": -0.3, "share": 0.05}],
    ids=["off centre", "too narrow", "some at the edge"],
)
def test_actions_that_are_not_uniform_are_noticed(world, constant, changed, spoil):
    data = world(4000, seed=1, slope=np.zeros(3))
    clean, _ = make_steps(data, constant(np.zeros(3)), None)
    assert gate.uniformity(clean) < 4
    steps, coverage = make_steps(moved(data, changed, **spoil), constant(np.zeros(3)), None)
    assert gate.uniformity(steps) > gate.MAX_UNIFORM_Z
    assert not {c.name: c.holds for c in gate.row_checks(steps, coverage, 4000)}["propensities"]


def test_uniformity_by_hand(world, constant, changed):
    data = world(50, seed=0, slope=np.zeros(1))
    data = changed(data, action=np.full((len(data), 1), 0.15, np.float32))
    steps, _ = make_steps(data, constant([0.0]), None)
    n = len(data)
    # x = 1/2 everywhere: the mean is .5 sqrt(3 n) standard deviations from 0, the square (1/3 - 1/4) / sqrt(4 / 45 / n) from 1/3
    assert gate.uniformity(steps) == pytest.approx(max(0.5 * np.sqrt(3 * n), np.sqrt(n) * (1 / 12) / np.sqrt(4 / 45)), rel=1e-5)


def test_the_step_is_the_rms_move_over_varied_dimensions(world, constant, changed):
    data = world(50, seed=0, slope=np.zeros(2))
    steps, _ = make_steps(data, constant([0.15, 0.06]), constant([0.03, 0.06]))
    assert gate.step_size(steps) == pytest.approx(0.4 / np.sqrt(2), rel=1e-5)
    fixed = {name: getattr(data, name) * np.array([1, 0], np.float32) for name in ("lower", "upper", "action")}
    steps, _ = make_steps(changed(data, **fixed), constant([0.15, 0.0]), None)
    assert gate.step_size(steps) == pytest.approx(0.5, rel=1e-5)
