"""How much users and videos differ in their responses, and the level behind an average response: moments of a log.

A response has the chance sigmoid(c + sum of its effects), each effect normal. No first-order shortcut is taken, because each
takes taste away from the world that is made:

- a fit without effects gives the chance *averaged* over them: `conditional_level` finds the c behind it;
- two responses whose effects have the covariance s vary together by sum_k s^k / k! E[f_i^(k)] E[f_j^(k)], f = sigmoid, the mean
  over all effects (Price 1958): `effect_variances` and `user_covariance` solve that for s, and not w_i w_j s alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq, least_squares
from scipy.special import expit

EFFECTS = ("user", "user_tag", "user_duration", "day", "item")
VARIANCE_LOW, VARIANCE_HIGH = 1e-3, 4.0
QUADRATURE = 20
ORDERS = 6
ROUNDS, SETTLED = 30, 1e-4
NEWTON_STEPS = 30
MOST_CORRELATED, CORRELATION_LOW = 0.95, 0.02


def smoothed(level: np.ndarray, variance: float, orders: int) -> list[np.ndarray]:
    """E[f^(k)(level + z sqrt(variance))], f = sigmoid and z standard normal, for k = 0 to `orders`; each [n].

    By Stein's identity E[f^(k)(c + sd z)] = E[f(c + sd z) He_k(z)] / sd^k, He_k being Hermite's polynomials.
    """
    node, share = np.polynomial.hermite_e.hermegauss(QUADRATURE)
    share = share / share.sum()
    sd = math.sqrt(max(variance, VARIANCE_LOW))
    weights = np.stack([share * np.polynomial.hermite_e.hermeval(node, np.eye(orders + 1)[k]) / sd**k for k in range(orders + 1)])
    out = np.zeros((orders + 1, len(level)))
    for x, weight in zip(node, weights.T, strict=True):
        out += weight[:, None] * expit(level + sd * x)
    return list(out)


def conditional_level(eta: np.ndarray, chance: np.ndarray, variance: float) -> tuple[float, float]:
    """(a, b) such that effects of `variance` around a + b * eta [n] leave the chances `chance` [n] on average.

    Exactly so over all rows and along eta (two moments). With chance = expit(eta): for small chances a is about
    -variance / 2 and b 1, around a half a is 0 and b sqrt(1 + .35 variance).
    """
    centre = eta - eta.mean()
    a, b = 0.0, 1.0
    for _ in range(NEWTON_STEPS):
        mean, slope = smoothed(a + b * eta, variance, 1)
        gap = chance - mean
        rows = np.array([slope.sum(), slope @ eta, slope @ centre, slope @ (centre * eta)]).reshape(2, 2)
        # a model of nothing but a level has no second moment
        step = np.linalg.lstsq(rows, np.array([gap.sum(), gap @ centre]), rcond=1e-9)[0]
        a, b = a + float(step[0]), b + float(step[1])
        if np.abs(step).max() < SETTLED:
            break
    return a, b


def _slopes(eta: np.ndarray, variance: float) -> list[np.ndarray]:
    """E[f^(k)] for k = 1 to ORDERS, where the mean chances are expit(eta) [n]."""
    a, b = conditional_level(eta, expit(eta), variance)
    return smoothed(a + b * eta, variance, ORDERS)[1:]


def effect_variances(
    y: np.ndarray,
    eta: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    day: np.ndarray,
    tag: np.ndarray,
    bucket: np.ndarray,
    *,
    logistic: bool,
) -> dict[str, float]:
    """Variances of the effects EFFECTS, from products of residuals of pairs of rows (moments; all arrays [n]).

    y: outcomes; eta: what the fixed effects predict, for logistic responses the logit of the mean chance. Two rows of a
    user on different days share the user's effect; where the tag is the same too, also that of (user, tag); and so on. The
    variances are those at which the expected sums of products are the observed ones, between VARIANCE_LOW and VARIANCE_HIGH.
    """
    mean = expit(eta) if logistic else eta
    residual, spread = y - mean, mean * (1 - mean) if logistic else np.full(len(y), float(np.var(y - mean)))
    pairs = _Pairs(user, item, day, tag, bucket)
    seen, scale = TOTALS @ pairs.sums(residual), np.sqrt(TOTALS @ pairs.sums(spread)) + 1e-12
    variance = np.full(len(EFFECTS), 0.1)
    for _ in range(ROUNDS):
        slopes = _slopes(eta, float(variance.sum())) if logistic else [np.ones(len(y))]
        known = np.stack([pairs.sums(slope) / math.factorial(k) for k, slope in enumerate(slopes, 1)])

        def gap(v: np.ndarray, known: np.ndarray = known) -> np.ndarray:
            shared = SHARED @ v
            expected = sum(known[k] * shared ** (k + 1) for k in range(len(known)))
            return np.asarray((TOTALS @ expected - seen) / scale)

        found = least_squares(gap, np.maximum(variance, VARIANCE_LOW), bounds=(0.0, VARIANCE_HIGH)).x
        moved = float(np.abs(found - variance).max())
        # half way: V and the slopes at V chase each other
        variance = (variance + found) / 2 if logistic else found
        if moved < 10 * SETTLED or not logistic:
            break
    return dict(zip(EFFECTS, np.clip(variance, VARIANCE_LOW, VARIANCE_HIGH).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Residuals:
    """What one head's rows say of its users: user, day int64 [n]; residual [n] = y - mean; slopes, K of [n], the E[f^(k)].

    variance: of the user's effect, in the units of the slopes.
    """

    user: np.ndarray
    day: np.ndarray
    residual: np.ndarray
    slopes: Sequence[np.ndarray]
    variance: float

    @staticmethod
    def of(
        y: np.ndarray, eta: np.ndarray, user: np.ndarray, day: np.ndarray, variance: dict[str, float], logistic: bool
    ) -> Residuals:
        """Of outcomes y [n] around the fixed effects eta [n], as in `effect_variances`, whose `variance` is."""
        mean = expit(eta) if logistic else eta
        slopes = _slopes(eta, sum(variance.values())) if logistic else [np.ones(len(y))]
        return Residuals(user, day, y - mean, slopes, variance["user"])

    def scaled(self, by: float) -> Residuals:
        """The same in units of which one is `by` times as many."""
        return replace(self, residual=by * self.residual, variance=by**2 * self.variance)


def user_covariance(heads: Sequence[Residuals]) -> np.ndarray:
    """Covariance [H, H] of a user's effects on the heads: from residuals of two heads on different days, positive definite.

    0 where no user has both heads on different days, or where one of the two hardly varies.
    """
    size = len(heads)
    out = np.diag([head.variance for head in heads])
    for i in range(size):
        for j in range(i):
            if min(heads[i].variance, heads[j].variance) > VARIANCE_LOW:
                out[i, j] = out[j, i] = _covariance(heads[i], heads[j])
    scale = np.sqrt(np.diag(out))
    values, vectors = np.linalg.eigh(out / np.outer(scale, scale))
    near = (vectors * np.maximum(values, CORRELATION_LOW)) @ vectors.T
    # of unit diagonal again
    near /= np.sqrt(np.outer(np.diag(near), np.diag(near)))
    return np.asarray(near * np.outer(scale, scale))


def daily_sums(rows: np.ndarray, user: np.ndarray, day: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sums of `rows` [n] by user and day, [users, days] = `shape`."""
    return np.bincount(user * shape[1] + day, rows, shape[0] * shape[1]).reshape(shape)


