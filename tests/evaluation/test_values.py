"""The shared Q: exact values, held-out users, shrinkage."""

import numpy as np
import pytest

from mtf.evaluation.steps import make_steps
from mtf.evaluation.values import FOLDS, fit_action_value, held_out_value, shrunken_ridge, standardise, user_folds

TEN = np.zeros(2)


def test_value_of_one_for_ever_is_ten(world, constant, changed) -> None:
    data = world(300, seed=0, slope=TEN, end=0.0, longest=8)
    data = changed(data, reward=np.ones((len(data), 1), np.float32))
    steps, _ = make_steps(data, constant(TEN), None)
    value, _ = held_out_value(steps)
    assert data.truncated.sum() == 300
    np.testing.assert_allclose(value, 10, atol=2e-3)
    np.testing.assert_allclose(steps.returns(value), 10, atol=2e-3)


def test_value_of_eight_steps_that_end(world, constant, changed) -> None:
    data = world(300, seed=0, slope=TEN, end=0.0, longest=8)
    last = data.step == 7
    data = changed(data, reward=np.ones((len(data), 1), np.float32), terminal=last, truncated=False)
    steps, _ = make_steps(data, constant(TEN), None)
    value, _ = held_out_value(steps)
    assert steps.returns(value)[steps.starts] == pytest.approx(5.69533, abs=1e-5)
    # a quadratic in the logarithm of the step comes close to the geometric sum
    assert value[steps.starts] == pytest.approx(5.69533, rel=0.03)


def test_folds_hold_users_together() -> None:
    user = np.random.default_rng(0).integers(0, 97, 1000)
    fold = user_folds(user)
    assert set(fold) == set(range(FOLDS))
    assert all(len(set(fold[user == u])) == 1 for u in np.unique(user))


def test_advantage_finds_slopes_and_bend(world, constant) -> None:
    data = world(6000, seed=3, slope=np.array([0.6, -0.3]), bend=1.0)
    steps, _ = make_steps(data, constant(np.array([0.15, -0.15])), None)
    q = fit_action_value(steps)
    # the mean reward is e^(1/8); x is the action over .3
    expected = np.exp(0.125) * (0.6 * 0.15 + 0.3 * 0.15 - 2 * 0.15**2)
    assert (q.target - q.deployed)[: len(steps)].mean() == pytest.approx(expected, rel=0.25)
    assert q.bend.mean() < 0


def test_advantage_of_noise_is_small(world, constant) -> None:
    data = world(3000, seed=4, slope=np.zeros(4))
    steps, _ = make_steps(data, constant(np.full(4, 0.15)), None)
    q = fit_action_value(steps)
    assert abs(q.explained) < 0.003
    assert np.abs(q.target - q.deployed).mean() < 0.1 * steps.reward.mean()


def test_masked_columns_do_not_reach_the_value(world, constant) -> None:
    data = world(400, seed=5, slope=TEN)
    mask = np.array([False, True, True])
    blind, _ = make_steps(type(data)(**{**data.__dict__, "value_mask": mask}), constant(TEN), None)
    other = type(data)(**{**data.__dict__, "value_mask": mask, "state": data.state + [5.0, 0, 0] * np.ones(3, np.float32)})
    moved, _ = make_steps(other, constant(TEN), None)
    np.testing.assert_allclose(held_out_value(blind)[0], held_out_value(moved)[0][: len(blind.state)], rtol=1e-5)


def test_shrinkage_leaves_the_free_group_and_shrinks_noise() -> None:
    gram, group = np.eye(40) * 1000.0, np.r_[0, np.ones(39, int)]
    rng = np.random.default_rng(0)
    cross = np.r_[500.0, rng.normal(scale=np.sqrt(1000.0), size=39)]
    weights, posterior, taus = shrunken_ridge(gram, cross, group, 1.0)
    assert weights[0] == pytest.approx(0.5, rel=1e-4)
    assert np.abs(weights[1:]).max() < 0.5 * np.abs(cross[1:] / 1000).max()
    assert posterior[1, 1] < posterior[0, 0]
    assert taus[1] == taus[2] == 0.0


def test_wide_states_are_reduced() -> None:
    state = np.random.default_rng(0).normal(size=(500, 60)).astype(np.float32)
    state[:, 7] = 3.0
    z = standardise(state, 500, 5.0, 24)
    assert z.shape == (500, 24)
    assert standardise(state, 500, 5.0, 100).shape == (500, 59)
