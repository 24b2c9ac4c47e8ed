"""Levels of a world that only show in play: rates under production's ranking, and how long sessions last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtf.policy import bootstrap_policy
from mtf.world.params import HEADS, WorldParams
from mtf.world.play import play
from mtf.world.world import World

DAY = "2026-05-01"
SEED = 990_001
SETTLED = 0.003


@dataclass(frozen=True)
class Levels:
    """Mean rates of the shown items under the start, by expectation over responses, and requests a session."""

    click: float
    valid: float
    watch_s: float
    like: float
    interact: float
    requests: float
    mean_hazard: float


def measure(params: WorldParams, sessions: int = 1500) -> Levels:
    """Play `sessions` sessions under the spec's start.

    The number of requests a session is estimated as the share of sessions that bedtime does not end, over the mean hazard
    of requests (the hazards of a session add up, in expectation, to the chance that it ends by them): less noisy than counting.
    """
    world = World(params)
    users = world.sample_users(min(sessions, world.n_users), DAY, SEED)
    cohort = world.cohort(users, dt=DAY, seed=SEED, width=min(2048, len(users)))
    rows, hazards, cut = [], [], 0.0
    for seen, _, shown, feedback in play(cohort, bootstrap_policy(world.spec)):
        items = np.take_along_axis(seen.items, shown, 1)
        rows.append(world.expected(world.truth(users[seen.rows], items, cohort.mood[seen.rows]), items).reshape(-1, 5))
        hazards.append(feedback.hazard)
        cut += float((1 - feedback.hazard[feedback.late]).sum(dtype=np.float64)) / len(users)
    watch, click, valid, like, interact = np.concatenate(rows).mean(axis=0, dtype=np.float64).tolist()
    mean_hazard = float(np.concatenate(hazards).mean(dtype=np.float64))
    return Levels(click, valid, watch, like, interact, (1 - cut) / mean_hazard, mean_hazard)


def calibrate_leaving(params: WorldParams, *, rounds: int = 12, sessions: int = 24_000) -> WorldParams:
    """`leave_offset` such that sessions under the start last 1 / `leave_base` requests. Without elasticity: unchanged.

    Steps until they do within SETTLED, `rounds` at most: hazards are bounded and bedtime ends some sessions, so a step
    moves less than it aims at.
    """
    for _ in range(rounds if params.scalars.leave_elasticity else 0):
        level = measure(params, sessions)
        if abs(np.log(level.requests * params.scalars.leave_base)) < SETTLED:
            break
        params = _leaving_step(params, 1 / level.requests)
    return params


def calibrate_rates(
    params: WorldParams,
    targets: dict[str, float],
    *,
    rounds: int = 5,
    sessions: int = 3000,
    progress: Callable[[str], None] = lambda _: None,
) -> WorldParams:
    """Intercepts such that the shown items under the start have the rates `targets` {click, valid, watch_s, like, interact};
    the leaving is calibrated with them, by the hazard alone (bedtime ends 1 to 2 % of the sessions before it does).
    `watch_s` is a mean in seconds. The last of the `rounds` plays three times as many.
    """
    for number in range(rounds):
        progress(f"rates, pass {number + 1} of {rounds}")
        level = measure(params, sessions if number + 1 < rounds else 3 * sessions)
        intercept = list(params.scalars.true_intercept)
        intercept[0] += 1.3 * (_logit(targets["click"]) - _logit(level.click))
        intercept[1] += 1.3 * (_logit(targets["valid"] / targets["click"]) - _logit(level.valid / level.click))
        intercept[2] += 1.2 * float(np.log(targets["watch_s"] / level.watch_s))
        for name in ("like", "interact"):
            intercept[HEADS.index(name)] += _logit(targets[name]) - _logit(getattr(level, name))
        params = params.with_scalars(true_intercept=tuple(intercept))
        if params.scalars.leave_elasticity:
            params = _leaving_step(params, level.mean_hazard)
    progress("leaving")
    if params.scalars.leave_elasticity:
        params = _leaving_step(params, measure(params, 3 * sessions).mean_hazard)
    return params


def _leaving_step(params: WorldParams, rate: float) -> WorldParams:
    """One step from leaving at `rate` to `leave_base`."""
    s = params.scalars
    return params.with_scalars(leave_offset=s.leave_offset + float(np.log(s.leave_base / rate)) / s.leave_elasticity)


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))
