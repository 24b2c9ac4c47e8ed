"""Intervals whose unit is the user: a user's sessions and steps are never taken as independent.

An estimate is a ratio of sums over users; its variance is that of the linearised ratio. Nothing here covers the bias of
a model (docs/evaluation.md says which estimator has which).
"""

from __future__ import annotations

import msgspec
import numpy as np


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its two-sided interval and standard error."""

    mean: float
    low: float
    high: float
    se: float


def quantile(alpha: float, users: int) -> float:
    """Two-sided 1 - alpha quantile of Student's t with users - 1 degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(max(users - 1, 1), 1 - alpha / 2))


def by_user(values: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Sums float64 [u] (or [u, k]) of `values` [n] (or [n, k]) over the users 0..u-1 that occur in `user` [n]."""
    codes = np.unique(user, return_inverse=True)[1]
    count = int(codes.max(initial=-1)) + 1
    if values.ndim == 1:
        return np.bincount(codes, weights=values, minlength=count)
    return np.stack([np.bincount(codes, weights=column, minlength=count) for column in values.T], axis=1)


def ratio(numerator: np.ndarray, denominator: np.ndarray, alpha: float, extra_se: float = 0.0) -> Estimate:
    """`sum(numerator) / |sum(denominator)|` over users [u], with its interval.

    Variance: `sum_u (N_u - L D_u)^2 / (sum_u D_u)^2 * u / (u - 1)`, plus `extra_se` squared (uncertainty that all users share).
    The absolute value keeps the sign's meaning (above 0 is better) where rewards are negative.
    """
    users = len(numerator)
    total = float(denominator.sum())
    size = abs(total)
    mean = float(numerator.sum()) / size
    residual = numerator - mean * np.sign(total) * denominator
    variance = float(residual @ residual) / size**2 * users / max(users - 1, 1)
    se = float(np.sqrt(variance + extra_se**2))
    half = quantile(alpha, users) * se
    return Estimate(mean=mean, low=mean - half, high=mean + half, se=se)


def slope(target: np.ndarray, prediction: np.ndarray, user: np.ndarray, alpha: float) -> Estimate:
    """Slope of `target` [n] on `prediction` [n] with an intercept; the standard error is clustered by `user` [n]."""
    centred = prediction - prediction.mean()
    spread = float(centred @ centred)
    if spread <= 1e-12 * max(float(prediction @ prediction), 1.0):
        return Estimate(mean=1.0, low=-np.inf, high=np.inf, se=np.inf)
    value = float(centred @ target) / spread
    residual = target - target.mean() - value * centred
    score = by_user(centred * residual, user)
    se = float(np.sqrt(score @ score) / spread)
    half = quantile(alpha, len(score)) * se
    return Estimate(mean=value, low=value - half, high=value + half, se=se)
