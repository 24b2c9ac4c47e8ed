"""What users do (the truth), fitted to the whole log as a chain and drawn from its posterior.

    click; valid given a click; watch time given the class (its empirical quantiles by duration, and who sits how high in
    them); like and interaction given the class.

Each step has the fixed effects of `fit_design` and normal effects of user, video, (user, tag), (user, duration bucket) and
(user, day). Their variances come from pairs of residuals on different days. A *draw* is taken and not the mean: the mean
shrinks every user towards the average, so that a world made of means has less taste in it than its users. Where a logged
user stands for several simulated ones, each has a draw of its own; videos and levels are those of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtf.world.fit_design import N_BUCKETS, Design
from mtf.world.fit_glm import Block, Family, Fit, draw, fit, pair_sums
from mtf.world.kuairand import WATCH_CAP_S, KuaiRand
from mtf.world.params import CLASSES, HEADS, VALID_S

EFFECTS = ("user", "user_tag", "user_duration", "day", "item")
RARE = ("like", "interact")
LOGISTIC_VARIANCE = float(np.pi**2 / 3)
VARIANCE_LOW, VARIANCE_HIGH = 1e-3, 1.0
N_QUANTILES = 129
FEW_ROWS = 100
QUADRATURE = 5
HALVINGS = 16
TINY_S = 0.001


@dataclass(frozen=True, eq=False)
class ResponseTables:
    """The truth's tables (see params.py): intercept [5], user [N, 5], item [V, 5], user_tag [N, T, 5],
    user_duration [N, D, 5], like_class and interact_class [3], day_sd [5], watch_quantiles [3, D, Q];
    variance {head: {effect: variance}} as estimated. N = copies * U: the logged users in their order, copy after copy.
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

    def eta(self, user: np.ndarray, item: np.ndarray, design: Design) -> np.ndarray:
        """Linear predictors [n, 5] of rows (user, item), without a day's effect."""
        by_tag, by_duration = self.user_tag[user, design.tag[item]], self.user_duration[user, design.bucket[item]]
        return self.intercept + self.user[user] + self.item[item] + by_tag + by_duration


