"""User-level intervals against their closed forms."""

import numpy as np
import pytest

from mtf.evaluation.intervals import by_user, quantile, ratio, slope


def test_sums_by_user() -> None:
    np.testing.assert_array_equal(by_user(np.array([1.0, 2.0, 4.0]), np.array([7, 3, 7])), [2.0, 5.0])
    np.testing.assert_array_equal(by_user(np.eye(3), np.array([0, 1, 0])), [[1, 0, 1], [0, 1, 0]])


def test_ratio_by_hand() -> None:
    found = ratio(np.array([1.0, 3.0]), np.array([2.0, 2.0]), 0.04)
    # L = 1; residuals -1, +1; variance 2 / 16 * 2 / 1
    assert found.mean == 1.0
    assert found.se == pytest.approx(0.5)
    assert found.high - found.mean == pytest.approx(0.5 * quantile(0.04, 2))


def test_ratio_keeps_its_meaning_below_zero() -> None:
    found = ratio(np.array([1.0, 1.0]), np.array([-10.0, -10.0]), 0.04)
    assert found.mean == pytest.approx(0.1)


def test_a_user_s_steps_are_one_observation() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(400), 25)
    shock = np.repeat(rng.normal(size=400), 25)
    found = ratio(by_user(1 + shock, user), by_user(np.ones(len(user)), user), 0.05)
    assert found.se == pytest.approx(shock[::25].std(ddof=1) / 20, rel=0.02)


def test_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(500):
        size = rng.gamma(2.0, 1.0, 300)
        found = ratio(0.1 * size + rng.normal(size=300), size, 0.04)
        hits += found.low < 0.1 < found.high
    assert hits / 500 == pytest.approx(0.96, abs=0.03)


def test_slope_and_its_error() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=20_000)
    found = slope(0.7 * x + 3 + rng.normal(size=20_000), x, np.arange(20_000), 0.05)
    assert found.mean == pytest.approx(0.7, abs=4 * found.se)
    assert found.se == pytest.approx(1 / np.sqrt(20_000), rel=0.05)


def test_slope_on_a_constant_says_nothing() -> None:
    assert slope(np.arange(5.0), np.ones(5), np.arange(5), 0.05).low == -np.inf
