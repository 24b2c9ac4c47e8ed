"""Slate replay: learn what a slate is worth, then replay the slates that other actions would have ranked.

1. Each explored request's candidates are re-ranked under a few fresh actions of its own box. l~ is a slate's features less
   their mean over those: what the action alone did to the slate.
2. The TD residual is regressed on `f = [l~, l~^2, l~ x z]`, shrunk (empirical Bayes) towards s times the plug-in reward
   `sum_k w_k pred_k`, the worth of a slate if scores were exact predictions and nothing happened later. What that promise is
   worth, s ~ N(1, 1), is learned as well: scores that rewards do not bear out move nothing (`ridge.empirical_bayes`).
3. How f moves with the action needs no outcome: its slopes T in `u x phi` come from the fresh slates alone, so the
   advantage's slopes are `T b`, with covariance `T Cov(b) T' + Cov(T) b b`. Then the step of `step.evidence_step`.

Assumption: the action acts only through these features. Tested in every run: what they leave of the residual must have no
slope on u. Where it has, or where no candidates are logged, `linear_advantage` takes over and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from mtf import box
from mtf.errors import InputError
from mtf.learning import linear_advantage
from mtf.learning.linear_advantage import LinearAdvantageConfig
from mtf.learning.problem import PARTS, Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned, calibration
from mtf.learning.ridge import Moments, Posterior, empirical_bayes, jitter, left_out, total, with_rows
from mtf.learning.slates import plug_in_weights, slate_features
from mtf.learning.step import blocks, confirmed, evidence_step, linear_slopes
from mtf.learning.value import Value

CHUNK = 16384
LEAST_MOVED = 1e-5
SHORT = 0.25
"""Half-widths; what a request varied by less counts as varied by that much: its slopes shrink instead of becoming noise."""
ROWS_A_COLUMN = 50
"""Requests around the newest policy, for each column of phi, from which T is theirs alone."""


@dataclass(frozen=True, kw_only=True)
class SlateReplayConfig(LinearAdvantageConfig):
    """draws: fresh actions a request, in pairs mirrored at the box's middle, more is slower and smoother (4 to 12).

    max_z: largest |z| of a direct slope that the assumption survives (3 to 5). Chance alone passes 3 in one run of 40 of 10
        dimensions, and 4 in one of 1,600; and it does so where slopes happen to look steep, which the fall-back would follow.
    plug_in: shrink towards the plug-in reward (False: towards no effect).
    curvature: let the replayed curvature shorten the step.
    """

    draws: int = 4
    max_z: float = 4.0
    plug_in: bool = True
    curvature: bool = True


def require_pairs(draws: int) -> None:
    """Raises InputError where draws do not come in two pairs or more."""
    if draws < 4 or draws % 2:
        raise InputError(f"--set draws={draws}: keep it even and at least 4; draws come in pairs, each judged by the others")


def require(problem: Problem, config: SlateReplayConfig) -> None:
    """Raises InputError for a number of draws that makes no pairs. Without candidates the linear advantage takes over."""
    require_pairs(config.draws)
    problem.data.require_whole_candidates()


def learn(problem: Problem, value: Value, config: SlateReplayConfig, *, seed: int, progress: Progress) -> Learned:
    """One step of policy improvement. The seed draws the fresh actions."""
    rows, explored = replayed_rows(problem), int(problem.signal.sum())
    if not enough_logged(problem):
        return _fall_back(
            problem, value, config, f"candidates_missing: {len(rows)} of {explored} explored rows logged them", seed, progress
        )
    replay = Replay(problem, value, config, rows, seed, progress)
    every = replay.moments
    posterior = replay.fit(every)
    test = direct_effect(posterior, every, replay.model, replay.direct)
    if reason := mediation_fails(test, config.max_z):
        fallen = _fall_back(problem, value, config, reason, seed, progress)
        return Learned(fallen.action, {**fallen.report, "direct_effect": test})
    b, cov = posterior.mean[replay.effect], posterior.cov[np.ix_(replay.effect, replay.effect)]
    c = replay.slopes @ b
    flat = replay.slopes.reshape(-1, replay.slopes.shape[2])
    c_cov = flat @ cov @ flat.T + replay.error_of(b)
    bend = -(replay.second @ b) if config.curvature else np.zeros(len(c))
    slopes = linear_slopes(problem.phi, c, blocks(c_cov, len(c)), problem.data.arrays)
    step = evidence_step(
        slopes,
        kappa=config.kappa,
        threshold=config.threshold,
        max_rms=config.max_rms_step,
        varied=problem.half_width > 0,
        curvature=bend,
        start=problem.start,
        arrays=problem.data.arrays,
    )
    held = [(replay.fit(others).mean, part.columns(replay.model)) for others, part in left_out(replay.parts)]
    held_out = calibration(held, replay.nuisance, replay.effect)
    step, share = confirmed(step, held_out["z"], threshold=config.confirm, arrays=problem.data.arrays)
    report: dict[str, Any] = {
        "used": "slate_replay",
        "direct_effect": test,
        "rms_wanted": step.rms_wanted,
        "sure_edge_share": step.wanted_edge_share,
        "held_out_action": held_out,
        "global_slope": c[:, 0].tolist(),
        "global_slope_sd": np.sqrt(np.maximum(np.diag(c_cov)[:: c.shape[1]], 0)).tolist(),
        "plug_in_slope": (replay.slopes @ replay.prior[replay.effect])[:, 0].tolist(),
        "curvature": bend.tolist(),
        "tau": np.sqrt(posterior.tau2).tolist(),
        "plug_in_scale": replay.plug_in_scale,
        "plug_in_worth": posterior.worth,
        "confirmed": share,
    }
    if config.plug_in and problem.data.behaviour is None:
        report["warnings"] = ["no_plug_in: transitions lack the column `behaviour`; shrunk towards no effect instead"]
    return Learned(problem.step_action(step.y), report)


def replayed_rows(problem: Problem) -> np.ndarray:
    """Numbers of the explored requests that logged their candidates."""
    return np.flatnonzero(problem.signal & problem.data.has_candidates)


def enough_logged(problem: Problem) -> bool:
    """Did half of the explored requests log their candidates, and is there a spec to rank them by?"""
    return problem.data.spec is not None and len(replayed_rows(problem)) >= 0.5 * int(problem.signal.sum())


def direct_effect(fit: Posterior, moments: Moments, model: np.ndarray, direct: np.ndarray) -> dict[str, Any]:
    """z of a slope on each u_d in what the slate's features leave of the residual.

    The score `s = U'(y - X m)` of a fit with posterior mean m and covariance C has variance `noise U'U - U'X C X'U` where there
    is no direct effect: the fit has taken its part of the noise already. model, direct: column numbers of X and U. A row
    of weight w has w times its square in the moments, and w^2 in the score's variance: hence times sum w^2 / sum w. Where
    noise is uneven, by the `unevenness` of u_d.
    """
    ux = moments.xx[np.ix_(direct, model)]
    score = moments.xy[direct, 0] - ux @ fit.mean
    uneven = moments.unevenness()[direct]
    variance = (
        uneven * (moments.ww / moments.n) * (fit.noise * np.diag(moments.xx)[direct] - np.einsum("dp,pq,dq->d", ux, fit.cov, ux))
    )
    z = np.where(variance > 0, score / np.sqrt(np.maximum(variance, 1e-30)), 0)
    return {"max_z": float(np.abs(z).max()), "z": z.tolist()}


def mediation_fails(test: dict[str, Any], max_z: float) -> str:
    """The warning where a `direct_effect` is too sure for the assumption to hold; empty where it holds."""
    if not test["max_z"] > max_z:
        return ""
    return f"mediation_fails: the residual still has a slope on the action, max |z| {test['max_z']:.1f} > {max_z:g}"


class Replay:
    """One pass over the explored requests: moments of [1 z m | f | u] against delta a part of the users, and T.

    m is the mean of the slate's features over the box: what the candidates were worth whatever the action.
    nuisance, effect, direct: column numbers of [1 z m], f and u; model: the first two. slopes [A, P, F]: T;
    second [A, F]: second derivative of f in u, averaged over requests. effects [n, 2 L]: l~ and l~^2 of each row of the problem
    (0 where no candidates were logged); where `keep` asks for them. Outcomes of the rows `held` (bool [n]) are not read.
    """

    def __init__(
        self,
        problem: Problem,
        value: Value,
        config: SlateReplayConfig,
        rows: np.ndarray,
        seed: int,
        progress: Progress,
        *,
        keep: bool = False,
        held: np.ndarray | None = None,
    ) -> None:
        # columns
        spec = problem.data.spec
        assert spec is not None
        require_pairs(config.draws)
        self.problem, self.spec, self.config = problem, spec, config
        self.rngs = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        n_slate, p, width = 3 * spec.n_objectives, problem.phi.shape[1], problem.data.action_width
        n_nuisance, n_effect = p + n_slate, n_slate * (1 + p)
        self.nuisance = np.arange(n_nuisance)
        self.effect = n_nuisance + np.arange(n_effect)
        self.model = np.arange(n_nuisance + n_effect)
        self.direct = n_nuisance + n_effect + np.arange(width)
        kinds = np.repeat([0, 1, 2], [n_slate, n_slate, n_slate * (p - 1)])
        self.group = np.concatenate([np.full(n_nuisance, -1), kinds])

        # scales, from some of the requests
        weights = problem.weight if held is None else np.where(held, 0, problem.weight)
        open_rows = rows[weights[rows] > 0]
        sample = open_rows[:: max(1, len(open_rows) // 8192)]
        data = problem.data
        logged_in = data.action[sample], data.center[sample], data.lower[sample], data.upper[sample]
        self.positions = None if problem.uniform else box.position(*logged_in)
        logged, fresh, _, _ = self._slates(sample)
        self.center = fresh.mean((0, 1))
        sd = (logged - fresh.mean(0)).std(0)
        # a score that all candidates of a request share is moved by rounding alone; a mean score has a unit, logs have none
        has_unit = np.repeat([False, True, False], spec.n_objectives)
        moved = sd > LEAST_MOVED * (np.abs(self.center) + np.where(has_unit, 0, 1))
        self.scale = np.where(moved, sd, 1).astype(np.float32)
        self.prior, self.plug_in_scale = self._plug_in(rows, logged, sample)

        # moments against delta, and what T is regressed on, a chunk of the requests at a time
        self.effects = problem.data.arrays.zeros((len(problem.data), 2 * n_slate)) if keep else None
        columns = n_nuisance + n_effect + width
        self.parts = [Moments.zero(columns) for _ in range(PARTS)]
        # slopes around another policy are others, but those that a few requests give are noise
        around_baseline = problem.current[rows].sum() >= ROWS_A_COLUMN * p
        # products phi_p phi_z, each once: T's interactions with z are moments of these with the slopes of l~ alone
        left, right = np.triu_indices(p)
        grams, products = np.zeros((2, p, p)), np.zeros((2, len(left), width * 2 * n_slate))
        second, n_current = np.zeros((width, 2 * n_slate)), 0
        for start in progress.over(range(0, len(rows), CHUNK), "replay"):
            take = rows[start : start + CHUNK]
            x, per_request, curve, phi = self._chunk(take)
            if self.effects is not None:
                self.effects[take] = x[:, n_nuisance : n_nuisance + 2 * n_slate]
            y, weight, fold, part = value.residual[take, None], weights[take], problem.fold[take], problem.part[take]
            self.parts = with_rows(self.parts, part, x, y, weight)
            now = problem.current[take] if around_baseline else np.ones(len(take), bool)
            if not now.any():
                continue
            for f in (0, 1):
                of = now & (fold == f)
                some = phi[of]
                grams[f] += some.T @ some
                products[f] += (some[:, left] * some[:, right]).T @ per_request[of].reshape(len(some), products.shape[2])
            second += curve[now].sum(0)
            n_current += int(now.sum())
        # T
        pair = np.zeros((p, p), np.int64)
        pair[left, right] = pair[right, left] = np.arange(len(left))

        def slopes(gram: np.ndarray, product: np.ndarray) -> np.ndarray:
            moment = product[pair].reshape(p, p, width, 2 * n_slate)  # [phi_p, phi_z, A, 2 L]
            by_z = moment[:, 1:, :, :n_slate].transpose(0, 2, 3, 1).reshape(p, width, -1)
            first = np.concatenate([moment[:, 0], by_z], axis=2).reshape(p, -1)
            return np.linalg.solve(_regular(gram), first).reshape(p, width, n_effect).transpose(1, 0, 2)

        self.slopes = slopes(grams.sum(0), products.sum(0))
        self.apart = slopes(grams[0], products[0]) - slopes(grams[1], products[1])
        self.grams = grams
        # interactions l~ x z bend with z, whose mean is about 0: only l~ and l~^2 enter the average curvature
        self.second = np.concatenate([second / max(n_current, 1), np.zeros((width, n_slate * (p - 1)))], axis=1)

    @property
    def moments(self) -> Moments:
        """Of all users."""
        return total(self.parts)

    def fit(self, moments: Moments) -> Posterior:
        """Coefficients of the model's columns, given moments of some of the users."""
        return empirical_bayes(moments.columns(self.model), self.group, self.prior)

    def error_of(self, b: np.ndarray) -> np.ndarray:
        """Covariance [A P, A P] of the slopes `T b` of fixed b [F], from requests and draws that T was regressed on.

        Two halves of the users give two T, whose difference has covariance `S x (G_0^-1 + G_1^-1)`, G their Gram matrices; so S
        [A, A] is found, and that of the whole is `S x (G_0 + G_1)^-1`.
        """
        apart, (one, other) = self.apart @ b, self.grams
        both = np.linalg.inv(np.linalg.inv(_regular(one)) + np.linalg.inv(_regular(other)))
        return np.kron(apart @ both @ apart.T / len(both), np.linalg.inv(_regular(one + other)))

    def _slates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Features of the logged slates [m, L] and of `draws` fresh ones [R, m, L]; the fresh actions' u [R, m, A]; features of
        slates drawn as the logged action was: the fresh ones, but for rows that a wider box or another noise explored."""
        data = self.problem.data
        scores, count = data.candidates(rows)
        tensor = torch.from_numpy(scores)
        center, lower, upper = self._box(rows)
        fresh, u = self._drawn(self.rngs[0], center, lower, upper, tensor, count)
        logged = slate_features(self.spec, data.action[rows], tensor, count).numpy()
        other = self.positions is not None or (data.lower[rows] < lower).any() or (data.upper[rows] > upper).any()
        if not other:
            return logged, fresh, u, fresh
        own = center, data.lower[rows], data.upper[rows]
        alike, _ = self._drawn(self.rngs[1], *own, tensor, count, self.positions)
        return logged, fresh, u, alike

    def _drawn(
        self,
        rng: np.random.Generator,
        center: np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
        scores: torch.Tensor,
        count: np.ndarray,
        positions: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features [R, m, L] of the slates of `draws` actions a request, and their u [R, m, A]. The actions are uniform in that
        box, or, in each dimension, where one of `positions` [k, A] lies in it."""
        mid = center + (lower + upper) * 0.5
        features, at = [], []
        for _ in range(self.config.draws // 2):
            if positions is None:
                drawn = box.sample(rng, center, lower, upper)
            else:
                x = positions[rng.integers(len(positions), size=center.shape), np.arange(center.shape[1])]
                drawn = mid + x * ((upper - lower) * 0.5)
            for action in (drawn, 2 * mid - drawn):
                features.append(slate_features(self.spec, action, scores, count).numpy())
                at.append((action - mid) / self.problem.unit)
        return np.stack(features), np.stack(at)

    def _box(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Center and offsets of where slopes are replayed: what was explored, but no wider than the box now.

        A step stays in the box now, and slopes over a wider range are others. A dimension that is fixed now (its unit is 1)
        is replayed as far as it was explored.
        """
        data, unit = self.problem.data, self.problem.unit
        return data.center[rows], np.maximum(data.lower[rows], -unit), np.minimum(data.upper[rows], unit)

    def _chunk(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Design [m, columns]; slopes of [l~, l~^2] in u at each request [m, A, 2 L]; their second derivatives; phi."""
        logged, fresh, u, alike = self._slates(rows)
        phi = self.problem.phi[rows]
        mean = alike.mean(0)
        effect, fresh_effect = (logged - mean) / self.scale, self._apart(fresh)
        squares = np.square(fresh_effect)
        apart = fresh_effect if alike is fresh else self._apart(alike)
        square, fresh_square = np.square(effect) - self._expected_square(alike, apart), squares - squares.mean((0, 1))
        interaction = (effect[:, :, None] * phi[:, None, 1:]).reshape(len(rows), -1)
        level = (mean - self.center) / (4 * self.scale)
        x = np.concatenate([phi, level, effect, square, interaction, self.problem.u[rows]], axis=1)
        # u is uniform on +-r, so E[u^2] = r^2 / 3 and the slope is E[u f] / E[u^2]; the second derivative 15 E[P2(u / r) f] / r^2
        _, lower, upper = self._box(rows)
        reach = (upper - lower) * 0.5 / self.problem.unit
        inverse = np.where(reach > 0, 1 / np.maximum(reach, 1e-9), 0)
        # a box that is cut keeps half its reach; Gaussian noise beside the edge hardly any, and says next to nothing of the slope
        by_reach = np.minimum(inverse, 1 / SHORT) ** 2
        moved = np.concatenate([fresh_effect, fresh_square], axis=2)
        per_request = np.einsum("rmd,rml->mdl", u, moved) * (3 / len(u) * by_reach)[:, :, None]
        legendre = 0.5 * (3 * (u * inverse) ** 2 - 1)
        curve = np.einsum("rmd,rml->mdl", legendre, moved) * (15 / len(u) * by_reach)[:, :, None]
        return x, per_request, curve, phi

    def _apart(self, features: np.ndarray) -> np.ndarray:
        """Each draw [R, m, L] less the mean of the other pairs: with the draw in it, every curve would lose a share 2 / R."""
        pairs = features[0::2] + features[1::2]
        others = np.repeat((pairs.sum(0) - pairs) / (len(features) - 2), 2, axis=0)
        apart: np.ndarray = (features - others) / self.scale
        return apart

    def _expected_square(self, features: np.ndarray, apart: np.ndarray) -> np.ndarray:
        """Of one more draw less the mean of them all [m, L], from the draws [R, m, L] and their `_apart`."""
        pairs = (features[0::2] + features[1::2]) / (2 * self.scale)
        # the mean of all is surer than that of the others, by which `_apart` judges
        surer = pairs.var(0, ddof=1) * (1 / (len(pairs) - 1) - 1 / len(pairs))
        expected: np.ndarray = np.square(apart).mean(0) - surer
        return expected

    def _plug_in(self, rows: np.ndarray, logged: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Prior of the coefficients [model]: the reward that a slate's mean scores predict, and each head's calibration.

        A head's predictions are brought to the behaviour's level by one factor, so that other units do no harm.
        """
        prior = np.zeros(len(self.model))
        spec, data = self.spec, self.problem.data
        weights = plug_in_weights(spec)
        if not self.config.plug_in or data.behaviour is None or not weights.any():
            return prior, {}
        k, scales = spec.n_objectives, {}
        for i, (objective, weight) in enumerate(zip(spec.objectives, weights, strict=True)):
            if weight == 0:
                continue
            seen = float(data.behaviour[sample, spec.behaviours.index(objective)].mean())
            predicted = spec.n_shown * float(logged[:, k + i].mean())
            factor = seen / predicted if predicted > 0 else 0.0
            prior[self.effect[k + i]] = weight * spec.n_shown * factor * self.scale[k + i]
            scales[objective] = factor
        return prior, scales


def _regular(gram: np.ndarray) -> np.ndarray:
    """With a ridge that only keeps it from being singular."""
    regular: np.ndarray = gram + jitter(gram) * np.eye(len(gram))
    return regular


def _fall_back(problem: Problem, value: Value, config: SlateReplayConfig, reason: str, seed: int, progress: Progress) -> Learned:
    plain = LinearAdvantageConfig(**{f.name: getattr(config, f.name) for f in fields(LinearAdvantageConfig)})
    learned = linear_advantage.learn(problem, value, plain, seed=seed, progress=progress)
    return Learned(learned.action, {"used": "linear_advantage", **learned.report, "warnings": [reason]})
