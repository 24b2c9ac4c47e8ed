"""Projected (Legendre) weights: what an action at position x in its box says about a policy at position y.

x is uniform on [-1, 1] in each varied dimension. The degree-1 weight is unbiased for a one-step reward that is linear
in the action, degree 2 for a quadratic one. Weights are signed: never multiply them across steps.
"""

from __future__ import annotations

import numpy as np


def degree1(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`1 + 3 sum_d x_d y_d`, float64 [n], of positions x, y [n, A] (0 where a dimension does not vary)."""
    return 1.0 + 3.0 * np.einsum("nd,nd->n", x, y, dtype=np.float64)


def degree2(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`degree1 + 5 sum_d P2(x_d) P2(y_d) + 9 sum_{d<e} x_d y_d x_e y_e`, P2(z) = (3 z^2 - 1) / 2, float64 [n].

    A dimension that does not vary in a row has x = y = 0 there, where the P2 term would add 5/4: it is left out.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    product = x * y
    linear = product.sum(axis=1)
    legendre = (1.5 * x * x - 0.5) * (1.5 * y * y - 0.5) * ((x != 0) | (y != 0))
    pairs = 0.5 * (linear**2 - (product * product).sum(axis=1))
    return 1.0 + 3.0 * linear + 5.0 * legendre.sum(axis=1) + 9.0 * pairs


def second_moment(y: np.ndarray, degree: int) -> np.ndarray:
    """Exact E[omega^2] over x, float64 [...], of a policy at y [..., A] (all dimensions varied)."""
    y = np.asarray(y, np.float64)
    square = y * y
    moment = 1.0 + 3.0 * square.sum(axis=-1)
    if degree == 2:
        pairs = 0.5 * (square.sum(axis=-1) ** 2 - (square * square).sum(axis=-1))
        moment = moment + 5.0 * ((1.5 * square - 0.5) ** 2).sum(axis=-1) + 9.0 * pairs
    return moment
