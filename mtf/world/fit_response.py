"""What users do (the truth), fitted to the whole log as a chain and drawn from its posterior.

    click; valid given a click; watch time given the class (its empirical quantiles by duration, and who sits how high in
    them); like and interaction given the class.

Each step has the fixed effects of `fit_design` and normal effects of user, video, (user, tag), (user, duration bucket) and
(user, day). The variances of these come from pairs of residuals on different days; the fixed effects are fitted beside them,
and set to the level and slope at which the chances, averaged over all others, are the log's; then come the others, given those.
A user's own effects on the five steps go together: who clicks much also watches longer what he clicks. Those of a day do not.

A *draw* is taken and not the mean: the mean shrinks every user towards the average, so that a world made of means has less
taste in it than its users. Where a logged user stands for several simulated ones, each has a draw of his own; videos and
levels are shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.errors import InputError
from mtf.world.fit_design import N_BUCKETS, Design
from mtf.world.fit_draw import Effects, Observed, draw_effects
from mtf.world.fit_glm import Block, Fit, fit
from mtf.world.fit_moments import Residuals, conditional_level, effect_variances, user_covariance
from mtf.world.kuairand import WATCH_CAP_S, KuaiRand
from mtf.world.params import CLASSES, HEADS, VALID_S

LOGISTIC, RARE = ("click", "valid", "like", "interact"), ("like", "interact")
LOGISTIC_VARIANCE = float(np.pi**2 / 3)
N_QUANTILES = 129
FEW_ROWS = 100
TINY_S = 0.001


@dataclass(frozen=True, eq=False)
class ResponseTables:
    """The truth's tables (see params.py): intercept [5], user [N, 5], item [V, 5], user_tag [N, T, 5],
    user_duration [N, D, 5], like_class and interact_class [3], day_sd [5], watch_quantiles [3, D, Q];
    variance {head: {effect: variance}} and covariance [5, 5] of a user's effects, as estimated.
    N = copies * U: the logged users in their order, copy after copy.
    """

    intercept: np.ndarray
    user: np.ndarray
    item: np.ndarray
    user_tag: np.ndarray
    user_duration: np.ndarray
    like_class: np.ndarray
    interact_class: np.ndarray
    day_sd: np.ndarray
    watch_quantiles: np.ndarray
    variance: dict[str, dict[str, float]]
    covariance: np.ndarray

    def eta(self, user: np.ndarray, item: np.ndarray, design: Design) -> np.ndarray:
        """Linear predictors [n, 5] of rows (user, item), without a day's effect."""
        by_tag, by_duration = self.user_tag[user, design.tag[item]], self.user_duration[user, design.bucket[item]]
        return self.intercept + self.user[user] + self.item[item] + by_tag + by_duration


