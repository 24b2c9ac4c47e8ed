"""The closed form against the truth of the tiny recommender."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.learning.linear_advantage import LinearAdvantageConfig, learn
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions

SLOPE = np.array([0.8, -0.5, 0.0])
LEVEL = float(np.exp(0.125))


def learned(data, **changes):
    problem = prepare(data, "logged")
    return learn(problem, fit_value(problem), LinearAdvantageConfig(**changes), seed=0, progress=Progress(False)).report


def test_slopes_and_their_errors_are_true():
    z = []
    for seed in range(10):
        found = learned(make_sessions(1500, seed=seed, slope=SLOPE))
        z.append((np.array(found["global_slope"]) - 0.3 * LEVEL * SLOPE) / np.array(found["global_slope_sd"]))
    z = np.array(z)[:, :2]  # the third is shrunk to 0 as it should be
    assert np.abs(z.mean(axis=0)).max() < 4 / np.sqrt(10)
    assert 0.6 < z.std() < 1.6


def test_a_slope_that_depends_on_the_state_moves_each_state_its_way():
    data = make_sessions(6000, seed=1, slope=np.zeros(2))
    reward = data.reward + data.action[:, :1] * data.state[:, :1]
    problem = prepare(replace(data, reward=reward.astype(np.float32)), "logged")
    action = learn(problem, fit_value(problem), LinearAdvantageConfig(), seed=0, progress=Progress(False)).action
    moved = action[:, 0] / 0.3
    assert moved[data.state[:, 0] > 1].mean() > 0.3
    assert moved[data.state[:, 0] < -1].mean() < -0.3
    assert np.abs(action[:, 1]).mean() / 0.3 < 0.15


def test_more_care_is_a_shorter_step():
    data = make_sessions(1500, seed=2, slope=SLOPE / 4)
    steps = [learned(data, kappa=kappa)["rms_wanted"] for kappa in (1.0, 2.0, 8.0)]
    assert steps[0] > steps[1] > steps[2] > 0


def test_it_explains_held_out_residuals_where_there_is_something_to_explain():
    strong = learned(make_sessions(4000, seed=3, slope=SLOPE))["held_out_action"]
    assert strong["slope"] == pytest.approx(1, abs=0.25)
    # Var(u . slope) = sum (.3 slope LEVEL)^2 / 3, against a residual variance of about e^.5 at the mean reward of e^.125
    assert strong["explained_share"] > 0.005
    noise = learned(make_sessions(4000, seed=3, slope=np.zeros(3)))["held_out_action"]
    assert abs(noise["explained_share"]) < 0.003


def test_held_out_users_are_not_those_that_it_was_fitted_on():
    """Noise fits itself: on its own rows it would explain something, on others less than nothing."""
    shares = [
        learned(make_sessions(120, seed=seed, slope=np.zeros(6)))["held_out_action"]["explained_share"] for seed in range(12)
    ]
    assert np.mean(shares) < 0


def test_a_state_wider_than_its_users_are_many_does_not_blow_up():
    """25 users whose states differ in 30 columns: columns that count less than they were seen left less than nothing, which
    passed for certainty: slopes of a million."""
    data = make_sessions(25, seed=1, slope=np.zeros(4))
    wide = np.random.default_rng(1).normal(size=(25, 30)).astype(np.float32)[data.user]
    state, after = (np.concatenate([of, wide], axis=1) for of in (data.state, data.next_state))
    found = learned(replace(data, state=state, next_state=after, value_mask=np.ones(state.shape[1], bool)))
    assert np.abs(found["global_slope"]).max() < 1
    assert found["rms_wanted"] < 0.5


def test_a_step_that_other_users_do_not_confirm_is_not_taken():
    """Without an effect a slope or two look sure in some deals; users that they were not learned from stop most steps."""
    wanted, taken = [], []
    for seed in range(12):
        found = learned(make_sessions(300, seed=seed, slope=np.zeros(6)))
        wanted.append(found["rms_wanted"])
        taken.append(found["confirmed"])
    assert max(wanted) > 0.2
    assert np.dot(wanted, taken) < 0.2 * sum(wanted)
    strong = learned(make_sessions(3000, seed=4, slope=SLOPE))
    assert strong["held_out_action"]["z"] > 4
    assert strong["confirmed"] == 1
