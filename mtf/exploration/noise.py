"""Ways to explore around a policy, in one interface: the box of the method, and what it is compared with.

    box        uniform within +-half_width (`mtf.box`)
    gaussian   normal, half_width its standard deviation, cut at three of them: an action's range is known, and its density exact
    uniform    anywhere in the action space

Near the edge of the action space a box is cut at the edge; a normal is cut alike on both sides, for learners measure an action
from the middle of what may be drawn, and that has to be its mean.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from mtf import box

Noise = Literal["box", "gaussian", "uniform"]
GAUSSIAN_REACH = 3.0
WHOLE = 2.0
"""A half-width that covers the action space from anywhere in it."""


def offsets(center: np.ndarray, half_width: float, noise: Noise = "box") -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) float32 [n, A]: where actions may be drawn, as offsets from `center` [n, A]."""
    reach = {"box": half_width, "gaussian": min(GAUSSIAN_REACH * half_width, WHOLE), "uniform": WHOLE}[noise]
    lower, upper = box.offsets(center, reach)
    if noise == "gaussian":
        upper = np.minimum(-lower, upper)
        lower = -upper
    return lower, upper


def sample(
    rng: np.random.Generator, center: np.ndarray, half_width: float, noise: Noise = "box"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower, upper, action) float32 [n, A]: the offsets and an action drawn within them, each dimension for itself."""
    lower, upper = offsets(center, half_width, noise)
    if noise != "gaussian":
        return lower, upper, box.sample(rng, center, lower, upper)
    # the inverse of the cut normal's distribution function: no draw is rejected, none is put at an end
    least = ndtr(lower.astype(np.float64) / half_width)
    drawn = half_width * ndtri(least + rng.random(center.shape) * (1 - 2 * least))
    return lower, upper, box.clip((center + drawn).astype(np.float32), center, lower, upper)


def log_density(
    action: np.ndarray, center: np.ndarray, lower: np.ndarray, upper: np.ndarray, half_width: float, noise: Noise = "box"
) -> np.ndarray:
    """Log density float64 [n] of an action that `sample` drew, over the dimensions of non-zero width."""
    if noise != "gaussian":
        return box.log_density(lower, upper)
    away = (action.astype(np.float64) - center) / half_width
    inside = np.where(upper > lower, 1 - 2 * ndtr(lower.astype(np.float64) / half_width), 1.0)
    each = -0.5 * away**2 - 0.5 * np.log(2 * np.pi) - np.log(half_width * inside)
    return np.where(upper > lower, each, 0.0).sum(axis=-1)
