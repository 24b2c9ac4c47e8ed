"""Ridge regression from moments, with penalties set by the data (empirical Bayes).

Moments add up over chunks and rounds, so 500,000 rows of 550 columns never lie in memory at once, and everything below
(fits, held-out errors, tests) is algebra on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import add

import numpy as np
from scipy.linalg import lapack

FLOOR = 1e-12
"""Of variances, in units of the response's."""
ITERATIONS = 60
GIVEN = -2


@dataclass(frozen=True)
class Moments:
    """Weighted sums of products: xx [p, p], xy [p, q], yy [q] (squares of each response), n (sum of weights); float64.

    And sums of weights squared times squares, for `unevenness`: of x alone wx [p], of y alone wy [q], of both wxy [p, q];
    ww, of the weights themselves.
    """

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    n: float
    wx: np.ndarray
    wy: np.ndarray
    wxy: np.ndarray
    ww: float

    @staticmethod
    def zero(p: int, q: int = 1) -> Moments:
        """Of no rows, p columns and q responses."""
        return Moments(np.zeros((p, p)), np.zeros((p, q)), np.zeros(q), 0.0, np.zeros(p), np.zeros(q), np.zeros((p, q)), 0.0)

    @staticmethod
    def of(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> Moments:
        """x float32 [m, p], y [m, q], weight [m] >= 0 or None."""
        w = np.ones(len(x), np.float32) if weight is None else np.asarray(weight, np.float32)
        root = np.sqrt(w)[:, None]
        if weight is not None:
            x, y = x * root, y * root
        # x and y hold a root of the weight each, so their squares' product holds w squared
        x2, y2 = np.square(x), np.square(y.astype(np.float64))
        return Moments(
            (x.T @ x).astype(np.float64),
            (x.T @ y).astype(np.float64),
            y2.sum(axis=0),
            float(w.sum(dtype=np.float64)),
            w @ x2,
            w @ y2,
            x2.T @ y2.astype(np.float32),
            float(np.square(w, dtype=np.float64).sum()),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def columns(self, keep: np.ndarray) -> Moments:
        """The moments of the columns `keep` (indices) alone."""
        return replace(self, xx=self.xx[np.ix_(keep, keep)], xy=self.xy[keep], wx=self.wx[keep], wxy=self.wxy[keep])

    def squared_error(self, coefficients: np.ndarray, response: int = 0) -> float:
        """Sum of squared errors of `x @ coefficients` for one response."""
        b = coefficients
        return float(self.yy[response] - 2 * b @ self.xy[:, response] + b @ self.xx @ b)

    def unevenness(self, response: int = 0) -> np.ndarray:
        """How many times the noise's mean variance meets each column [p]: `E[x_j^2 y^2] / (E[x_j^2] E[y^2])`, 1 at least.

        1 where noise does not depend on x_j^2 (White, 1980). The response stands for its residual: it is one already, of V,
        and the columns explain little of it.
        """
        even = self.wx * self.wy[response] / max(self.ww, 1e-30)
        return np.where(even > 0, np.maximum(self.wxy[:, response] / np.maximum(even, 1e-30), 1.0), 1.0)


def total(parts: Sequence[Moments]) -> Moments:
    """Their sum."""
    return reduce(add, parts)


def with_rows(parts: Sequence[Moments], code: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> list[Moments]:
    """`parts` and, in the k-th, the rows whose code is k."""
    return [part + Moments.of(x[code == k], y[code == k], weight[code == k]) for k, part in enumerate(parts)]


def left_out(parts: Sequence[Moments]) -> list[tuple[Moments, Moments]]:
    """(the sum of all others, the part) for each part."""
    return [(total([*parts[:k], *parts[k + 1 :]]), part) for k, part in enumerate(parts)]


@dataclass(frozen=True)
class Posterior:
    """Coefficients [p] with covariance [p, p]; noise: residual variance; tau2: prior variance of each group.

    worth: {value, sd} of s, what the prior is worth; None without a prior.
    """

    mean: np.ndarray
    cov: np.ndarray
    noise: float
    tau2: np.ndarray
    worth: dict[str, float] | None = None


def empirical_bayes(
    moments: Moments, group: np.ndarray, prior: np.ndarray | None = None, response: int = 0, *, uneven: bool = False
) -> Posterior:
    """Bayesian linear regression `y = x b + e`, `b_j ~ N(s prior_j, tau2_group(j))`, `s ~ N(1, 1)`, tau2 by maximum evidence.

    group int [p]: -1 leaves a coefficient free; equal numbers share a tau2. Put columns of one group on one scale.
    s is what the whole prior is worth. Until data say so, none of it is sure: a slope that the prior alone promises is one
    standard deviation, however small tau2 may be.
    uneven: noise may depend on x. Rewards of users that bring much vary more, so a column that is large for them has an estimate
    less sure than the mean noise says; read as even, that excess passes for signal. A column's information is divided by its
    `unevenness`. For columns that the exploration keeps nearly uncorrelated, as `u x phi`.
    Fixed point of MacKay (1992): `tau2_g = sum_g (b - s prior)^2 / (n_g - sum_g cov_jj / tau2_g)`. Where the data show no
    more spread than their noise, tau2 runs to 0 and the coefficients to s times their prior.
    """
    if prior is None or not prior.any():
        seen = moments.xx, moments.xy[:, response]
        if uneven:
            moments = _less_sure(moments, group, response)
        return _evidence(moments.xx, moments.xy[:, response], float(moments.yy[response]), moments.n, group, seen)
    assert not uneven, "a prior is for columns of even noise"
    # one more column, x @ prior, whose coefficient is s - 1; its variance is given, those of the groups are found
    joined = np.column_stack([np.eye(len(prior)), prior])
    toward = moments.xx @ prior
    xy = moments.xy[:, response] - toward
    yy = float(moments.yy[response] - 2 * prior @ moments.xy[:, response] + prior @ toward)
    xx = np.block([[moments.xx, toward[:, None]], [toward[None], np.array([[prior @ toward]])]])
    xy = np.append(xy, prior @ xy)
    away = _evidence(xx, xy, yy, moments.n, np.append(group, GIVEN), (xx, xy))
    worth = {"value": 1 + float(away.mean[-1]), "sd": float(np.sqrt(away.cov[-1, -1]))}
    return Posterior(joined @ away.mean + prior, joined @ away.cov @ joined.T, away.noise, away.tau2, worth)


def _less_sure(moments: Moments, group: np.ndarray, response: int) -> Moments:
    """Moments with the same least squares, of covariance `R^-1 K^2 R^-1 noise`: R R = xx, K^2 the unevenness, 1 for free columns.

    So Gram matrix `R K^-2 R` and scores `R K^-2 R^-1 xy`. What rows do not tell apart stays so (dividing the columns of xx by K
    would move coefficients to others that they correlate with), and without signal the posterior is right.
    """
    values, vectors = np.linalg.eigh(moments.xx)
    root = np.sqrt(np.maximum(values, jitter(moments.xx)))
    information = np.where(group == -1, 1.0, 1 / moments.unevenness(response))
    right = (vectors * root) @ vectors.T
    inverse = (vectors / root) @ vectors.T
    return replace(moments, xx=(right * information) @ right, xy=right @ (information[:, None] * (inverse @ moments.xy)))


def jitter(xx: np.ndarray) -> float:
    """A ridge that only keeps a Gram matrix [p, p] from being singular."""
    return 1e-8 * max(float(np.trace(xx)) / max(len(xx), 1), 1e-30)


def _evidence(
    xx: np.ndarray, xy: np.ndarray, yy: float, n: float, group: np.ndarray, seen: tuple[np.ndarray, np.ndarray]
) -> Posterior:
    """`empirical_bayes` around 0; coefficients of group GIVEN have variance 1.

    seen: xx and xy as the rows gave them, from which the noise is read: those that count less (`_less_sure`) belong to no rows,
    and what they leave can be less than nothing.
    """
    p = len(group)
    free, given = group == -1, group == GIVEN
    names = np.unique(group[group >= 0])
    tiny = jitter(xx)
    base = _solve(xx + np.diag(np.where(free, tiny, 1e-3 * np.diag(xx) + tiny)), xy)
    # from the response's own spread: with as many columns as rows a first fit leaves nothing, and would call that its noise
    noise = yy / max(n, 1.0) if yy > 0 else 1.0
    floor = FLOOR * noise
    tau2 = np.array([max(float((base[group == g] ** 2).mean()), floor) for g in names])
    mean, cov = base, np.zeros((p, p))
    for _ in range(ITERATIONS):
        penalty = np.where(given, 1.0, tiny / noise)
        for g, t in zip(names, tau2, strict=True):
            penalty[group == g] = 1 / t
        cov = _inverse(xx / noise + np.diag(penalty))
        mean = cov @ xy / noise
        new = np.empty_like(tau2)
        for i, g in enumerate(names):
            rows = group == g
            well_determined = max(rows.sum() - float(np.diag(cov)[rows].sum()) / tau2[i], 1e-3)
            new[i] = max(float((mean[rows] ** 2).sum()) / well_determined, floor)
        # what the fit leaves, and what it does not know: without that the fit's own degrees of freedom go for precision
        left = yy - 2 * mean @ seen[1] + mean @ seen[0] @ mean + float((seen[0] * cov).sum())
        noise = max(left / max(n, 1.0), floor)
        settled = np.abs(np.log(new / tau2)).max(initial=0) < 1e-3
        tau2 = new
        if settled:
            break
    return Posterior(mean, cov, noise, tau2)


def ridge(moments: Moments, penalty: float | np.ndarray) -> np.ndarray:
    """Plain ridge coefficients [p, q] with penalty `n * penalty` on each coefficient."""
    p = len(moments.xx)
    lam = moments.n * np.broadcast_to(np.asarray(penalty, float), (p,)) + 1e-9 * max(float(np.trace(moments.xx)) / p, 1e-30)
    return _solve(moments.xx + np.diag(lam), moments.xy)


def _inverse(a: np.ndarray) -> np.ndarray:
    """Of a symmetric positive definite matrix, by Cholesky: half of a general inverse's work."""
    factor, failed = lapack.dpotrf(a.T)
    if failed:
        return np.linalg.inv(a)
    upper, _ = lapack.dpotri(factor, overwrite_c=1)
    return np.triu(upper) + np.triu(upper, 1).T


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(a, b, rcond=None)[0]