def fit_response(log: KuaiRand, design: Design, rng: np.random.Generator | None, copies: int = 1) -> ResponseTables:
    """Fit the chain to all rows, draw `copies` times, and recalibrate the intercepts by deciles of the users' history.

    rng None: the posterior's mode instead of a draw, the best prediction of each user's responses.
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
    heads = [
        _fit_head(head, outcome[head][rows[head]], rows[head], class_ if head in RARE else None, log, design, rng, copies)
        for head in HEADS
    ]
    stacked = {name: np.stack([h.tables[name] for h in heads], axis=-1) for name in ("user", "item", "user_tag", "user_duration")}
    day_sd = np.sqrt([h.variance["day"] for h in heads])
    watch = HEADS.index("watch")
    tables = {name: stacked[name][..., watch] for name in stacked}
    cell = design.bucket[log.item]
    watch_eta = tables["user"][log.user] + tables["item"][log.item]
    watch_eta += tables["user_tag"][log.user, design.tag[log.item]] + tables["user_duration"][log.user, cell]
    by_head = dict(zip(HEADS, heads, strict=True))
    return ResponseTables(
        intercept=np.array([h.intercept for h in heads]),
        like_class=by_head["like"].by_class,
        interact_class=by_head["interact"].by_class,
        day_sd=day_sd,
        watch_quantiles=_watch_quantiles(log.watch_s, class_, cell, watch_eta, float(day_sd[watch])),
        variance={head: h.variance for head, h in by_head.items()},
        **stacked,
    )


@dataclass(frozen=True, eq=False)
class _Head:
    tables: dict[str, np.ndarray]
    intercept: float
    by_class: np.ndarray
    variance: dict[str, float]


def _fit_head(
    head: str,
    y: np.ndarray,
    rows: np.ndarray,
    class_: np.ndarray | None,
    log: KuaiRand,
    design: Design,
    rng: np.random.Generator | None,
    copies: int,
) -> _Head:
    user, item, day = log.user[rows], log.item[rows], log.day[rows]
    n_users, n_items = len(log.user_key), len(log.item_key)
    tag, bucket = design.tag[item], design.bucket[item]
    family: Family = "normal" if head == "watch" else "logistic"
    noise = LOGISTIC_VARIANCE if head == "watch" else 1.0
    blocks = design.blocks(user, item)
    if class_ is not None:
        blocks.append(Block("class", class_[rows], len(CLASSES), 10.0))
    fixed = fit(y, blocks, family=family, noise_variance=noise)
    variance = effect_variances(y - fixed.mean, fixed.weight * noise, user, item, day, tag, bucket, rare=head in RARE)
    cells: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "user": (user, np.arange(n_users)),
        "item": (item, np.arange(n_items)),
        "user_tag": _seen(user * len(design.tag_names) + tag),
        "user_duration": _seen(user * N_BUCKETS + bucket),
        "day": _seen(user * (int(day.max()) + 1) + day),
    }
    blocks += [Block(name, cell[0], len(cell[1]), variance[name]) for name, cell in cells.items()]
    mode = fit(y, blocks, family=family, noise_variance=noise)
    draws = [mode if rng is None else draw(mode, rng) for _ in range(copies)]
    parts = [_draw_tables(drawn, design, cells, variance, rng) for drawn in draws]
    intercept, by_class = float(draws[0].theta["intercept"][0]), np.zeros(len(CLASSES))
    if class_ is not None:
        shares = np.bincount(class_[rows], minlength=len(CLASSES)) / len(y)
        mean = float(draws[0].theta["class"] @ shares)
        intercept, by_class = intercept + mean, draws[0].theta["class"] - mean
    for tables in parts if family == "logistic" else ():
        eta = intercept + tables["user"][user] + parts[0]["item"][item]
        eta += tables["user_tag"][user, tag] + tables["user_duration"][user, bucket]
        if class_ is not None:
            eta += by_class[class_[rows]]
        shift = _recalibrate(y, eta, design.decile[user], int(design.decile.max()) + 1, variance["day"])
        tables["user"] += shift[design.decile]
    if family == "normal":
        # the quantile tables are centred on eta themselves
        intercept = 0.0
    tables = {name: np.concatenate([part[name] for part in parts]) for name in ("user", "user_tag", "user_duration")}
    tables["item"] = parts[0]["item"]
    return _Head(tables=tables, intercept=intercept, by_class=by_class, variance=variance)


def effect_variances(
    residual: np.ndarray,
    weight: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    day: np.ndarray,
    tag: np.ndarray,
    bucket: np.ndarray,
    *,
    rare: bool,
) -> dict[str, float]:
    """Variances of the effects on eta, from products of residuals of pairs of rows (moments; all arrays [n]).

    Two rows of a user on different days share the user's effect; where the tag is the same too, also that of (user, tag);
    and so on. To first order E[r_i r_j] = w_i w_j * (sum of the variances of what they share), which is a linear system.
    For rare outcomes (small p) the product is p_i p_j (exp(variance) - 1) instead, whence the logarithm.
    """
    n_days, n_tags, n_buckets = int(day.max()) + 1, int(tag.max()) + 1, int(bucket.max()) + 1
    keys = {
        "user": user,
        "user_tag": user * n_tags + tag,
        "user_duration": user * n_buckets + bucket,
        "both": (user * n_tags + tag) * n_buckets + bucket,
    }

    def apart(key: np.ndarray) -> tuple[float, float]:
        all_, same_day = pair_sums(residual, weight, key), pair_sums(residual, weight, key * n_days + day)
        return all_[0] - same_day[0], all_[1] - same_day[1]

    def together(key: np.ndarray) -> tuple[float, float]:
        all_ = pair_sums(residual, weight, key * n_days + day)
        return all_[0] - float(residual @ residual), all_[1] - float(weight @ weight)

    far, near = {k: apart(v) for k, v in keys.items()}, {k: together(v) for k, v in keys.items()}
    shared = {name: i for i, name in enumerate(("user", "user_tag", "user_duration", "day"))}
    system = np.zeros((4, 4))
    system[shared["user"], :3] = [far["user"][1], far["user_tag"][1], far["user_duration"][1]]
    system[shared["user_tag"], :3] = [far["user_tag"][1], far["user_tag"][1], far["both"][1]]
    system[shared["user_duration"], :3] = [far["user_duration"][1], far["both"][1], far["user_duration"][1]]
    system[shared["day"]] = [near["user"][1], near["user_tag"][1], near["user_duration"][1], near["user"][1]]
    target = np.array([far["user"][0], far["user_tag"][0], far["user_duration"][0], near["user"][0]])
    solved = np.linalg.lstsq(system / max(system.max(), 1e-12), target / max(system.max(), 1e-12), rcond=None)[0]
    found = {name: float(solved[i]) for name, i in shared.items()}
    # the same video, seen by different users
    all_, same_user = pair_sums(residual, weight, item), pair_sums(residual, weight, item * (int(user.max()) + 1) + user)
    pairs = all_[1] - same_user[1]
    found["item"] = (all_[0] - same_user[0]) / pairs if pairs > 0 else 0.0
    if rare:
        found = {name: float(np.log1p(max(v, 0.0))) for name, v in found.items()}
    return {name: float(np.clip(found[name], VARIANCE_LOW, VARIANCE_HIGH)) for name in EFFECTS}


def _seen(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cell of each row, the keys of the cells that occur)."""
    keys, cell = np.unique(key, return_inverse=True)
    return cell, keys


def _draw_tables(
    drawn: Fit,
    design: Design,
    cells: Mapping[str, tuple[np.ndarray, np.ndarray]],
    variance: dict[str, float],
    rng: np.random.Generator | None,
) -> dict[str, np.ndarray]:
    """Fixed and drawn effects as tables; a pair that the log never saw is a draw from its prior (its mode without rng)."""
    tables = design.tables(drawn)
    tables["user"] = tables["user"] + drawn.theta["user"]
    tables["item"] = tables["item"] + drawn.theta["item"]
    for name in ("user_tag", "user_duration"):
        size = tables[name].size
        own = np.zeros(size) if rng is None else rng.standard_normal(size) * np.sqrt(variance[name])
        own[cells[name][1]] = drawn.theta[name]
        tables[name] = tables[name] + own.reshape(tables[name].shape)
    return tables


def _recalibrate(y: np.ndarray, eta: np.ndarray, group: np.ndarray, n_groups: int, day_variance: float) -> np.ndarray:
    """Shifts [n_groups] of eta that make the mean response of each group, over days, that of y (+ half a row of prior)."""
    node, share = np.polynomial.hermite_e.hermegauss(QUADRATURE)
    share = share / share.sum()
    rows = np.maximum(np.bincount(group, minlength=n_groups), 1)
    target = (np.bincount(group, y, n_groups) + y.mean()) / (rows + 1)
    low, high = np.full(n_groups, -4.0), np.full(n_groups, 4.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        eta_here = eta + middle[group]
        chance = sum(w / (1 + np.exp(-(eta_here + np.sqrt(day_variance) * x))) for x, w in zip(node, share, strict=True))
        mean = np.bincount(group, chance, n_groups) / rows
        low, high = np.where(mean < target, middle, low), np.where(mean < target, high, middle)
    return np.where(np.bincount(group, minlength=n_groups) > 0, (low + high) / 2, 0.0)


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
