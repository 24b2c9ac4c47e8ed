import numpy as np
import pytest
from scipy.stats import kstest

from mtf.world import draws


def test_a_draw_depends_on_its_key_and_lane_alone():
    key = draws.keys(7, np.arange(100))
    lanes = np.arange(5)
    table = draws.uniform(key[:, None], lanes)
    np.testing.assert_array_equal(table[::-1, 3], draws.uniform(key[::-1], np.array(3)))
    np.testing.assert_array_equal(table, draws.uniform(draws.keys(7, np.arange(100))[:, None], lanes))
    assert (draws.uniform(draws.keys(8, np.arange(100)), np.array(0)) != table[:, 0]).all()
    # the order of the parts counts, and a part's sign
    assert draws.keys(1, 2) != draws.keys(2, 1)
    assert draws.keys(-1) != draws.keys(1)


def test_draws_are_uniform_normal_and_independent_along_keys_and_lanes():
    u = draws.uniform(draws.keys(3, np.arange(4000))[:, None], np.arange(4)).astype(float)
    assert 0 < u.min() < u.max() < 1
    for lane in range(4):
        assert kstest(u[:, lane], "uniform").pvalue > 1e-4
    correlation = np.corrcoef(u.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(4000)
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 4.5 / np.sqrt(4000)
    z = draws.normal(draws.keys(4, np.arange(8000)), np.array(0)).astype(float)
    assert kstest(z, "norm").pvalue > 1e-4


def test_the_mixer_is_splitmix64s_finaliser():
    """Vigna's reference: the first outputs of splitmix64 from the state 0."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = golden * np.arange(1, 4, dtype=np.uint64)
    assert [hex(int(v)) for v in draws.mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@pytest.mark.parametrize("n", [1, 7])
def test_no_two_keys_of_a_day_are_the_same(n):
    keys = draws.keys(n, 20_000, np.arange(100_000))
    assert len(np.unique(keys)) == 100_000
