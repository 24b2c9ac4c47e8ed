"""Sessions of one simulated day: what users ask, what they do with what they are shown, when they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtf.errors import InputError
from mtf.features import RecentHistory
from mtf.world import draws
from mtf.world.params import BEHAVIOURS, HEADS
from mtf.world.world import World, day_number, satisfaction, sigmoid

DAY_S = 86_400
LONGEST_REQUEST_S = 1_500.0
"""A request's items take at most this long, so that no pause inside a session reaches the session gap."""
LEAVE_LANE, PAUSE_LANE, RESPONSE_LANE = 1, 2, 1024
SESSION_START_LANE, MOOD_LANE = 0, 4


@dataclass(frozen=True)
class Observation:
    """n requests. rows: the session of each within the cohort; items: candidates as indices into the world's tables.

    The rest is what a server is sent (`mtf.serving.engine.RankBatch`): user_ids [n], ts_us int64 [n], given float32 [n, F],
    item_ids int64 [n, C], scores float32 [n, C, K].
    """

    rows: np.ndarray
    items: np.ndarray
    user_ids: list[str]
    ts_us: np.ndarray
    given: np.ndarray
    item_ids: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Feedback:
    """What users did with the shown items, each [n, n_shown], which users then left, bool [n], how likely that was by itself,
    [n], and for whom it was bedtime (who leave anyway), bool [n].

    ts_us: when each impression ended. watch_s, duration_s: seconds (duration NaN where unknown). The others: bool.
    """

    item_ids: np.ndarray
    ts_us: np.ndarray
    watch_s: np.ndarray
    duration_s: np.ndarray
    click: np.ndarray
    valid: np.ndarray
    like: np.ndarray
    interact: np.ndarray
    left: np.ndarray
    hazard: np.ndarray
    late: np.ndarray

    def behaviours(self) -> np.ndarray:
        """float32 [n, n_shown, B] in the order of BEHAVIOURS."""
        return np.stack([self.watch_s, self.click, self.valid, self.like, self.interact], axis=-1).astype(np.float32)


