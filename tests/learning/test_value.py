"""V and the TD residual: exact values, and whose rows shape whose value."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.learning.problem import prepare
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions


def problem(data):
    # of several policies, too: V does not ask whose box it is
    return prepare(data, "logged", needs_exploration=False)


def of_ones(ended):
    """Sessions of eight steps, reward 1 each, ended or cut."""
    data = make_sessions(300, seed=0, slope=np.zeros(2), end=0.0, longest=8)
    last = data.step == 7
    ones = np.ones((len(data), 1), np.float32)
    return replace(data, reward=ones, terminal=last & ended, truncated=last & ~ended)


def test_one_for_ever_is_worth_ten():
    value = fit_value(problem(of_ones(ended=False)))
    np.testing.assert_allclose(value.v, 10, rtol=0.02)
    np.testing.assert_allclose(value.ret, 10, rtol=0.02)
    np.testing.assert_allclose(value.residual, 1 + 0.9 * value.next_v - value.v, atol=1e-5)
    np.testing.assert_allclose(value.residual, 0, atol=0.05)


def test_eight_steps_that_end():
    value = fit_value(problem(of_ones(ended=True)))
    first, last = np.arange(len(value.v)) % 8 == 0, np.arange(len(value.v)) % 8 == 7
    np.testing.assert_allclose(value.ret[first], 5.69533, atol=1e-5)
    np.testing.assert_allclose(value.ret[last], 1, atol=1e-6)
    assert (value.next_v[last] == 0).all()
    # a quadratic in the step comes close to the geometric sum
    np.testing.assert_allclose(value.v[first], 5.69533, rtol=0.03)


def test_the_continuation_residual_is_what_one_step_does_not_see():
    data = make_sessions(400, seed=1, slope=np.zeros(2))
    value = fit_value(problem(data))
    following = np.append(data.session[1:] == data.session[:-1], False)
    inner = np.flatnonzero(following)
    later = 0.9 * (value.ret[inner + 1] - value.next_v[inner])
    np.testing.assert_allclose(value.continuation_residual[inner], later, atol=1e-3)


def test_a_users_own_rows_never_shape_the_value_that_judges_them():
    data = make_sessions(400, seed=2, slope=np.zeros(2))
    told = problem(data)
    rows = (told.fold == 0)[:, None]
    other = replace(data, reward=np.where(rows, data.reward * 5, data.reward).astype(np.float32))
    before, after = fit_value(told), fit_value(problem(other))
    np.testing.assert_array_equal(problem(other).fold, told.fold)
    # what the first half of the users was paid changes the values of the other half alone
    np.testing.assert_allclose(after.v[told.fold == 0], before.v[told.fold == 0], rtol=1e-5)
    assert np.abs(after.v - before.v)[told.fold == 1].mean() > 1


def test_each_policy_and_arm_has_its_own_level():
    data = make_sessions(600, seed=3, slope=np.zeros(2))
    second = data.session % 2 == 1
    better = np.where(second[:, None], data.reward + 1, data.reward).astype(np.float32)
    apart = replace(data, reward=better, policy_sha=np.where(second, "b", "a").astype(object))
    found = problem(apart)
    assert len(np.unique(found.group)) == 2
    value = fit_value(found)
    for group in (0, 1):
        rows = found.group == group
        assert value.v[rows].mean() == pytest.approx(value.ret[rows].mean(), rel=0.05)


def test_gamma_zero_is_the_reward_itself():
    data = make_sessions(300, seed=4, slope=np.zeros(2))
    value = fit_value(prepare(data, "logged", gamma=0.0))
    np.testing.assert_allclose(value.ret, data.total_reward, rtol=1e-6)
    np.testing.assert_allclose(value.residual, data.total_reward - value.v, atol=1e-5)


def test_a_policy_that_one_fold_alone_has_gets_a_level_too():
    """Users under a policy of their own, all of one fold: their value is about that of the others, not 0 less it."""
    data = make_sessions(600, seed=3, slope=np.zeros(2))
    few = (problem(data).fold == 0) & (data.user < 12)
    apart = replace(data, reward=data.reward + 9, policy_sha=np.where(few, "b", "a").astype(object))
    found = problem(apart)
    value = fit_value(found)
    assert value.v[few].mean() == pytest.approx(value.ret[few].mean(), rel=0.25)


def test_cut_sessions_whose_value_does_not_settle_are_said():
    """Sessions of one row, all cut: V at their end is a guess of V, which gamma near 1 moves for long."""
    data = make_sessions(400, seed=5, slope=np.zeros(2))
    cut = replace(data, session=np.arange(len(data)), step=np.zeros(len(data), int), terminal=np.zeros(len(data), bool))
    assert not fit_value(prepare(cut, "logged", gamma=0.99)).settled
    assert fit_value(prepare(cut, "logged", gamma=0.5)).settled
    assert fit_value(problem(data)).settled
