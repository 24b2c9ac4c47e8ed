"""V by quadratic ridge to Monte-Carlo returns, cross-fitted by user, and the TD residual that actions must explain.

V reads only columns that actions do not move: a value of running averages of the user's outcomes gives an action credit
for moving the average, which stands for a taste that the action did not change (docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mtf.learning.problem import Problem
from mtf.learning.ridge import Moments, ridge, with_rows
from mtf.transitions.arrays import chunks

CHUNK = 32768
MAX_COLUMNS = 1200
PENALTY = 1e-4
PASSES = 30
SETTLED, TINY = 1e-3, 1e-9


@dataclass(frozen=True)
class Value:
    """float32 [n]: v = V(s), next_v = V(s') (0 where terminal), ret = G, the return-to-go, bootstrapped at cut ends; residual
    = r + gamma next_v - v, the delta that actions must explain.

    Each row's V was fitted on the users of the other fold. At cut ends returns bootstrap from V itself, and that V has seen
    the row's own fold.
    coefficients [2, p] for the groups and the quadratic terms. settled: bootstrapping from cut ends came to rest.
    """

    v: np.ndarray
    next_v: np.ndarray
    ret: np.ndarray
    residual: np.ndarray
    gamma: float
    coefficients: np.ndarray
    settled: bool = True

    @property
    def continuation_residual(self) -> np.ndarray:
        """(G - V(s)) - delta = gamma (G' - V(s')) [n]: what the one-step residual does not see of the future."""
        return self.ret - self.v - self.residual


def fit_value(problem: Problem) -> Value:
    """Fit V and return it with the TD residual `delta = r + gamma (1 - terminal) V(s') - V(s)`.

    Sessions that are cut (truncated) bootstrap from V at their end, so V is fitted again until it settles.
    """
    data, gamma = problem.data, problem.gamma
    n = len(data)
    last = np.append(data.session[1:] != data.session[:-1], True)
    cut = last & ~data.terminal
    now, nxt = _Design(problem, problem.z, data.step), _Design(problem, problem.next_z, data.step + 1)
    reward = data.total_reward
    # a first guess that is exact where rewards and ends do not depend on anything
    next_v = np.full(n, reward.mean() / (1 - gamma * (1 - data.terminal.mean())), np.float32)
    settled = not cut.any()
    for _ in range(PASSES if cut.any() else 1):
        boosted = reward + np.where(cut, gamma * next_v, 0).astype(np.float32)
        ret = replace(data, reward=boosted[:, None]).returns(gamma).astype(np.float32)
        folds = _moments(problem, now, ret)
        coefficients = np.stack(
            [_for_every_group(ridge(folds[1 - f], now.penalty)[:, 0], folds[1 - f], now.n_groups) for f in (0, 1)]
        )
        v = now.predict(coefficients)
        before, next_v = next_v, np.where(data.terminal, 0, nxt.predict(coefficients)).astype(np.float32)
        if np.abs(next_v - before)[cut].max(initial=0) <= SETTLED * np.abs(next_v[cut]).max(initial=TINY):
            settled = True
            break
    residual = reward + gamma * next_v - v
    return Value(v, next_v, ret, residual, gamma, coefficients, settled)


class _Design:
    """Columns of V: one intercept a group, then z, step and their products, in chunks."""

    def __init__(self, problem: Problem, z: np.ndarray, step: np.ndarray) -> None:
        self.z = z
        self.columns = problem.value_columns
        self.step = np.clip((step - problem.data.step.mean()) / (problem.data.step.std() + 1e-6), -3, 3).astype(np.float32)
        self.group, self.n_groups = problem.group, int(problem.group.max()) + 1
        self.fold = problem.fold
        linear = len(self.columns) + 1
        quadratic = linear * (linear + 1) // 2
        rows_enough = len(z) > 20 * quadratic
        self.pairs = np.triu_indices(linear) if quadratic <= MAX_COLUMNS and rows_enough else (np.empty(0, int),) * 2
        self.penalty = np.concatenate([np.zeros(self.n_groups), np.full(linear + len(self.pairs[0]), PENALTY)])

    def chunk(self, rows: slice) -> np.ndarray:
        x = np.concatenate([self.z[rows][:, self.columns], self.step[rows, None]], axis=1)
        intercepts = np.zeros((len(x), self.n_groups), np.float32)
        intercepts[np.arange(len(x)), self.group[rows]] = 1
        return np.concatenate([intercepts, x, x[:, self.pairs[0]] * x[:, self.pairs[1]]], axis=1)

    def predict(self, coefficients: np.ndarray) -> np.ndarray:
        out = np.empty(len(self.z), np.float32)
        b = coefficients.T.astype(np.float32)
        for rows in chunks(len(self.z), CHUNK):
            both = self.chunk(rows) @ b
            out[rows] = both[np.arange(len(both)), self.fold[rows]]
        return out


def _for_every_group(coefficients: np.ndarray, moments: Moments, n_groups: int) -> np.ndarray:
    """An intercept for groups that this fold has no row of, too: the mean of the others'."""
    seen = np.diag(moments.xx)[:n_groups]
    if (seen > 0).all() or not seen.any():
        return coefficients
    mean = float(seen @ coefficients[:n_groups] / seen.sum())
    return np.concatenate([np.where(seen > 0, coefficients[:n_groups], mean), coefficients[n_groups:]])


def _moments(problem: Problem, design: _Design, ret: np.ndarray) -> list[Moments]:
    p = len(design.penalty)
    folds = [Moments.zero(p), Moments.zero(p)]
    for rows in chunks(len(ret), CHUNK):
        folds = with_rows(folds, problem.fold[rows], design.chunk(rows), ret[rows, None], problem.weight[rows])
    return folds
