"""What is known about users, videos and their pairs before the log begins, as blocks of an additive model.

Four kinds of cells, which are the four tables of a world: user, item, (user, tag), (user, duration bucket).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from mtf.world.fit_glm import Block, Fit
from mtf.world.kuairand import CATEGORIES, KuaiRand

N_TAGS = 20
"""Tags that have cells of their own; the rarest are one, the last."""

BUCKET_EDGES_S = (10.0, 20.0, 40.0, 80.0, 160.0)
"""Duration buckets: six between and beyond these, and a last one for an unknown duration."""

N_BUCKETS = len(BUCKET_EDGES_S) + 2
FINE_BINS = 24
SHARE_BINS = 10
COUNT_EDGES = (1, 2, 4, 8)
LIFT_EDGES = (-0.15, -0.05, 0.05, 0.15)
SMOOTHING = 5.0
FIXED_VARIANCE, CATEGORY_VARIANCE = 0.1, 0.02


@dataclass(frozen=True, eq=False)
class Design:
    """U users, V items, T tags, D duration buckets of a log.

    tag, bucket int64 [V]. tag_names [T]. by_user [U, p], by_item [V, q]: sparse 0/1 attributes.
    pair_tag int64 [U, T], pair_bucket int64 [U, D]: the class of a user's history with a tag or a duration
    (how often watched, how much longer than the user's other videos, any liked), one of `n_pair` classes.
    rates: per user `watched`, `liked` (videos before the log, at most 50), `long` and `like` (smoothed shares of watched).
    decile int64 [U]: users by their share of long watches before the log; the last group has no history.
    """

    tag: np.ndarray
    bucket: np.ndarray
    tag_names: tuple[str, ...]
    by_user: sparse.csr_matrix
    by_item: sparse.csr_matrix
    pair_tag: np.ndarray
    pair_bucket: np.ndarray
    n_pair: int
    rates: dict[str, np.ndarray]
    decile: np.ndarray

    @staticmethod
    def of(log: KuaiRand) -> Design:
        """The design of a log."""
        n_users = len(log.user_key)
        tag, tag_names = _tags(log)
        bucket = _buckets(log.duration_s)
        rates = _rates(log, n_users)
        known = rates["watched"] > 0
        columns = [_codes(log.categories[:, i]) for i in range(len(CATEGORIES))]
        columns.append(np.digitize(rates["watched"], (1, 5, 10, 20, 30, 40, 50)))
        columns.append(np.digitize(rates["liked"], (1, 2, 3, 5, 8, 15, 25)))
        columns += [_bins(rates[name], known, SHARE_BINS) for name in ("long", "like")]
        _, fine_tag = np.unique(log.tag, return_inverse=True)
        fine_duration = _bins(log.duration_s, np.isfinite(log.duration_s), FINE_BINS)
        pair_tag = _history_classes(log, tag, len(tag_names), rates["long"])
        pair_bucket = _history_classes(log, bucket, N_BUCKETS, rates["long"])
        return Design(
            tag=tag,
            bucket=bucket,
            tag_names=tag_names,
            by_user=_one_hot(columns),
            by_item=_one_hot([fine_tag, fine_duration, *_item_history(log, rates)]),
            pair_tag=pair_tag,
            pair_bucket=pair_bucket,
            n_pair=2 * (len(COUNT_EDGES) + 1) * (len(LIFT_EDGES) + 1),
            rates=rates,
            decile=columns[-2],
        )

    def blocks(self, user: np.ndarray, item: np.ndarray) -> list[Block]:
        """The fixed effects of rows (user [n], item [n])."""
        n_users, n_items = len(self.pair_tag), len(self.tag)
        return [
            Block("intercept", np.zeros(len(user), np.int64), 1, 100.0),
            Block("attributes", user, n_users, CATEGORY_VARIANCE, self.by_user),
            Block("video", item, n_items, FIXED_VARIANCE, self.by_item),
            Block("history_tag", self.pair_tag[user, self.tag[item]], self.n_pair, FIXED_VARIANCE),
            Block("history_duration", self.pair_bucket[user, self.bucket[item]], self.n_pair, FIXED_VARIANCE),
        ]

    def tables(self, fit: Fit) -> dict[str, np.ndarray]:
        """The fixed effects of a fit as tables: user [U], item [V], user_tag [U, T], user_duration [U, D]."""
        return {
            "user": fit.values("attributes").copy(),
            "item": fit.values("video").copy(),
            "user_tag": fit.values("history_tag")[self.pair_tag],
            "user_duration": fit.values("history_duration")[self.pair_bucket],
        }


def _tags(log: KuaiRand) -> tuple[np.ndarray, tuple[str, ...]]:
    names, code = np.unique(log.tag, return_inverse=True)
    rows = np.bincount(code, np.bincount(log.item, minlength=len(log.tag)), len(names))
    order = np.argsort(-rows, kind="stable")
    kept = order[: N_TAGS - 1]
    index = np.full(len(names), len(kept), np.int64)
    index[kept] = np.arange(len(kept))
    rest = ("other",) if len(names) > len(kept) else ()
    return index[code], tuple(str(names[i]) for i in kept) + rest


def _buckets(duration_s: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(duration_s), np.digitize(duration_s, BUCKET_EDGES_S), N_BUCKETS - 1).astype(np.int64)


def _rates(log: KuaiRand, n_users: int) -> dict[str, np.ndarray]:
    counts = {name: np.bincount(owners, minlength=n_users).astype(float) for name, (owners, _) in log.history.items()}
    watched = counts["watch"]
    rates = {"watched": watched, "liked": counts["like"]}
    for name, source in (("long", "long_watch"), ("like", "like")):
        mean = counts[source].sum() / max(watched.sum(), 1)
        rates[name] = (np.minimum(counts[source], watched) + SMOOTHING * mean) / (watched + SMOOTHING)
    return rates


def _item_history(log: KuaiRand, rates: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Bins [V] of how often a video was watched before the log, and of the shares of those that were long or liked."""
    n_items = len(log.item_key)
    owner, item = log.history["watch"]
    owner, item = owner[item >= 0], item[item >= 0]
    watched = np.bincount(item, minlength=n_items).astype(float)
    columns = [_bins(watched, watched > 0, SHARE_BINS)]
    for name, source in (("long", "long_watch"), ("like", "like")):
        seen = log.history[source][1]
        count = np.bincount(seen[seen >= 0], minlength=n_items)
        # against what its own viewers do with other videos
        expected, extra = np.bincount(item, rates[name][owner], n_items), SMOOTHING * rates[name].mean()
        columns.append(_bins((count + extra) / (expected + extra), watched > 0, SHARE_BINS))
    return columns


def _history_classes(log: KuaiRand, kind: np.ndarray, n_kinds: int, long_rate: np.ndarray) -> np.ndarray:
    """[U, n_kinds]: (how many videos of the kind were watched) x (how far their long watches exceed the user's own rate)."""
    n_users = len(long_rate)

    def count(name: str) -> np.ndarray:
        owner, item = log.history[name]
        known = item >= 0
        cell = owner[known] * n_kinds + kind[item[known]]
        return np.bincount(cell, minlength=n_users * n_kinds).reshape(n_users, n_kinds).astype(float)

    watched, long, liked = count("watch"), count("long_watch"), count("like")
    lift = (np.minimum(long, watched) - watched * long_rate[:, None]) / (watched + SMOOTHING)
    classes = np.digitize(watched, COUNT_EDGES) * (len(LIFT_EDGES) + 1) + np.digitize(lift, LIFT_EDGES)
    return (classes * 2 + (liked > 0)).astype(np.int64)


def _bins(values: np.ndarray, known: np.ndarray, n: int) -> np.ndarray:
    """Quantile bins 0..n-1 of the known values; n for the unknown."""
    edges = np.unique(np.quantile(values[known], np.arange(1, n) / n)) if known.any() else np.empty(0)
    return np.where(known, np.digitize(values, edges), n).astype(np.int64)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _one_hot(columns: list[np.ndarray]) -> sparse.csr_matrix:
    """Sparse 0/1 [m, sum of the columns' values]."""
    m = len(columns[0])
    starts = np.cumsum([0, *(int(c.max()) + 1 for c in columns)])
    at = np.stack([c + s for c, s in zip(columns, starts[:-1], strict=True)], axis=1)
    pointers = np.arange(m + 1) * len(columns)
    return sparse.csr_matrix((np.ones(at.size), at.reshape(-1), pointers), shape=(m, int(starts[-1])))