def fit_response(log: KuaiRand, design: Design, rng: np.random.Generator, copies: int = 1) -> ResponseTables:
    """Fit the chain to all rows and draw `copies` times.

    Raises InputError where a response always or never occurs.
    """
    rows = {head: log.click if head == "valid" else np.ones(len(log.click), bool) for head in HEADS}
    class_ = log.response_class
    outcome = {
        "click": log.click.astype(float),
        "valid": log.valid.astype(float),
        "watch": _rank_logits(log.watch_s, class_ * N_BUCKETS + design.bucket[log.item]),
        "like": log.like.astype(float),
        "interact": log.interact.astype(float),
    }
    for head in LOGISTIC:
        seen = outcome[head][rows[head]]
        if len(seen) == 0 or seen.min() == seen.max():
            often = "always" if len(seen) and seen.min() else "never"
            raise InputError(
                f"log: `{head}` {often} occurs in {len(seen):,} rows; give more of the log, so that there is something to fit"
            )
    heads = [
        _fixed_effects(head, outcome[head][rows[head]], rows[head], class_ if head in RARE else None, log, design)
        for head in HEADS
    ]
    covariance = user_covariance([head.residuals for head in heads])
    drawn, moved = draw_effects([head.observed for head in heads], covariance, rng, copies)
    by_copy = [[_tables(*both, design, rng) for both in zip(heads, effects, strict=True)] for effects in drawn]
    stacked = {
        name: np.concatenate([np.stack([tables[name] for tables in copy], axis=-1) for copy in by_copy])
        for name in ("user", "user_tag", "user_duration")
    }
    by_class = [head.by_class(class_) for head in heads]
    watch, cell = HEADS.index("watch"), design.bucket[log.item]
    first = by_copy[0][watch]
    watch_eta = first["user"][log.user] + first["item"][log.item]
    watch_eta += first["user_tag"][log.user, design.tag[log.item]] + first["user_duration"][log.user, cell]
    day_sd = np.sqrt([head.variance["day"] for head in heads])
    return ResponseTables(
        intercept=np.array([h.intercept + m + mean for h, m, (mean, _) in zip(heads, moved, by_class, strict=True)]),
        like_class=by_class[HEADS.index("like")][1],
        interact_class=by_class[HEADS.index("interact")][1],
        day_sd=day_sd,
        watch_quantiles=_watch_quantiles(log.watch_s, class_, cell, watch_eta, float(day_sd[watch])),
        item=np.stack([tables["item"] for tables in by_copy[0]], axis=-1),
        variance={name: head.variance for name, head in zip(HEADS, heads, strict=True)},
        covariance=covariance,
        **stacked,
    )


@dataclass(frozen=True, eq=False)
class _Head:
    """A head whose own effects are still to be drawn.

    scale: what the fixed effects are multiplied by (`conditional_level`). cells: {effect: (of each row, keys)}.
    """

    fixed: Fit
    scale: float
    intercept: float
    cells: dict[str, tuple[np.ndarray, np.ndarray]]
    variance: dict[str, float]
    residuals: Residuals
    observed: Observed

    def by_class(self, class_: np.ndarray) -> tuple[float, np.ndarray]:
        """(mean, deviations from it [3]) of what a response's class adds."""
        if "class" not in self.fixed.theta:
            return 0.0, np.zeros(len(CLASSES))
        adds = self.scale * self.fixed.theta["class"]
        mean = float(adds @ np.bincount(class_, minlength=len(CLASSES))) / len(class_)
        return mean, adds - mean


def _fixed_effects(head: str, y: np.ndarray, rows: np.ndarray, class_: np.ndarray | None, log: KuaiRand, design: Design) -> _Head:
    user, item, day = log.user[rows], log.item[rows], log.day[rows]
    tag, bucket = design.tag[item], design.bucket[item]
    logistic = head in LOGISTIC
    noise = None if logistic else LOGISTIC_VARIANCE
    blocks = design.blocks(user, item)
    if class_ is not None:
        blocks.append(Block("class", class_[rows], len(CLASSES), 10.0))
    alone = fit(y, blocks, noise_variance=noise)
    variance = effect_variances(y, alone.eta, user, item, day, tag, bucket, logistic=logistic)
    total = sum(variance.values())
    residuals = Residuals.of(y, alone.eta, user, day, variance, logistic)
    if not logistic:
        # ranks are logistic with the effects in them; the world adds the effects to a logistic
        grown = LOGISTIC_VARIANCE / max(float(np.var(y - alone.mean)) - total, LOGISTIC_VARIANCE / 2)
        y, variance = y * np.sqrt(grown), {name: v * grown for name, v in variance.items()}
        residuals = residuals.scaled(float(np.sqrt(grown)))
    cells: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "user": (user, np.arange(len(log.user_key))),
        "user_tag": _seen(user * len(design.tag_names) + tag),
        "user_duration": _seen(user * N_BUCKETS + bucket),
        "day": _seen(user * (int(day.max()) + 1) + day),
        "item": (item, np.arange(len(log.item_key))),
    }
    effects = [Block(name, cell, len(keys), variance[name]) for name, (cell, keys) in cells.items()]
    # beside the users' own effects: what differs within users is not what differs between them
    fixed = fit(y, [*blocks, *effects], noise_variance=noise)
    eta = np.asarray(sum(fixed.values(b.name)[b.cell] for b in blocks))
    level, scale = conditional_level(eta, alone.mean, total) if logistic else (0.0, 1.0)
    return _Head(
        fixed=fixed,
        scale=scale,
        # the watch quantiles are centred on the predictors themselves
        intercept=level + scale * float(fixed.theta["intercept"][0]) if logistic else 0.0,
        cells=cells,
        variance=variance,
        residuals=residuals,
        observed=Observed(y, user, item, level + scale * eta, effects, noise),
    )


