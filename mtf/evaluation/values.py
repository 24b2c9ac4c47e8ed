"""The action value that the estimators share, in advantage form and cross-fitted by user.

`Q(s, a) = V(s) + A(s, x)`: V by quadratic ridge on the columns that actions do not move (an average of past outcomes
stands for a latent taste; a value that reads it pays false credit for moving the average). A is linear in the position x
for each state plus x^2 and x_d x_e, fitted to the temporal-difference residual of V and shrunk by empirical Bayes.
A user's own rows never shape the Q that judges them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mtf.evaluation.steps import Steps

FOLDS = 10
CHUNK = 16384
Z_CLIP_VALUE = 5.0
Z_CLIP_ADVANTAGE = 3.0
MAX_VALUE_COLUMNS = 24
MAX_ADVANTAGE_COLUMNS = 24
RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
MAX_SWEEPS = 20
SWEEP_TOLERANCE = 1e-4

Basis = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ActionValue:
    """Q of held-out users, at every step and at every state where a session was cut (n + m).

    value [n + m]: V. logged [n]: A at the logged action. target, deployed [n + m]: A at the target's and at the deployed
    policy's action. bend [n]: the part of target - deployed that comes from squares and products of x.
    bend_se: standard error of the sessions' mean discounted bend, from the posterior of its shrunken coefficients.
    ridge: of V. prior_sd: of the shrunken groups of A's coefficients. explained: share of the residual's held-out variance
    that A explains.
    """

    value: np.ndarray
    logged: np.ndarray
    target: np.ndarray
    deployed: np.ndarray
    bend: np.ndarray
    bend_se: float
    ridge: float
    prior_sd: dict[str, float]
    explained: float

    def scaled(self, factor: float) -> ActionValue:
        """The same Q times `factor`: what a wrong scale would do to an estimator."""
        parts = ("value", "logged", "target", "deployed", "bend")
        changed = {name: getattr(self, name) * factor for name in parts}
        return replace(self, **changed, bend_se=self.bend_se * factor)


def fit_action_value(steps: Steps, seed: int = 0) -> ActionValue:
    """Fit V and A on nine tenths of the users and predict on the other, ten times."""
    fold = user_folds(steps.user, seed)
    rows = [np.flatnonzero(fold == f) for f in range(FOLDS)]
    value, ridge = fit_value(steps, fold, rows)
    delta = steps.reward[:, None] + steps.gamma * steps.next_values(value) - value[: len(steps)]
    own = _owner(steps, fold)
    fitted = _fit_advantage(steps, fold, rows, own, delta)
    held_out = delta[np.arange(len(steps)), fold]
    gain = float((held_out**2).sum() - ((held_out - fitted.logged) ** 2).sum())
    return replace(
        fitted,
        value=value[np.arange(len(value)), own],
        ridge=ridge,
        explained=gain / max(float((held_out**2).sum()), 1e-300),
    )


def held_out_value(steps: Steps, seed: int = 0) -> tuple[np.ndarray, float]:
    """(V [n + m] of users that did not shape it, the ridge)."""
    fold = user_folds(steps.user, seed)
    value, ridge = fit_value(steps, fold, [np.flatnonzero(fold == f) for f in range(FOLDS)])
    return value[np.arange(len(value)), _owner(steps, fold)], ridge


def _owner(steps: Steps, fold: np.ndarray) -> np.ndarray:
    """int64 [n + m]: the fold of each state, that of its session's user."""
    return np.concatenate([fold, fold[np.flatnonzero(steps.successor >= len(steps))]])


def user_folds(user: np.ndarray, seed: int = 0) -> np.ndarray:
    """int64 [n], 0..9: a user's rows share a fold; folds have equally many users."""
    codes = np.unique(user, return_inverse=True)[1]
    count = int(codes.max(initial=-1)) + 1
    return np.random.default_rng(seed).permutation(np.arange(count) % FOLDS)[codes]


def standardise(state: np.ndarray, n: int, clip: float, most: int) -> np.ndarray:
    """z float32 [n + m, k]: columns of `state` scaled by the first n rows, constant ones left out, clipped; where more than
    `most` remain, their leading principal components.
    """
    mean, scale = state[:n].mean(axis=0, dtype=np.float64), state[:n].std(axis=0, dtype=np.float64)
    live = scale > 1e-6 * (1 + np.abs(mean))
    z = np.clip((state[:, live] - mean[live]) / scale[live], -clip, clip).astype(np.float32)
    if z.shape[1] <= most:
        return z
    covariance = (z[:n].T @ z[:n]).astype(np.float64) / n
    size, axes = np.linalg.eigh(covariance)
    axes = axes[:, ::-1][:, :most] / np.sqrt(np.maximum(size[::-1][:most], 1e-9))
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(most)])
    return np.clip(z @ axes.astype(np.float32), -clip, clip)