class Cohort:
    """One session for each of `users`, `width` of them at a time: as users leave, the next ones come."""

    def __init__(self, world: World, users: np.ndarray, *, dt: str, seed: int, width: int) -> None:
        s, params = world.params.scalars, world.params
        self.world = world
        self.users = np.asarray(users, np.int64)
        self._width = width
        self._key = draws.keys(seed, day_number(dt), 2, np.asarray(params.user_key, np.int64)[self.users])
        day_us = day_number(dt) * DAY_S * 1_000_000
        share = draws.uniform(self._key, np.array(SESSION_START_LANE)).astype(np.float64)
        start_s = 3600 * (s.start_hour_low + (s.start_hour_high - s.start_hour_low) * share)
        self._day_us = day_us
        self._ts_us = day_us + (start_s * 1e6).astype(np.int64)
        # everybody is gone early enough for the session to close on its own day
        self._bedtime_us = day_us + int((DAY_S - world.spec.session_gap_s - LONGEST_REQUEST_S - 60) * 1e6)
        self._step = np.zeros(len(self.users), np.int64)
        circle = draws.keys(seed, day_number(dt), 5, np.asarray(params.user_circle, np.int64)[self.users])
        mood = draws.normal(circle[:, None], MOOD_LANE + np.arange(len(HEADS)))
        self.mood = mood * np.array(s.day_sd, np.float32)
        self._history = RecentHistory(params.history[self.users], rate=s.history_rate)
        self._given = [_source(feature.name, self) for feature in world.spec.given_features]
        self._playing = np.arange(min(width, len(self.users)))
        self._next = len(self._playing)

    @property
    def active(self) -> int:
        """How many sessions are under way; 0 when all have ended."""
        return len(self._playing)

    @property
    def ended(self) -> int:
        """How many sessions have ended."""
        return self._next - len(self._playing)

    def observe(self) -> Observation:
        """The next request of every session under way."""
        rows, world = self._playing, self.world
        users = self.users[rows]
        items = world.candidates(self._request_key(rows))
        return Observation(
            rows=rows,
            items=items,
            user_ids=world.user_ids[users].tolist(),
            ts_us=self._ts_us[rows],
            given=np.stack([column(rows) for column in self._given], axis=1).astype(np.float32),
            item_ids=np.asarray(world.params.item_key, np.int64).take(items),
            scores=world.scores(users, items),
        )

    def respond(self, seen: Observation, shown: np.ndarray) -> Feedback:
        """Show the candidates `shown` int [n, n_shown] (best first); advance time, histories and who is left."""
        world, s, rows = self.world, self.world.params.scalars, seen.rows
        users, key = self.users[rows], self._request_key(rows)
        items = np.take_along_axis(seen.items, shown, 1)
        eta = world.truth(users, items, self.mood[rows])
        # draws belong to the candidate, not to its position: the same candidate gets the same response anywhere
        u = draws.uniform(key[:, None, None], RESPONSE_LANE + 8 * shown[..., None] + np.arange(len(HEADS)))
        classes, p_like, p_interact = world.chances(eta)
        click = u[..., 0] >= classes[..., 0]
        valid = click & (u[..., 1] < sigmoid(eta[..., 1]))
        kind = click.astype(np.int64) + valid
        place = sigmoid(np.log(u[..., 2] / (1 - u[..., 2])) + eta[..., 2])
        watch = np.minimum(world.watch_s(kind, world.params.item_bucket[items].astype(np.int64), place), world.spec.watch_cap_s)
        like = u[..., 3] < sigmoid(eta[..., 3] + np.array(s.like_class, np.float32)[kind])
        interact = u[..., 4] < sigmoid(eta[..., 4] + np.array(s.interact_class, np.float32)[kind])
        spent = np.minimum(np.cumsum(watch, axis=1, dtype=np.float64), LONGEST_REQUEST_S)
        impression_ts = seen.ts_us[:, None] + (spent * 1e6).astype(np.int64)
        left, hazard, late = self._advance(
            rows, users, key, impression_ts[:, -1], items, satisfaction(classes[..., 2], p_like, p_interact), kind
        )
        feedback = Feedback(
            item_ids=np.take_along_axis(seen.item_ids, shown, 1),
            ts_us=impression_ts,
            watch_s=watch,
            duration_s=world.params.item_duration_s.take(items),
            click=click,
            valid=valid,
            like=like,
            interact=interact,
            left=left,
            hazard=hazard,
            late=late,
        )
        self._history.update(rows, feedback.behaviours().mean(axis=1))
        return feedback

    def _advance(
        self,
        rows: np.ndarray,
        users: np.ndarray,
        key: np.ndarray,
        end_us: np.ndarray,
        items: np.ndarray,
        pleasure: np.ndarray,
        kind: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Who leaves, how likely that was, and for whom it is bedtime, each [n].

        Sets the others' next request, and the next users in free places.
        """
        s = self.world.params.scalars
        disappointment = (kind == 1).mean(axis=1, dtype=np.float32)
        hazard = self.world.hazard(users, pleasure.mean(axis=1), self.world.repetition(items), disappointment)
        left = draws.uniform(key, np.array(LEAVE_LANE)) < hazard
        pause = s.pause_low_s + (s.pause_high_s - s.pause_low_s) * draws.uniform(key, np.array(PAUSE_LANE)).astype(np.float64)
        self._ts_us[rows] = end_us + (pause * 1e6).astype(np.int64)
        late = self._ts_us[rows] > self._bedtime_us
        left |= late
        self._step[rows] += 1
        staying = rows[~left]
        coming = np.arange(self._next, min(self._next + self._width - len(staying), len(self.users)))
        self._next += len(coming)
        self._playing = np.concatenate([staying, coming])
        return left, hazard, late

    def _request_key(self, rows: np.ndarray) -> np.ndarray:
        return draws.keys(self._key[rows], self._step[rows])


def _source(name: str, cohort: Cohort) -> Callable[[np.ndarray], np.ndarray]:
    """The function of sessions' rows that gives a feature which a caller sends. Raises InputError on an unknown name."""
    params = cohort.world.params
    if name in params.profile_names:
        column = params.profile[:, params.profile_names.index(name)][cohort.users]
        return lambda rows: column[rows]
    if name in ("hour_sin", "hour_cos"):
        turn = np.sin if name == "hour_sin" else np.cos
        return lambda rows: turn((cohort._ts_us[rows] - cohort._day_us) * (2e-6 * np.pi / DAY_S))
    if name == "request_number":
        return lambda rows: np.log1p(cohort._step[rows])
    kind, _, behaviour = name.partition(":")
    if kind == "recent" and behaviour in BEHAVIOURS:
        index = BEHAVIOURS.index(behaviour)
        return lambda rows: cohort._history.value[rows, index]
    raise InputError(f"world: feature {name!r} of spec.json is none that this world's callers send; remove it from the spec")
