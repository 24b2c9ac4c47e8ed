"""Noise around a policy: what is drawn is what the density says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mtf import box
from mtf.exploration.noise import log_density, offsets, sample

EVERY = ("box", "gaussian", "uniform")


@pytest.mark.parametrize("noise", EVERY)
@pytest.mark.parametrize("center", [0.0, -0.85, 0.97])
def test_the_density_of_each_is_that_of_its_draws(noise, center):
    """It integrates to one, and what is drawn is distributed by it, also near the edge of the action space."""
    n, half_width = 20_000, 0.2
    centers = np.full((n, 1), center, np.float32)
    lower, upper, action = sample(np.random.default_rng(1), centers, half_width, noise)
    low, high = float(center + lower[0, 0]), float(center + upper[0, 0])
    assert low - 1e-6 <= action.min() and action.max() <= high + 1e-6
    assert action.min() >= -1 and action.max() <= 1
    grid = np.linspace(low, high, 4001)[:, None].astype(np.float32)
    wide = (np.repeat(v[:1], len(grid), axis=0) for v in (centers, lower, upper))
    density = np.exp(log_density(grid, *wide, half_width, noise))
    cumulated = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid[:, 0].astype(np.float64)))])
    assert cumulated[-1] == pytest.approx(1, abs=1e-3)
    assert stats.kstest(action[:, 0], lambda a: np.interp(a, grid[:, 0], cumulated)).pvalue > 1e-3


def test_a_normal_that_is_cut_keeps_its_mean_and_the_closed_form_of_its_density():
    center = np.array([[0.9, 0.0]], np.float32)
    lower, upper = offsets(center, 0.2, "gaussian")
    np.testing.assert_allclose(upper, [[0.1, 0.6]], atol=1e-6)
    np.testing.assert_array_equal(lower, -upper)
    at = np.array([[0.95, 0.3]], np.float32)
    expected = sum(
        stats.truncnorm(-float(end) / 0.2, float(end) / 0.2, loc=c, scale=0.2).logpdf(a)
        for end, c, a in zip(upper[0], center[0], at[0], strict=True)
    )
    assert float(log_density(at, center, lower, upper, 0.2, "gaussian")[0]) == pytest.approx(float(expected), abs=1e-5)
    _, _, action = sample(np.random.default_rng(2), np.repeat(center, 50_000, axis=0), 0.2, "gaussian")
    assert np.abs((action - center).mean(axis=0)).max() < 0.003


@pytest.mark.parametrize("noise", ["box", "gaussian"])
def test_where_there_is_no_room_nothing_is_drawn_and_nothing_counts(noise):
    center = np.array([[1.0, 0.0]], np.float32)
    lower, upper, action = sample(np.random.default_rng(0), center, 0.2, noise)
    if noise == "gaussian":  # a box at the edge still has its inner half
        assert (lower[0, 0], upper[0, 0], action[0, 0]) == (0, 0, 1)
    said = log_density(action, center, lower, upper, 0.2, noise)
    assert np.isfinite(said).all()


def test_the_box_is_the_one_that_is_served():
    center = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32)
    lower, upper, action = sample(np.random.default_rng(5), center, 0.3)
    for found, expected in zip((lower, upper), box.offsets(center, 0.3), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(action, box.sample(np.random.default_rng(5), center, lower, upper))