def fit_value(steps: Steps, fold: np.ndarray, rows: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """(V [n + m, FOLDS], the ridge): column f never saw the users of fold f.

    Quadratic ridge on (z, log step) to realised returns; a session that was cut is worth V where it was cut, so V is fitted
    again until that stands still. The ridge is the one of the least held-out error.
    """
    n = len(steps)
    columns = np.concatenate([steps.state[:, steps.value_mask], np.log1p(steps.place)[:, None]], axis=1)
    z = standardise(columns, n, Z_CLIP_VALUE, MAX_VALUE_COLUMNS)
    upper = np.triu_indices(z.shape[1])

    def basis(index: np.ndarray) -> np.ndarray:
        part = z[index]
        ones = np.ones((len(part), 1), np.float32)
        return np.concatenate([ones, part, part[:, upper[0]] * part[:, upper[1]]], axis=1)

    # a first guess that is exact where rewards and ends do not depend on anything
    going = float((steps.successor >= 0).mean())
    tail = np.full((len(steps.state), FOLDS), steps.reward.mean() / (1 - steps.gamma * going))
    tails = np.arange(n, len(steps.state))
    gram = None
    ridge = RIDGES[0]
    for sweep in range(MAX_SWEEPS):
        target = steps.returns(tail)
        new_gram, cross = moments(basis, target, rows, with_gram=gram is None)
        gram = new_gram if gram is None else gram
        if sweep == 0:
            ridge = _best_ridge(gram, cross, target, rows)
        weights = np.stack([_solve(gram, cross, f, ridge) for f in range(FOLDS)], axis=1)
        if not len(tails):
            break
        before = tail[n:]
        after = basis(tails) @ weights
        tail = np.concatenate([tail[:n], after])
        if np.abs(after - before).max() <= SWEEP_TOLERANCE * max(np.abs(after).max(), 1e-9):
            break
    return predict(basis, weights, len(steps.state)), ridge


def moments(basis: Basis, target: np.ndarray, rows: list[np.ndarray], with_gram: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(`sum phi phi'` [FOLDS, P, P], `sum phi target` [FOLDS, P, T]) over each fold's rows, in chunks."""
    grams, crosses = [], []
    for index in rows:
        gram: np.ndarray | float = 0.0
        cross: np.ndarray | float = 0.0
        for start in range(0, len(index), CHUNK):
            chunk = index[start : start + CHUNK]
            phi = basis(chunk)
            if with_gram:
                gram = gram + (phi.T @ phi).astype(np.float64)
            cross = cross + (phi.T @ target[chunk].astype(np.float32)).astype(np.float64)
        grams.append(gram)
        crosses.append(cross)
    return np.stack([np.asarray(g) for g in grams]), np.stack([np.asarray(c) for c in crosses])


def predict(basis: Basis, weights: np.ndarray, count: int) -> np.ndarray:
    """`phi(row) @ weights` float64 [count, T] for the rows 0..count-1, in chunks."""
    out = np.empty((count, weights.shape[1]))
    for start in range(0, count, CHUNK):
        index = np.arange(start, min(start + CHUNK, count))
        out[index] = basis(index) @ weights
    return out


def _best_ridge(gram: np.ndarray, cross: np.ndarray, target: np.ndarray, rows: list[np.ndarray]) -> float:
    """The ridge whose held-out squared error, summed over the folds, is least."""

    def error(ridge: float) -> float:
        total = 0.0
        for f in range(FOLDS):
            weight = _solve(gram, cross, f, ridge)
            total += float(weight @ gram[f] @ weight - 2 * weight @ cross[f, :, f] + (target[rows[f], f] ** 2).sum())
        return total

    return min(RIDGES, key=error)


def _solve(gram: np.ndarray, cross: np.ndarray, f: int, ridge: float) -> np.ndarray:
    """Ridge weights [P] from every fold but f; the first column is the intercept, which is free."""
    penalty = np.full(gram.shape[1], ridge)
    penalty[0] = 1e-6
    return np.linalg.solve(gram.sum(axis=0) - gram[f] + np.diag(penalty), cross[:, :, f].sum(axis=0) - cross[f, :, f])


def _fit_advantage(steps: Steps, fold: np.ndarray, rows: list[np.ndarray], own: np.ndarray, delta: np.ndarray) -> ActionValue:
    """A by ridge of `delta` [n, FOLDS] on (x, x z, x^2 - 1/3, x_d x_e); `own` [n + m] is each state's fold."""
    n = len(steps)
    varied = np.flatnonzero(steps.varied)
    a = len(varied)
    first, second = np.triu_indices(a, 1)
    # a coefficient needs rows: state columns first, then products, are left out where there are too few
    room = n // (20 * max(a, 1)) - 1
    z = standardise(steps.state, n, Z_CLIP_ADVANTAGE, max(min(MAX_ADVANTAGE_COLUMNS, room), 0))
    if n < 20 * (a * (1 + z.shape[1]) + a + len(first)):
        first, second = first[:0], second[:0]
    one = np.ones((len(z), 1), np.float32)
    phi = np.concatenate([one, z], axis=1)
    width = phi.shape[1]
    x, y, y0 = (p[:, varied].astype(np.float32) for p in (steps.x, steps.y, steps.y0))

    def bends(p: np.ndarray) -> np.ndarray:
        return np.concatenate([p * p - np.float32(1 / 3), p[:, first] * p[:, second]], axis=1)

    def basis(index: np.ndarray) -> np.ndarray:
        linear = (x[index][:, :, None] * phi[index][:, None, :]).reshape(len(index), a * width)
        return np.concatenate([linear, bends(x[index])], axis=1)

    group = np.concatenate(
        [np.tile(np.r_[0, np.ones(width - 1, int)], a), np.full(a, 2), np.full(len(first), 3)]
    )  # 0: global slopes, free; 1: slopes by state; 2: squares; 3: products
    masked = np.where(fold[:, None] == np.arange(FOLDS), 0.0, delta)
    gram, cross = moments(basis, masked, rows)
    all_gram, all_cross = gram.sum(axis=0), cross.sum(axis=0)
    out = {name: np.zeros(n + (len(steps.state) - n if name != "logged" else 0)) for name in ("logged", "target", "deployed")}
    bend = np.zeros(n)
    bend_se = 0.0
    prior: dict[str, list[float]] = {"by_state": [], "squares": [], "products": []}
    for f in range(FOLDS):
        train = all_gram - gram[f]
        squared = masked[:, f] @ masked[:, f]
        sigma2 = squared / max(n - len(rows[f]), 1)
        weights, posterior, taus = shrunken_ridge(train, all_cross[:, f], group, float(sigma2))
        for name, tau in zip(prior, taus, strict=True):
            prior[name].append(tau)
        slopes = weights[: a * width].reshape(a, width).T.astype(np.float32)
        curve = weights[a * width :].astype(np.float32)
        mine = np.flatnonzero(own == f)
        here = mine[mine < n]
        at = phi[mine] @ slopes
        out["target"][mine] = (y[mine] * at).sum(axis=1) + bends(y[mine]) @ curve
        out["deployed"][mine] = (y0[mine] * at).sum(axis=1) + bends(y0[mine]) @ curve
        out["logged"][here] = (x[here] * (phi[here] @ slopes)).sum(axis=1) + bends(x[here]) @ curve
        shift = bends(y[here]) - bends(y0[here])
        bend[here] = shift @ curve
        mean_shift = steps.discount[here] @ shift / len(steps.starts)
        # folds share nearly all their rows, so their errors are added, not averaged
        bend_se += float(np.sqrt(max(mean_shift @ posterior[a * width :, a * width :] @ mean_shift, 0.0)))
    return ActionValue(
        value=np.zeros(0),
        bend=bend,
        bend_se=bend_se,
        ridge=0.0,
        prior_sd={name: float(np.mean(values)) for name, values in prior.items()},
        explained=0.0,
        **out,
    )


def shrunken_ridge(
    gram: np.ndarray, cross: np.ndarray, group: np.ndarray, sigma2: float
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """(weights [P], posterior covariance [P, P], prior sd of groups 1..3): group 0 is free, every other group g has the prior
    N(0, tau_g^2), `tau_g^2 = mean(c^2 - var)` of its unshrunken coefficients, at least a millionth of sigma^2.
    """
    size = len(gram)
    noise = np.full(size, 1e-3)
    loose = np.linalg.inv(gram + np.diag(noise))
    raw = loose @ cross
    variance = sigma2 * np.diag(loose)
    penalty = noise.copy()
    taus = []
    for g in (1, 2, 3):
        of = group == g
        tau2 = max(float(np.mean(raw[of] ** 2 - variance[of])), 1e-6 * sigma2, 1e-12) if of.any() else 0.0
        taus.append(float(np.sqrt(tau2)))
        if of.any():
            penalty[of] = max(sigma2 / tau2, noise[0])
    inverse = np.linalg.inv(gram + np.diag(penalty))
    return inverse @ cross, sigma2 * inverse, taus
