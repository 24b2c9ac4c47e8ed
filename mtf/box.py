"""The exploration box: actions uniform around the deployed policy's output (arXiv 2404.17589, section on exploration).

A box is given by its centre [n, A] and the offsets `lower` <= 0 <= `upper` [n, A] *after* they were cut at the edge of
the action space. They are cut before sampling and a sample is never clipped, so the density is exactly
`prod_d 1 / (upper_d - lower_d)` and there is no atom. Dimensions of zero width do not vary and are left out of the
density and of the position x.
"""

from __future__ import annotations

import numpy as np

EDGE = 1.0
ROUNDING = 1e-5
FIXED_TOLERANCE = 1e-2
"""How far a dimension of no width may lie from the centre: a network that clones it is not exact."""


def offsets(center: np.ndarray, half_width: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (lower, upper) float32 [n, A] of a box of `half_width` [A] around `center`, cut at [-1, 1].

    Where the half-width is 0 both are 0. The sums centre + offset stay within [-1, 1] in float32.
    """
    center = np.asarray(center, np.float32)
    half = np.broadcast_to(np.asarray(half_width, np.float32), center.shape)
    lower = np.maximum(-half, -np.float32(EDGE) - center)
    upper = np.minimum(half, np.float32(EDGE) - center)
    return np.minimum(lower, 0), np.maximum(upper, 0)


def sample(rng: np.random.Generator, center: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Actions float32 [n, A], each dimension uniform on centre + [lower, upper], independently."""
    share = rng.random(center.shape, dtype=np.float32)
    action = center + lower + share * (upper - lower)
    # one rounding of the sum may step outside by an ulp; the density is that of the closed box
    return np.clip(action, center + lower, center + upper)


def log_density(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Log density float64 [n] of an action of the box, over the dimensions of non-zero width."""
    width = upper.astype(np.float64) - lower
    return -np.where(width > 0, np.log(np.where(width > 0, width, 1.0)), 0.0).sum(axis=-1)


def position(action: np.ndarray, center: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Position x float32 [n, A] of an action in its box: -1 and 1 at the ends, 0 in the middle and where nothing varies.

    `x = 2 (a - mid) / W`, `mid = centre + (lower + upper) / 2`, `W = upper - lower`. For an action that the box drew, x is
    uniform on [-1, 1] in each varied dimension, independent of everything else. For any other action it may exceed 1.
    """
    width = upper - lower
    mid = center + (lower + upper) * 0.5
    return np.where(width > 0, 2 * (action - mid) / np.where(width > 0, width, 1), 0).astype(np.float32)


def contains(
    action: np.ndarray, center: np.ndarray, lower: np.ndarray, upper: np.ndarray, tolerance: float | np.ndarray = ROUNDING
) -> np.ndarray:
    """True [n] where every dimension of the action lies in its box, within `tolerance` (one, or [A]): float32 rounding."""
    return ((action >= center + lower - tolerance) & (action <= center + upper + tolerance)).all(axis=-1)


def clip(action: np.ndarray, center: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The nearest action of the box, float32 [n, A]."""
    return np.clip(action, center + lower, center + upper).astype(np.float32)