def _covariance(one: Residuals, other: Residuals) -> float:
    shape = max(int(one.user.max()), int(other.user.max())) + 1, max(int(one.day.max()), int(other.day.max())) + 1

    def apart(rows: np.ndarray, others: np.ndarray) -> float:
        a, b = daily_sums(rows, one.user, one.day, shape), daily_sums(others, other.user, other.day, shape)
        return float(a.sum(axis=1) @ b.sum(axis=1) - (a * b).sum())

    seen = apart(one.residual, other.residual)
    known = [apart(a, b) / math.factorial(k) for k, (a, b) in enumerate(zip(one.slopes, other.slopes, strict=False), 1)]

    def gap(s: float) -> float:
        return sum(c * s**k for k, c in enumerate(known, 1)) - seen

    if known[0] == 0:
        return 0.0
    most = MOST_CORRELATED * math.sqrt(one.variance * other.variance)
    if gap(-most) * gap(most) >= 0:
        return most if abs(gap(most)) < abs(gap(-most)) else -most
    return float(brentq(gap, -most, most))


KINDS = ("apart", "apart, tag", "apart, duration", "apart, both", "near", "near, tag", "near, duration", "near, both", "video")
"""Exclusive kinds of pairs: of a user on different days or on one, with the tag, the duration or both the same; of a video."""

SHARED = np.array(
    [[1, t, d, near, 0] for near in (0, 1) for t, d in ((0, 0), (1, 0), (0, 1), (1, 1))] + [[0, 0, 0, 0, 1]], dtype=float
)
"""[kinds, effects]: what the two rows of a pair share."""

TOTALS = np.array(
    [
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ],
    dtype=float,
)
"""[equations, kinds]: the sums that are matched, one for each effect."""


class _Pairs:
    """Sums over pairs of rows of one user or one video."""

    def __init__(self, user: np.ndarray, item: np.ndarray, day: np.ndarray, tag: np.ndarray, bucket: np.ndarray) -> None:
        n_tags, n_buckets, n_days, n_users = (int(x.max()) + 1 for x in (tag, bucket, day, user))
        keys = [user, user * n_tags + tag, user * n_buckets + bucket, (user * n_tags + tag) * n_buckets + bucket]
        self.whole = [_codes(key) for key in keys]
        self.daily = [_codes(key * n_days + day) for key in keys]
        self.item, self.item_user = _codes(item), _codes(item * n_users + user)

    def sums(self, rows: np.ndarray) -> np.ndarray:
        """Sums of rows_i rows_j over the ordered pairs of each of the KINDS."""
        own = float(rows @ rows)
        daily = [_square(rows, code) for code in self.daily]
        apart = [_square(rows, code) - same for code, same in zip(self.whole, daily, strict=True)]
        near = [same - own for same in daily]
        exclusive = [
            pairs
            for all_, tag, bucket, both in (apart, near)
            for pairs in (all_ - tag - bucket + both, tag - both, bucket - both, both)
        ]
        return np.array([*exclusive, _square(rows, self.item) - _square(rows, self.item_user)])


def _codes(key: np.ndarray) -> np.ndarray:
    return np.unique(key, return_inverse=True)[1]


def _square(rows: np.ndarray, code: np.ndarray) -> float:
    sums = np.bincount(code, rows)
    return float(sums @ sums)
