"""What a world is: how it plays against the published figures, and what each figure rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.policy import bootstrap_policy
from mtf.world.headroom import Headroom
from mtf.world.params import ARRAYS, BEHAVIOURS, Label, Scalars, WorldParams
from mtf.world.play import play
from mtf.world.world import World

PLAY_DAYS = tuple(f"2026-05-{day:02d}" for day in range(2, 11))
PLAY_SEED = 660_001
SPREAD_ROWS = 2
"""Impressions a user and day behind the users' own rates: with nine days 18 a user, as many as the published ones rest on."""


@dataclass(frozen=True)
class Figure:
    """A figure of play under the start beside its published value. `holds`: within the relative tolerance."""

    name: str
    played: float
    published: float
    tolerance: float
    source: str

    @property
    def holds(self) -> bool:
        """Is the played figure within the tolerance of the published one?"""
        return abs(self.played - self.published) <= self.tolerance * abs(self.published)


@dataclass(frozen=True)
class Played:
    """Play under the start, on nine days.

    impressions float32 [n, B], in the order of BEHAVIOURS, of the first day. session_length int64 [u]: requests of that day's
    sessions. user_click [u]: the users' own click rates, SPREAD_ROWS impressions a day.
    """

    impressions: np.ndarray
    session_length: np.ndarray
    user_click: np.ndarray

    def figures(self) -> dict[str, float]:
        """Means an impression, play time, session length, correlations, spread of users."""
        watch, click, valid, like, interact = self.impressions.T
        low, middle, high = np.quantile(self.user_click, [0.1, 0.5, 0.9])
        return {
            "click": float(click.mean()),
            "valid": float(valid.mean()),
            "like": float(like.mean()),
            "interact": float(interact.mean()),
            "watch_s": float(watch.mean(dtype=np.float64)),
            "watch_median_s": float(np.median(watch)),
            "watch_p90_s": float(np.quantile(watch, 0.9)),
            "requests_per_session": float(self.session_length.mean()),
            "corr_click_valid": float(np.corrcoef(click, valid)[0, 1]),
            "corr_click_like": float(np.corrcoef(click, like)[0, 1]),
            "corr_valid_like": float(np.corrcoef(valid, like)[0, 1]),
            "user_click_p10": float(low),
            "user_click_p50": float(middle),
            "user_click_p90": float(high),
        }


def played(world: World, users: int) -> Played:
    """Play one session a day of `users` users (at most the world's) under the start; one in four of them on all nine days."""
    everybody = world.sample_users(min(users, world.n_users), PLAY_DAYS[0], PLAY_SEED)
    regulars = len(everybody[: max(users // 4, 1)])
    click, rng = np.zeros(regulars), np.random.default_rng(PLAY_SEED)
    first: tuple[np.ndarray, np.ndarray] | None = None
    for day in PLAY_DAYS:
        session, behaviours = _play_day(world, everybody if first is None else everybody[:regulars], day)
        if first is None:
            first = session, behaviours
        chosen = np.repeat(session, world.spec.n_shown)
        order = np.lexsort((rng.random(len(chosen)), chosen))
        start = np.searchsorted(chosen[order], np.arange(regulars))
        flat = behaviours.reshape(-1, len(BEHAVIOURS))[order, BEHAVIOURS.index("click")]
        click += sum(flat[start + k] for k in range(SPREAD_ROWS))
    assert first is not None
    # shares of 18 are steps of .056; the published users differ in their number of rows, and so do not step
    steps = rng.uniform(-0.5, 0.5, regulars)
    return Played(
        impressions=first[1].reshape(-1, len(BEHAVIOURS)),
        session_length=np.bincount(first[0], minlength=len(everybody)),
        user_click=(click + steps) / (SPREAD_ROWS * len(PLAY_DAYS)),
    )


def _play_day(world: World, users: np.ndarray, day: str) -> tuple[np.ndarray, np.ndarray]:
    """The session int64 [m] of each request, and behaviours float32 [m, n_shown, B]."""
    cohort = world.cohort(users, dt=day, seed=PLAY_SEED, width=2048)
    parts = [(seen.rows, feedback.behaviours()) for seen, _, _, feedback in play(cohort, bootstrap_policy(world.spec))]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def compare(world: World, figures: dict[str, float]) -> list[Figure]:
    """The played figures that the world's folder has a target for."""
    rows = []
    for name, target in world.params.targets.items():
        if name in figures:
            rows.append(Figure(name, figures[name], float(target["value"]), float(target["tolerance"]), str(target["source"])))
    return rows


def provenance(params: WorldParams) -> dict[Label, list[tuple[str, str, str]]]:
    """{label: [(name, value or shape, source)]} of every scalar and array."""
    table: dict[Label, list[tuple[str, str, str]]] = {"learned": [], "borrowed": [], "assumed": []}
    for name in (*Scalars.__struct_fields__, *ARRAYS):
        source = params.sources[name]
        if name in ARRAYS:
            value = "x".join(map(str, getattr(params, name).shape))
        else:
            scalar = getattr(params.scalars, name)
            value = ", ".join(f"{x:.3g}" for x in scalar) if isinstance(scalar, tuple) else f"{scalar:.4g}"
        table[source.label].append((name, value, source.text))
    return table


def headroom_lines(found: Headroom) -> list[str]:
    """The headroom as text: lifts with 95 % intervals, undiscounted and discounted."""
    lines = []
    names = {"global": "best global weights over the start", "linear": "best linear policy over the start"}
    names["personal"] = "best linear policy over the best global weights"
    for key, name in names.items():
        intervals = []
        for lift, error in (found.lifts()[key], found.lifts(discounted=True)[key]):
            intervals.append(f"{lift:+7.2%} [{lift - 1.96 * error:+.2%}, {lift + 1.96 * error:+.2%}]")
        lines.append(f"{name:<50} {'   '.join(intervals)}")
    return lines
