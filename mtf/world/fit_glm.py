"""Additive models with normal effects: fit, variances from pairs of residuals, and draws from the posterior.

A model is a sum of blocks, `eta_i = offset_i + sum_b (X_b theta_b)[cell_b(i)]`, with independent normal priors on the
coefficients. Rows are counted cell by cell, so a fit costs a few gathers an iteration whatever the number of attributes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

NEWTON_STEPS, NEWTON_TOLERANCE, ENOUGH, SMALLEST_STEP = 12, 0.03, 0.5, 1e-3
CG_STEPS, DRAW_TOLERANCE = 200, 0.003


@dataclass(frozen=True, eq=False)
class Block:
    """A term of the linear predictor.

    cell int64 [n]: which cell each row reads. design: sparse [m cells, p], or None where every cell is a coefficient.
    variance: of the normal prior on each coefficient (fixed effects get a wide one).
    """

    name: str
    cell: np.ndarray
    n_cells: int
    variance: float
    design: sparse.csr_matrix | None = None

    @property
    def width(self) -> int:
        """Number of coefficients p."""
        return self.n_cells if self.design is None else int(self.design.shape[1])

    def values(self, theta: np.ndarray) -> np.ndarray:
        """What each cell adds to the linear predictor, [m]."""
        return theta if self.design is None else np.asarray(self.design @ theta)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The transpose: sums of `rows` [n] a coefficient, [p]."""
        cells = np.bincount(self.cell, rows, self.n_cells)
        return cells if self.design is None else np.asarray(self.design.T @ cells)

    def squares(self, rows: np.ndarray) -> np.ndarray:
        """Sums of rows * x^2 a coefficient, [p]."""
        cells = np.bincount(self.cell, rows, self.n_cells)
        return cells if self.design is None else np.asarray(self.design.multiply(self.design).T @ cells)


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted model: coefficients theta, linear predictor eta [n], mean response [n] and Fisher weight [n] of its rows.

    offset [n] or 0: the part of eta that was given.
    """

    blocks: tuple[Block, ...]
    theta: dict[str, np.ndarray]
    eta: np.ndarray
    mean: np.ndarray
    weight: np.ndarray
    offset: np.ndarray | float

    def values(self, name: str) -> np.ndarray:
        """What each cell of the block adds, [m]."""
        return next(b for b in self.blocks if b.name == name).values(self.theta[name])


def fit(
    y: np.ndarray,
    blocks: Sequence[Block],
    *,
    noise_variance: float | None = None,
    offset: np.ndarray | float = 0.0,
) -> Fit:
    """The mode of the posterior of y [n], by Newton steps; `offset` is known of eta.

    noise_variance: of real y with normal noise; None for y of 0/1, which are logistic.

    Each step is solved by conjugate gradients with the Hessian's diagonal as preconditioner, and halved until the loss falls.
    """
    y = np.asarray(y, float)
    system = _System(tuple(blocks), offset)
    theta, unit = np.zeros(system.width), 1.0 if noise_variance is None else 1 / noise_variance
    loss, mean, weight = _state(y, offset + system.predict(theta), noise_variance)
    for _ in range(NEWTON_STEPS):
        slope = system.gather((y - mean) * unit) - system.precision * theta
        step = system.solve(weight, slope, tolerance=NEWTON_TOLERANCE)
        gain = float(slope @ step)
        size, penalty = 1.0, 0.5 * float(theta @ (system.precision * theta))
        while True:
            trial = theta + size * step
            new = _state(y, offset + system.predict(trial), noise_variance)
            fall = loss + penalty - new[0] - 0.5 * float(trial @ (system.precision * trial))
            if fall >= 0 or size < SMALLEST_STEP:
                break
            size /= 2
        theta, (loss, mean, weight) = trial, new
        # `gain` is about twice the fall of the loss still to be had, in nats over all rows
        if gain < ENOUGH:
            break
    return system.fit(theta, mean, weight)


def draw(mode: Fit, rng: np.random.Generator) -> Fit:
    """One draw from the Laplace approximation N(mode, inverse Hessian), exact in all correlations.

    The Hessian is P + X' W X, P the prior precisions; so a normal vector with that covariance is P^(1/2) e1 + X' W^(1/2) e2,
    and solving the Hessian for it gives the deviation (perturbation sampling; Papandreou and Yuille, NIPS 2010).
    """
    system = _System(mode.blocks, mode.offset)
    noise = rng.standard_normal(system.width) * np.sqrt(system.precision)
    noise += system.gather(rng.standard_normal(len(mode.eta)) * np.sqrt(mode.weight))
    away = system.solve(mode.weight, noise, tolerance=DRAW_TOLERANCE)
    return system.fit(np.concatenate([mode.theta[b.name] for b in mode.blocks]) + away, mode.mean, mode.weight)


class _System:
    """The blocks as one vector of coefficients."""

    def __init__(self, blocks: tuple[Block, ...], offset: np.ndarray | float) -> None:
        self.blocks, self.offset = blocks, offset
        ends = np.cumsum([0, *(b.width for b in blocks)])
        self.parts = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        self.width = int(ends[-1])
        self.precision = np.concatenate([np.full(b.width, 1 / b.variance) for b in blocks])

    def predict(self, theta: np.ndarray) -> np.ndarray:
        eta = np.zeros(len(self.blocks[0].cell))
        for block, part in zip(self.blocks, self.parts, strict=True):
            eta += block.values(theta[part]).take(block.cell)
        return eta

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([b.gather(rows) for b in self.blocks])

    def solve(self, weight: np.ndarray, target: np.ndarray, *, tolerance: float) -> np.ndarray:
        """x with (P + X' W X) x = target, to a relative residual of `tolerance` in the preconditioner's norm."""
        inverse = 1 / (self.precision + np.concatenate([b.squares(weight) for b in self.blocks]))
        x = np.zeros(self.width)
        residual = target.copy()
        z = inverse * residual
        direction, rz = z.copy(), float(residual @ z)
        stop = tolerance**2 * rz
        for _ in range(CG_STEPS):
            if rz <= stop:
                break
            image = self.gather(weight * self.predict(direction)) + self.precision * direction
            rate = rz / float(direction @ image)
            x += rate * direction
            residual -= rate * image
            z = inverse * residual
            rz, old = float(residual @ z), rz
            direction *= rz / old
            direction += z
        return x

    def fit(self, theta: np.ndarray, mean: np.ndarray, weight: np.ndarray) -> Fit:
        parts = {b.name: theta[part] for b, part in zip(self.blocks, self.parts, strict=True)}
        return Fit(self.blocks, parts, self.offset + self.predict(theta), mean, weight, self.offset)


def _state(y: np.ndarray, eta: np.ndarray, noise_variance: float | None) -> tuple[float, np.ndarray, np.ndarray]:
    """(loss, mean [n], Fisher weight [n])."""
    if noise_variance is not None:
        return 0.5 * float(((y - eta) ** 2).sum()) / noise_variance, eta, np.full(len(y), 1 / noise_variance)
    mean = 0.5 * (1 + np.tanh(0.5 * eta))
    # log(1 + exp(eta)) without overflow
    loss = float((np.maximum(eta, 0) + np.log1p(np.exp(-np.abs(eta)))).sum() - y @ eta)
    return loss, mean, np.maximum(mean * (1 - mean), 1e-9)


def pair_covariance(residual: np.ndarray, weight: np.ndarray, group: np.ndarray, apart: np.ndarray | None = None) -> float:
    """Variance of a shared effect on eta, from pairs of residuals within a group.

    To first order E[r_i r_j] = w_i w_j * variance for two rows that share an effect, so the estimate is
    sum r_i r_j / sum w_i w_j over the pairs i != j of one `group` [n] that differ in `apart` [n] (all pairs where None).
    May be negative by chance. 0 where there is no pair.
    """
    cross, both = pair_sums(residual, weight, group)
    if apart is None:
        within = float(residual @ residual), float(weight @ weight)
    else:
        within = pair_sums(residual, weight, group.astype(np.int64) * (int(apart.max()) + 1) + apart)
    cross, both = cross - within[0], both - within[1]
    return cross / both if both > 0 else 0.0


def pair_sums(residual: np.ndarray, weight: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """(sum of r_i r_j, sum of w_i w_j) over all ordered pairs of one `group` [n], a row with itself included."""
    _, cell = np.unique(group, return_inverse=True)
    r, w = np.bincount(cell, residual), np.bincount(cell, weight)
    return float(r @ r), float(w @ w)
