"""Fitted Q evaluation with a linear Q: reported, never voted (its bias is that of its model, and it has no weight to correct it).

`Q(s, a) = w . [1, z, z^2, x, x z, x^2 - 1/3]`, iterated to `w <- G^-1 Phi' (r + gamma Q(s', pi(s')))`: no minimum over
critics, a cut session goes on, an ended one does not.
"""

from __future__ import annotations

import numpy as np

from mtf.evaluation.intervals import Estimate, quantile
from mtf.evaluation.steps import Steps
from mtf.evaluation.values import CHUNK, FOLDS, MAX_VALUE_COLUMNS, Z_CLIP_ADVANTAGE, standardise, user_folds

RIDGE = 100.0
SWEEPS = 400
TOLERANCE = 1e-7


def fqe(steps: Steps, alpha: float, ridge: float = RIDGE) -> Estimate | None:
    """Lift of target over deployed policy; the interval is a jackknife over ten groups of users. None where it diverges."""
    fold = user_folds(steps.user)
    n, count = len(steps), len(steps.state)
    z = _columns(steps)
    value = np.concatenate([np.ones((count, 1), np.float32), z, z * z], axis=1)
    phi = np.concatenate([np.ones((count, 1), np.float32), _policy_columns(steps)], axis=1)
    varied = np.flatnonzero(steps.varied)

    def act(position: np.ndarray, index: np.ndarray) -> np.ndarray:
        p = position[index][:, varied].astype(np.float32)
        linear = (p[:, :, None] * phi[index][:, None, :]).reshape(len(index), -1)
        return np.concatenate([linear, p * p - np.float32(1 / 3)], axis=1)

    v, a = value.shape[1], len(varied) * (phi.shape[1] + 1)
    size = v + a
    gram = np.zeros((FOLDS, size, size))
    ahead = {name: np.zeros((FOLDS, size, size)) for name in ("target", "deployed")}
    gained = np.zeros((FOLDS, size))
    first = {name: np.zeros((FOLDS, size)) for name in ahead}
    places = {"target": steps.y, "deployed": steps.y0}
    for f in range(FOLDS):
        rows = np.flatnonzero(fold == f)
        for start in range(0, len(rows), CHUNK):
            index = rows[start : start + CHUNK]
            here = np.concatenate([value[index], act(steps.x, index)], axis=1)
            goes_on = (steps.successor[index] >= 0).astype(np.float32)[:, None]
            following = np.maximum(steps.successor[index], 0)
            gram[f] += here.T @ here
            gained[f] += here.T @ steps.reward[index].astype(np.float32)
            ahead["target"][f, :, :v] += here.T @ (goes_on * value[following])
            for name, place in places.items():
                ahead[name][f, :, v:] += here.T @ (goes_on * act(place, following))
        starts = steps.starts[fold[steps.starts] == f]
        for name, place in places.items():
            first[name][f] = np.concatenate([value[starts], act(place, starts)], axis=1).sum(axis=0, dtype=np.float64)
    ahead["deployed"][:, :, :v] = ahead["target"][:, :, :v]

    def lift(left_out: int | None) -> float:
        keep = np.arange(FOLDS) != left_out
        penalty = np.full(size, ridge)
        penalty[0] = 1e-6
        inverse = np.linalg.inv(gram[keep].sum(axis=0) + np.diag(penalty))
        worth = []
        for name in ("target", "deployed"):
            step = inverse @ ahead[name][keep].sum(axis=0) * steps.gamma
            weight = settle(step, inverse @ gained[keep].sum(axis=0))
            worth.append(float(weight @ first[name][keep].sum(axis=0)))
        return (worth[0] - worth[1]) / abs(worth[1])

    whole = lift(None)
    parts = np.array([lift(f) for f in range(FOLDS)]) if n else np.zeros(0)
    if not np.isfinite(whole) or not np.isfinite(parts).all():
        return None
    se = float(np.sqrt((FOLDS - 1) / FOLDS * ((parts - parts.mean()) ** 2).sum()))
    half = quantile(alpha, FOLDS) * se
    return Estimate(mean=whole, low=whole - half, high=whole + half, se=se)


def settle(step: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The fixed point of `w <- gain + step w`; NaN where the iteration does not stand still."""
    weight = gain
    for _ in range(SWEEPS):
        new = gain + step @ weight
        if not np.isfinite(new).all():
            break
        if np.abs(new - weight).max() <= TOLERANCE * max(np.abs(new).max(), 1e-12):
            return new
        weight = new
    return np.full_like(gain, np.nan)


def _columns(steps: Steps) -> np.ndarray:
    columns = np.concatenate([steps.state[:, steps.value_mask], np.log1p(steps.place)[:, None]], axis=1)
    return standardise(columns, len(steps), Z_CLIP_ADVANTAGE, MAX_VALUE_COLUMNS)


def _policy_columns(steps: Steps) -> np.ndarray:
    return standardise(steps.state, len(steps), Z_CLIP_ADVANTAGE, MAX_VALUE_COLUMNS)
