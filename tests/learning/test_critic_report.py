"""What critics say of themselves: each warning where it is due, and not elsewhere."""

import numpy as np

from mtf.learning.critic_report import calibrate_value, critic_warnings, tenths
from mtf.learning.value import Value


def value(returns):
    """Only the returns are read."""
    zero = np.zeros(len(returns), np.float32)
    return Value(zero, zero, np.asarray(returns, np.float32), zero, 0.9, np.zeros((2, 1)))


RETURNS = value([1.0, 2.0, 3.0, 4.0])
LIVE = np.array([[0.5, 0.6], [1.0, 0.9], [1.5, 1.6], [2.0, 2.1]], np.float32)


def test_critics_that_follow_the_states_are_not_warned_of():
    assert critic_warnings(RETURNS, LIVE, scale=2.0) == []


def test_a_critic_that_gives_every_state_the_same_is_dead():
    values = np.column_stack([LIVE, np.full(4, 0.7, np.float32)])
    assert critic_warnings(RETURNS, values, scale=2.0) == ["dead_critics: 1 of 3 give the same value to every state"]


def test_a_critic_of_one_head_of_two_may_be_half_as_lively():
    """Two heads share the return: .0008 is little for the whole of it, and not for half."""
    quiet = (np.arange(4, dtype=np.float32) - 1.5) * 0.0008 / np.std(np.arange(4))
    values = np.column_stack([quiet, quiet])
    assert critic_warnings(RETURNS, values, scale=1.0, groups=2) == []
    assert critic_warnings(RETURNS, values, scale=1.0)[0].startswith("dead_critics: 2 of 2")


def test_a_value_far_beyond_any_return_or_no_number_is_divergence():
    """The largest return is 4: 40 is the end, in rewards, of either sign."""
    for worst in (20.1, -20.1, np.nan, np.inf):
        values = LIVE.copy()
        values[0, 0] = worst
        (said,) = critic_warnings(RETURNS, values, scale=2.0)
        assert said.startswith("divergence: a critic's value reaches ")
    values[0, 0] = 19.9
    assert critic_warnings(RETURNS, values, scale=2.0) == []


def test_without_held_out_users_nothing_is_said_of_them():
    assert calibrate_value(RETURNS, np.zeros(4, bool), LIVE[:, 0]) == {}


def test_tenths_by_hand():
    """Twenty rows in any order, two a tenth: the least said first; standard error sd / sqrt 2 of the two."""
    said = np.arange(20, dtype=np.float32)
    realised = np.where(said % 2 == 0, said, said + 2).astype(np.float32)
    order = np.random.default_rng(0).permutation(20)
    found = np.array(tenths(said[order], realised[order]))
    np.testing.assert_allclose(found[:, 0], np.arange(10) * 2 + 0.5)
    np.testing.assert_allclose(found[:, 1], np.arange(10) * 2 + 1.5)
    np.testing.assert_allclose(found[:, 2], 1.5 / np.sqrt(2))
