"""What a training says about itself: slopes with honest errors, and each warning at its cause."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from mtf.learning.diagnostics import slope_tests, step_report, value_calibration, warnings_of
from mtf.learning.problem import prepare
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions

SLOPE = np.array([0.8, -0.5, 0.0])
LEVEL = float(np.exp(0.125))
"""Mean of exp(s / 2) for a standard normal s."""


def slopes_of(**changes):
    problem = prepare(make_sessions(**({"sessions": 400, "seed": 0, "slope": SLOPE} | changes)), "logged")
    return slope_tests(problem, fit_value(problem))


def test_slopes_are_the_true_ones_a_half_width_with_their_errors():
    z = []
    for seed in range(20):
        found = slopes_of(seed=seed)
        for kind in ("delta", "return"):
            z.append((np.array(found[f"{kind}_slope"]) - 0.3 * LEVEL * SLOPE) / np.array(found[f"{kind}_slope_se"]))
    z = np.array(z)
    assert np.abs(z.mean(axis=0)).max() < 4 / np.sqrt(20)  # the two kinds go together
    assert z.std() == pytest.approx(1, abs=0.25)


def test_without_signal_p_is_uniform():
    found = [slopes_of(seed=seed, slope=np.zeros(3), sessions=150) for seed in range(60)]
    assert kstest([f["signal_p"] for f in found], "uniform").pvalue > 0.01
    assert kstest([f["p"] for f in found], "uniform").pvalue > 0.01
    assert found[0]["degrees"] == 3


def test_a_signal_and_a_future_that_one_step_misses_are_seen():
    strong = slopes_of(sessions=3000)
    assert strong["signal_p"] < 1e-6
    assert strong["p"] > 1e-3
    assert strong["mean_abs_z"] > 2
    # leaving moves with the action: the reward of the step is not all that it earns
    problem = prepare(make_sessions(6000, seed=1, slope=SLOPE, leave=3.0), "logged")
    value = fit_value(problem)
    blind = replace(value, residual=problem.data.total_reward - value.v * 0.2)
    assert slope_tests(problem, value)["p"] > 1e-3
    assert slope_tests(problem, blind)["p"] < 1e-3


def test_rows_of_one_session_are_not_taken_for_independent():
    """Every row twice in its session: twice the rows, and not a bit more known."""
    data = make_sessions(2000, seed=3, slope=SLOPE, end=1.0)
    twice = data.select(np.ones(len(data), bool))
    rows = np.repeat(np.arange(len(data)), 2)
    parts = {name: getattr(data, name)[rows] for name in ("session", "user", "state", "next_state", "reward", "exploring")}
    parts |= {name: getattr(data, name)[rows] for name in ("action", "center", "lower", "upper", "next_center")}
    parts |= {
        name: getattr(data, name)[rows] for name in ("next_lower", "next_upper", "policy_sha", "arm", "dt", "fallback", "ts")
    }
    last = np.arange(len(rows)) % 2 == 1
    twice = replace(twice, step=last.astype(int), terminal=last, truncated=np.zeros(len(rows), bool), **parts)
    once, again = (prepare(d, "logged", gamma=0.0) for d in (data, twice))
    first, second = (np.array(slope_tests(p, fit_value(p))["delta_slope_se"]) for p in (once, again))
    np.testing.assert_allclose(second, first, rtol=0.05)


def test_a_fixed_dimension_has_no_slope_and_no_degree():
    data = make_sessions(300, seed=0, slope=SLOPE)
    fixed = {name: getattr(data, name) * np.array([1, 0, 1], np.float32) for name in ("lower", "upper", "action")}
    problem = prepare(replace(data, **fixed), "logged")
    found = slope_tests(problem, fit_value(problem))
    assert found["degrees"] == 2
    assert found["delta_slope"][1] == 0.0


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_calibration_reads_off_the_scale_of_v(scale):
    problem = prepare(make_sessions(3000, seed=2, slope=SLOPE), "logged")
    value = fit_value(problem)
    found = value_calibration(problem, replace(value, v=value.v * scale))
    assert found["slope"] == pytest.approx(1 / scale, rel=0.1)
    said, realised, _ = np.array(found["tenths"]).T
    assert (len(said), said[0] < said[-1]) == (10, True)
    assert realised[-1] - realised[0] == pytest.approx((said[-1] - said[0]) / scale, rel=0.2)
    assert found["explained_share"] < value_calibration(problem, value)["explained_share"] + 1e-9


def test_the_step_by_hand():
    problem = prepare(make_sessions(100, seed=0, slope=SLOPE), "logged")
    n = len(problem.z)
    y = np.tile([0.95, -0.3, 0.0], (n, 1))
    y[: n // 2] = [0.95, -0.95, 0.95]
    found = step_report(problem, (0.3 * y).astype(np.float32))
    half = (n // 2) / n
    assert found["rms_y"] == pytest.approx(np.sqrt((y**2).mean()), rel=1e-5)
    assert found["rms_move"] == pytest.approx(found["rms_y"], rel=1e-5)
    assert found["edge_share"] == pytest.approx(half + (1 - half) / 3)
    assert found["corner_share"] == pytest.approx(half)
    assert found["mean_move"][0] == pytest.approx(0.95, rel=1e-5)
    assert found["sd_move_within"][0] == pytest.approx(0, abs=1e-6)
    still = step_report(problem, problem.center)
    assert (still["rms_y"], still["edge_share"]) == (0.0, 0.0)


GOOD = {
    "half_width": [0.3, 0.0],
    "step": {"edge_share": 0.1, "rms_y": 0.3},
    "config": {"max_rms_step": 0.5},
    "tests": {"signal_p": 0.01, "p": 0.5, "chi2": 3.0},
    "value": {"slope": 1.0},
    "algorithm": {"held_out_action": {"slope": 1.0, "explained_share": 0.01}},
    "distilled": {"outside_share": 0.0},
}


@pytest.mark.parametrize(
    ("part", "change", "name"),
    [
        ("value", {"slope": 0.7}, "miscalibrated_value"),
        ("value", {"slope": 1.3}, "miscalibrated_value"),
        ("tests", {"signal_p": 0.06, "p": 0.5, "chi2": 3.0}, "no_signal"),
        ("tests", {"signal_p": 0.01, "p": 0.0009, "chi2": 30.0}, "one_step_bias"),
        ("step", {"edge_share": 0.66, "rms_y": 0.3}, "corner_everywhere"),
        ("algorithm", {"wanted_edge_share": 0.66}, "corner_everywhere"),
        ("step", {"edge_share": 0.1, "rms_y": 0.51}, "step_too_long"),
        ("algorithm", {"held_out_value": {"slope": 0.5}}, "miscalibrated_q"),
        ("algorithm", {"held_out_action": {"slope": 0.4, "explained_share": 0.01}}, "miscalibrated_action"),
        ("algorithm", {"held_out_action": {"slope": 1.0, "explained_share": -0.01}}, "action_explains_nothing"),
        ("algorithm", {"confirmed": 0.0, "held_out_action": {"z": 0.4}}, "no_step"),
        ("algorithm", {"confirmed": 1.0, "rms_wanted": 0.0}, "no_step"),
        ("half_width", [0.0, 0.0], "no_step"),
        ("distilled", {"outside_share": 0.011}, "outside_box"),
    ],
)
def test_each_warning_has_its_cause(part, change, name):
    assert warnings_of(GOOD) == []
    found = warnings_of(GOOD | {part: change})
    assert [w.split(":")[0] for w in found] == [name]


def test_an_algorithm_without_held_out_numbers_gets_no_warning_of_them():
    assert warnings_of(GOOD | {"algorithm": {}}) == []
    assert warnings_of(GOOD | {"algorithm": {"held_out_action": {"slope": float("nan")}}}) == []