def _seen(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cell of each row, the keys of the cells that occur)."""
    keys, cell = np.unique(key, return_inverse=True)
    return cell, keys


def _tables(head: _Head, effects: Effects, design: Design, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Fixed and drawn effects as tables; a pair that the log never saw is a draw from its prior."""
    tables = {name: head.scale * table for name, table in design.tables(head.fixed).items()}
    tables["user"] = tables["user"] + effects["user"]
    tables["item"] = tables["item"] + effects["item"]
    for name in ("user_tag", "user_duration"):
        size = tables[name].size
        own = rng.standard_normal(size) * np.sqrt(head.variance[name])
        own[head.cells[name][1]] = effects[name]
        tables[name] = tables[name] + own.reshape(tables[name].shape)
    return tables


def _rank_logits(watch_s: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Logit of each row's mid-rank [n] within its cell: standard logistic in every cell."""
    order = np.lexsort((watch_s, cell))
    sizes = np.bincount(cell)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(watch_s))
    place[order] = np.arange(len(watch_s)) - starts[cell[order]]
    # ties share the mean of their ranks
    _, tie = np.unique(np.stack([cell, watch_s]), axis=1, return_inverse=True)
    tie = np.asarray(tie).reshape(-1)
    place = (np.bincount(tie, place) / np.bincount(tie))[tie]
    share = (place + 0.5) / sizes[cell]
    return np.log(share) - np.log1p(-share)


def _watch_quantiles(watch_s: np.ndarray, class_: np.ndarray, bucket: np.ndarray, eta: np.ndarray, day_sd: float) -> np.ndarray:
    """[3, D, Q]: such that a quantile read at sigmoid(logit(uniform) + eta) has the log's distribution.

    The logit of the place is logistic plus eta: about logistic of centre mean(eta) and a variance grown by var(eta), so
    the empirical quantile is read at the place with that centre and scale taken out.
    """
    grid = np.linspace(0, 1, N_QUANTILES)
    logit = np.log(np.maximum(grid, 1e-9)) - np.log(np.maximum(1 - grid, 1e-9))
    out = np.empty((len(CLASSES), N_BUCKETS, N_QUANTILES))
    for kind in range(len(CLASSES)):
        for cell in range(N_BUCKETS):
            rows = (class_ == kind) & (bucket == cell)
            if rows.sum() < FEW_ROWS:
                rows = class_ == kind
            seconds = np.sort(watch_s[rows]) if rows.any() else np.array([TINY_S, VALID_S])
            own = eta[rows] if rows.any() else np.zeros(1)
            scale = np.sqrt(1 + (own.var() + day_sd**2) / LOGISTIC_VARIANCE)
            place = 1 / (1 + np.exp(-(logit - own.mean()) / scale))
            place[0], place[-1] = 0.0, 1.0
            at = np.quantile(seconds, place)
            # the last step of the grid holds the long tail: end it where its mean is right
            top = seconds[seconds >= at[-2]]
            at[-1] = np.clip(2 * top.mean() - at[-2], at[-2], WATCH_CAP_S)
            low, high = (VALID_S + TINY_S, WATCH_CAP_S) if kind == len(CLASSES) - 1 else (0.0, VALID_S)
            out[kind, cell] = np.maximum.accumulate(np.clip(at, low, high))
    return out
