"""Exact importance ratios of a stochastic box around the target: a diagnostic for at most three varied dimensions.

The target draws uniformly from a box of half the logged width, shifted into it; the ratio of a step is then exactly
`2^A 1{x in the smaller box}`, A the dimensions that vary in its row. Its second moment, 2^A a step, leaves nothing of a session
in more dimensions.
"""

from __future__ import annotations

import numpy as np

from mtf.evaluation.intervals import Estimate, by_user, ratio
from mtf.evaluation.steps import Steps

MAX_DIMENSIONS = 3
MIN_EFFECTIVE = 100.0
HALF = 0.5


def importance(steps: Steps, alpha: float) -> Estimate | None:
    """Per-decision importance-sampled lift of the smaller boxes around target and deployed policy; None where more than three
    dimensions vary or fewer than a hundred effective sessions keep weight at the last step that counts."""
    varied = np.flatnonzero(steps.varied)
    if not 1 <= len(varied) <= MAX_DIMENSIONS:
        return None
    worth, least = [], np.inf
    for place in (steps.y, steps.y0):
        rho = step_ratio(steps.x[:, varied], place[: len(steps), varied])
        ratios = running_product(rho, steps.starts)
        worth.append(steps.per_session(steps.discount * ratios * steps.reward))
        early = steps.discount > 0.3
        ends = np.flatnonzero(early & np.append(~early[1:] | (np.diff(steps.session) > 0), True))
        least = min(least, float(ratios[ends].sum() ** 2 / max((ratios[ends] ** 2).sum(), 1e-12)))
    if least < MIN_EFFECTIVE:
        return None
    user = steps.session_user
    return ratio(by_user(worth[0] - worth[1], user), by_user(worth[1], user), alpha)


def step_ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`prod_d 2 1{|x_d - middle_d| <= 1/2}` float64 [n], the middle at y [n, A] or where the smaller box still fits; a dimension
    that does not vary in a row has x = y = 0 there and counts 1."""
    inside = (np.abs(x - np.clip(y, -1 + HALF, 1 - HALF)) <= HALF) / HALF
    ratio: np.ndarray = np.where((x == 0) & (y == 0), 1.0, inside).prod(axis=1)
    return ratio


def running_product(rho: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Product of `rho` [n] from the session's first step to each step, float64 [n]."""
    out = rho.astype(np.float64).copy()
    lengths = np.diff(np.append(starts, len(rho)))
    for ahead in range(1, int(lengths.max(initial=1))):
        rows = starts[lengths > ahead] + ahead
        out[rows] *= out[rows - 1]
    return out
