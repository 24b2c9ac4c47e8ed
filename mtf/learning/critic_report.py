"""What critics must say of themselves: do they hold on users that they have not seen, do they run away, are some dead."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtf.learning.problem import Problem
from mtf.learning.value import Value

FEWEST = 100
"""Held-out rows from which a slope says something."""
BINS = 10
RUNS_AWAY = 10.0
DEAD = 1e-3


def calibrate_action(problem: Problem, value: Value, held: np.ndarray, advantage: np.ndarray) -> dict[str, float]:
    """On held-out explored rows: slope of the TD residual on A, and the share of it that A explains."""
    rows = held & problem.signal
    if rows.sum() < FEWEST:
        return {}
    y = value.residual[rows].astype(np.float64)
    y -= y.mean()
    x = advantage[rows].astype(np.float64)
    x -= x.mean()
    square = float(x @ x)
    slope = float(x @ y) / square if square > 1e-12 * float(y @ y) else float("nan")
    return {"slope": slope, "explained_share": float(1 - np.square(y - x).sum() / max(float(y @ y), 1e-30))}


def calibrate_value(value: Value, held: np.ndarray, q: np.ndarray) -> dict[str, Any]:
    """On held-out users: slope of the realised return-to-go on Q(s, a) [n], their means, and a table of tenths by Q.

    Empty where few are held out.
    """
    if held.sum() < FEWEST:
        return {}
    x, y = q[held].astype(np.float64), value.ret[held].astype(np.float64)
    cov = np.cov(x, y)
    return {
        "slope": float(cov[0, 1] / max(cov[0, 0], 1e-30)),
        "mean_q": float(x.mean()),
        "mean_return": float(y.mean()),
        "tenths": tenths(x, y),
    }


def tenths(said: np.ndarray, realised: np.ndarray) -> list[list[float]]:
    """[mean of what was said, mean of what was realised, its standard error] of each tenth of rows, the least said first."""
    order = np.array_split(np.argsort(said, kind="stable"), min(BINS, len(said)))
    x, y = said.astype(np.float64), realised.astype(np.float64)
    return [[float(x[i].mean()), float(y[i].mean()), float(y[i].std() / np.sqrt(len(i)))] for i in order]


def critic_warnings(value: Value, values: np.ndarray, scale: float, groups: int = 1) -> list[str]:
    """Named warnings of critics whose values of the states are `values` [n, m], times `scale` in rewards. groups: of reward
    heads, which share the return."""
    found = []
    largest = max(float(values.max()), -float(values.min())) * scale
    returns = float(np.abs(value.ret).max())
    if not np.isfinite(largest) or largest > RUNS_AWAY * max(returns, scale):
        found.append(f"divergence: a critic's value reaches {largest:.3g}, returns {returns:.3g}")
    critics = values.shape[1]
    dead = sum(float(values[:, i].std()) < DEAD / groups for i in range(critics))
    if dead:
        found.append(f"dead_critics: {dead} of {critics} give the same value to every state")
    return found
