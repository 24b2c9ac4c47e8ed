"""Legendre weights: exact moments, no bias for rewards of their degree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf import box
from mtf.evaluation.weights import degree1, degree2, second_moment

# Gauss-Legendre nodes integrate the polynomials below exactly
NODES, MASS = np.polynomial.legendre.leggauss(4)


def grid(dims: int) -> tuple[np.ndarray, np.ndarray]:
    """(x [m, dims], probability [m]) whose sums are exact expectations of polynomials under the uniform box."""
    axes = np.meshgrid(*[NODES] * dims, indexing="ij")
    mass = np.meshgrid(*[MASS / 2] * dims, indexing="ij")
    return np.stack([a.ravel() for a in axes], axis=1), np.prod([m.ravel() for m in mass], axis=0)


@pytest.mark.parametrize(("y", "first", "second"), [(0.0, 1.0, 13.5), (0.5, 8.5, 34.594), (1.0, 31.0, 486.0)])
def test_second_moments_in_ten_dimensions(y: float, first: float, second: float) -> None:
    place = np.full(10, y)
    assert second_moment(place, 1) == pytest.approx(first)
    assert second_moment(place, 2) == pytest.approx(second, abs=5e-4)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_second_moment_is_the_exact_expectation(y: list[float]) -> None:
    x, mass = grid(3)
    place = np.tile(y, (len(x), 1))
    assert mass @ degree1(x, place) ** 2 == pytest.approx(float(second_moment(np.array(y), 1)))
    assert mass @ degree2(x, place) ** 2 == pytest.approx(float(second_moment(np.array(y), 2)))


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_no_bias_for_rewards_of_the_weight_s_degree(y: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, mass = grid(3)
    place = np.tile(y, (len(x), 1))
    slope, curve = rng.normal(size=3), rng.normal(size=(3, 3))

    def linear(p: np.ndarray) -> np.ndarray:
        return 2 + p @ slope

    def quadratic(p: np.ndarray) -> np.ndarray:
        return linear(p) + np.einsum("nd,de,ne->n", p, curve, p)

    at = np.array([y])
    assert mass @ (degree1(x, place) * linear(x)) == pytest.approx(float(linear(at)[0]))
    assert mass @ (degree2(x, place) * quadratic(x)) == pytest.approx(float(quadratic(at)[0]))


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_mean_weight_is_one_where_the_box_is_cut_at_the_edge(cut: int) -> None:
    rng = np.random.default_rng(cut)
    center = np.zeros((200_000, 10), np.float32)
    center[:, :cut] = 0.95
    lower, upper = box.offsets(center, 0.2)
    x = box.position(box.sample(rng, center, lower, upper), center, lower, upper)
    y = box.position(box.clip(center + 0.07, center, lower, upper), center, lower, upper)
    weight = degree1(x, y)
    assert weight.mean() == pytest.approx(1, abs=5 * weight.std() / np.sqrt(len(weight)))
    assert (weight**2).mean() == pytest.approx(float(second_moment(y[:1], 1)[0]), rel=0.02)


def test_a_fixed_dimension_adds_nothing() -> None:
    x = np.array([[0.4, 0.0], [-0.2, 0.0]])
    y = np.array([[0.5, 0.0], [0.5, 0.0]])
    np.testing.assert_allclose(degree2(x, y), degree2(x[:, :1], y[:, :1]))


def test_a_dimension_fixed_in_some_rows_adds_nothing_there() -> None:
    """Half of the rows vary both, half the first alone: the mean weight is 1 in each half."""
    x, mass = grid(2)
    fixed = np.where([True, False], x, 0)
    for rows in (x, np.concatenate([x, fixed])):
        y = np.where(rows != 0, 0.5, 0)
        assert np.tile(mass, len(rows) // len(x)) @ degree2(rows, y) == pytest.approx(len(rows) // len(x))
