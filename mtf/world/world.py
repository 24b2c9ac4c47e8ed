"""The simulated recommender: who comes, which candidates there are, how they are scored, how users respond and leave.

`params.py` says what the tables mean. A cohort (`cohort.py`) plays sessions in vectorised steps:

    cohort = world.cohort(world.sample_users(1000, dt, seed), dt=dt, seed=seed)
    while cohort.active:
        seen = cohort.observe()
        ... choose `shown`, indices into each request's candidates ...
        feedback = cohort.respond(seen, shown)

Every draw is a function of (seed, day, user, request number, candidate), so that results do not depend on the batch, and
two policies meet the same users, candidates and moods.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtf.errors import InputError
from mtf.spec import FusionSpec
from mtf.world import draws
from mtf.world.params import CLASSES, HEADS, WorldParams

if TYPE_CHECKING:
    from mtf.world.cohort import Cohort

WATCH = HEADS.index("watch")
LIKES_COUNT, INTERACTIONS_COUNT = 4.0, 2.0
HAZARD_LOW, HAZARD_HIGH = 0.005, 0.8
LUT_BITS = 19
NOISE_BITS = 16
ROTATION_LANE, CANDIDATE_LANE = 0, 8
_GRID = (np.arange(32, dtype=np.float32) + 0.5) / 32
_LOGIT_GRID = np.log(_GRID / (1 - _GRID))


class World:
    """A world's tables with the arithmetic on them. Immutable; cohorts hold what changes."""

    def __init__(self, params: WorldParams) -> None:
        self.params = params
        self.spec: FusionSpec = params.spec
        self.n_users, self.n_items = len(params.user_key), len(params.item_key)
        self.user_ids = np.array([f"u{key}" for key in params.user_key.tolist()], object)
        self._truth = _Tables(params, "true")
        self._score = _Tables(params, "score")
        self._noise = _pair_noise(params)
        self._order, self._lut = _exposure_table(params.item_exposure)
        self._quantiles = np.ascontiguousarray(params.watch_quantiles, np.float32)

    @staticmethod
    def load(folder: str | Path) -> World:
        """The world of a folder. Raises InputError."""
        return World(WorldParams.load(Path(folder)))

    @staticmethod
    def make(preset: str = "default", **knobs: Any) -> World:
        """A parametric world: a preset's name, and knobs that replace its settings (`presets.Knobs`)."""
        from mtf.world.presets import make

        return World(make(preset, **knobs))

    def save(self, folder: str | Path) -> None:
        """Write the world's folder."""
        self.params.save(Path(folder))

    def sample_users(self, n: int, dt: str, seed: int) -> np.ndarray:
        """The users int64 [n] who come on a day, without replacement, by weight. Raises InputError beyond the pool."""
        if not 0 < n <= self.n_users:
            raise InputError(f"users: {n} asked for; this world has {self.n_users}")
        u = draws.uniform(draws.keys(seed, day_number(dt), 1), np.asarray(self.params.user_key, np.int64))
        # the n smallest of independent exponentials with rates = weights (Efraimidis and Spirakis 2006)
        arrival = -np.log(u.astype(np.float64)) / np.maximum(self.params.user_weight, 1e-12)
        chosen = np.argpartition(arrival, n - 1)[:n]
        return chosen[np.argsort(arrival[chosen], kind="stable")]

    def cohort(self, users: np.ndarray, *, dt: str, seed: int, width: int = 1024) -> Cohort:
        """One session on day `dt` for each of `users`, `width` of them at a time."""
        from mtf.world.cohort import Cohort

        return Cohort(self, users, dt=dt, seed=seed, width=width)

    def candidates(self, key: np.ndarray) -> np.ndarray:
        """Distinct items int64 [n, C], drawn by exposure for requests with keys uint64 [n].

        One draw from each of C equal slices of the exposure's distribution, the slices turned by a common random offset.
        """
        c = self.params.scalars.n_candidates
        step = np.arange(c)
        jitter = draws.uniform(key[:, None], CANDIDATE_LANE + step)
        turn = draws.uniform(key, np.array(ROTATION_LANE))[:, None]
        cell = ((turn + (step + jitter) / np.float32(c)) * np.float32(2**LUT_BITS)).astype(np.int64)
        rank = self._lut.take(cell & (2**LUT_BITS - 1)) + (cell >> LUT_BITS) * self.n_items
        # neighbours on one item move up by one; the last must not meet the first again
        rank = np.maximum.accumulate(rank - step, axis=1) + step
        rank = np.minimum(rank, rank[:, :1] + self.n_items - c + step)
        return self._order.take(rank % self.n_items)

    def scores(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float32 [n, C, K]: the scores that fusion sees, of items [n, C] for users [n]."""
        eta = self._score.eta(users, items)
        if self._noise is not None:
            pair = users.astype(np.uint64)[:, None] * np.uint64(0x9E3779B1) + items.astype(np.uint64) * np.uint64(0x85EBCA77)
            eta += self._noise.take((pair >> np.uint64(11)).astype(np.int64) & (2**NOISE_BITS - 1), axis=0)
        seconds = np.expm1(np.clip(eta[..., WATCH], 0, np.float32(np.log1p(600))))
        scores = sigmoid(eta)
        scores[..., WATCH] = seconds
        return scores

    def truth(self, users: np.ndarray, items: np.ndarray, mood: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, C, H]: the true linear predictors (see params.py), with the day's effect `mood` [n, H] added."""
        eta = self._truth.eta(users, items)
        if mood is not None:
            eta += mood[:, None]
        return eta

    def chances(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of items with true predictors [..., H]: class probabilities [..., 3], P(like) [...], P(interact) [...]."""
        s = self.params.scalars
        click, given = sigmoid(eta[..., 0]), sigmoid(eta[..., 1])
        classes = np.stack([1 - click, click * (1 - given), click * given], axis=-1)
        like = (sigmoid(eta[..., 3, None] + np.array(s.like_class, np.float32)) * classes).sum(-1)
        interact = (sigmoid(eta[..., 4, None] + np.array(s.interact_class, np.float32)) * classes).sum(-1)
        return classes, like, interact

    def expected(self, eta: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Expected behaviours float32 [..., B] (in the order of BEHAVIOURS) of items [...] with true predictors [..., H]."""
        classes, like, interact = self.chances(eta)
        place = sigmoid(eta[..., WATCH, None] + _LOGIT_GRID)
        bucket = self.params.item_bucket[items].astype(np.int64)[..., None]
        watch = np.zeros(eta.shape[:-1], np.float32)
        for kind in range(len(CLASSES)):
            watch += classes[..., kind] * self.watch_s(np.array(kind), bucket, place).mean(-1)
        return np.stack([watch, classes[..., 1:].sum(-1), classes[..., 2], like, interact], axis=-1)

    def watch_s(self, kind: np.ndarray, bucket: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Seconds [...] at the quantile `place` in (0, 1) of a response class and a duration bucket (integers)."""
        _, d, q = self._quantiles.shape
        x = place * np.float32(q - 1)
        low = np.minimum(x.astype(np.int64), q - 2)
        cell = (kind * d + bucket) * q + low
        flat = self._quantiles.reshape(-1)
        below = flat.take(cell)
        return below + (x - low).astype(np.float32) * (flat.take(cell + 1) - below)

    def repetition(self, items: np.ndarray) -> np.ndarray:
        """[n]: the share of shown items [n, s] whose tag was shown higher up."""
        tag = self.params.item_tag[items]
        seen = np.zeros(tag.shape, bool)
        for j in range(1, tag.shape[1]):
            seen[:, j] = (tag[:, :j] == tag[:, j, None]).any(axis=1)
        return seen.mean(axis=1, dtype=np.float32)

    def hazard(
        self, users: np.ndarray, satisfaction: np.ndarray, repetition: np.ndarray, disappointment: np.ndarray
    ) -> np.ndarray:
        """The chance [n] to leave after a request, of its means [n] (see params.py)."""
        s = self.params.scalars
        moved = s.leave_offset - s.leave_satisfaction * satisfaction
        moved = moved + s.leave_repetition * repetition + s.leave_disappointment * disappointment
        log_hazard = np.log(s.leave_base) + self.params.user_leave[users] + s.leave_elasticity * moved
        return np.clip(np.exp(log_hazard), HAZARD_LOW, HAZARD_HIGH)


def satisfaction(valid: np.ndarray, like: np.ndarray, interact: np.ndarray) -> np.ndarray:
    """What an item gives, from its true chances: P(valid) + 4 P(like) + 2 P(interact)."""
    return valid + LIKES_COUNT * like + INTERACTIONS_COUNT * interact


def day_number(dt: str) -> int:
    """Days since 1970 of 'YYYY-MM-DD'. Raises InputError."""
    try:
        moment = datetime.strptime(dt, "%Y-%m-%d").replace(tzinfo=UTC)
        if f"{moment:%Y-%m-%d}" != dt:
            raise ValueError(dt)
    except ValueError:
        raise InputError(f"dt: {dt!r} is no date; give YYYY-MM-DD") from None
    return int(moment.timestamp()) // 86_400


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), float32 in, float32 out."""
    return 1 / (1 + np.exp(-x))


class _Tables:
    """The four tables of one side, flat, so that a linear predictor is four gathers."""

    def __init__(self, params: WorldParams, side: str) -> None:
        by_tag, by_duration = getattr(params, f"{side}_user_tag"), getattr(params, f"{side}_user_duration")
        self._user = np.asarray(getattr(params, f"{side}_user"), np.float32) + np.array(
            getattr(params.scalars, f"{side}_intercept"), np.float32
        )
        self._item = np.ascontiguousarray(getattr(params, f"{side}_item"), np.float32)
        self._n_tags, self._n_buckets = by_tag.shape[1], by_duration.shape[1]
        self._by_tag = np.ascontiguousarray(by_tag.reshape(-1, len(HEADS)), np.float32)
        self._by_duration = np.ascontiguousarray(by_duration.reshape(-1, len(HEADS)), np.float32)
        self._tag = params.item_tag.astype(np.int64)
        self._bucket = params.item_bucket.astype(np.int64)

    def eta(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float32 [n, C, H] of items [n, C] for users [n]."""
        column = users[:, None]
        eta = self._item.take(items, axis=0)
        eta += self._by_tag.take(column * self._n_tags + self._tag.take(items), axis=0)
        eta += self._by_duration.take(column * self._n_buckets + self._bucket.take(items), axis=0)
        eta += self._user.take(users, axis=0)[:, None]
        return eta


def _exposure_table(exposure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items in a fixed random order [V], and for each of 2^LUT_BITS equal cells of the distribution the rank of its item.

    Items with less than about 2^-LUT_BITS of the exposure never come up.
    """
    order = np.random.default_rng(20_240_419).permutation(len(exposure))
    edges = np.cumsum(np.asarray(exposure, np.float64)[order])
    cells = (np.arange(2**LUT_BITS) + 0.5) / 2**LUT_BITS * edges[-1]
    return order, np.searchsorted(edges, cells).astype(np.int64)


def _pair_noise(params: WorldParams) -> np.ndarray | None:
    """float32 [2^NOISE_BITS, K] from which every (user, item) reads its own fixed error of the scores, or None."""
    sd = np.array(params.scalars.score_noise, np.float32)
    if not sd.any():
        return None
    return np.random.default_rng(17).standard_normal((2**NOISE_BITS, len(HEADS)), np.float32) * sd
