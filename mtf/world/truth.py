"""The true value of a policy, by simulation with common random numbers. For reports alone: no log holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mtf.world.params import BEHAVIOURS
from mtf.world.play import Acts, play
from mtf.world.world import World

DAY = "2026-06-01"


@dataclass(frozen=True)
class Truth:
    """Session totals of a policy. mean, se: of the undiscounted reward; discounted: with the spec's gamma.

    metrics: means a session of reward, valid (items watched for over 10 s), duration (seconds watched), like, interact,
    click, requests. sessions float64 [n]: each session's reward, in the order of the users, and sessions_discounted the
    same with gamma; two policies with the same seed, day and number of users meet the same users, so differences of these
    are paired.
    """

    mean: float
    se: float
    discounted: float
    discounted_se: float
    metrics: dict[str, float]
    sessions: np.ndarray
    sessions_discounted: np.ndarray

    def lift_over(self, other: Truth, *, discounted: bool = False) -> tuple[float, float]:
        """(V / V_other - 1, standard error) by paired sessions. Raises ValueError where the two met different users."""
        a, b = (t.sessions_discounted if discounted else t.sessions for t in (self, other))
        if len(a) != len(b):
            raise ValueError(f"{len(a)} sessions against {len(b)}: use the same users, day and seed")
        lift = float(a.mean() / b.mean() - 1)
        return lift, float((a - (1 + lift) * b).std(ddof=1) / np.sqrt(len(a)) / b.mean())


def true_value(
    world: World,
    policy: Acts,
    n_users: int,
    seed: int,
    *,
    dt: str = DAY,
    width: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> Truth:
    """Play one session of each of `n_users` users under `policy`; `progress` is told how many have ended.

    Give seeds that no log was made with: the truth is then out of sample.
    """
    users = world.sample_users(n_users, dt, seed)
    cohort = world.cohort(users, dt=dt, seed=seed, width=width)
    total, discounted = np.zeros(n_users), np.zeros(n_users)
    length = np.zeros(n_users, np.int64)
    behaviours = np.zeros((n_users, len(BEHAVIOURS)))
    weights = reward_weights(world)
    for seen, _, _, feedback in play(cohort, policy):
        sums = feedback.behaviours().sum(axis=1, dtype=np.float64)
        reward = sums @ weights
        total[seen.rows] += reward
        discounted[seen.rows] += world.spec.gamma ** length[seen.rows] * reward
        behaviours[seen.rows] += sums
        length[seen.rows] += 1
        if progress is not None:
            progress(cohort.ended)
    means = dict(zip(BEHAVIOURS, behaviours.mean(axis=0).tolist(), strict=True))
    metrics = {"reward": float(total.mean()), "duration": means.pop("watch"), "requests": float(length.mean()), **means}
    return _of(total, discounted, metrics)


def pooled(draws: Sequence[Truth]) -> Truth:
    """One truth of a policy's several draws of as many users: with k of them its errors are those of one over the root of k.

    A user may come in several draws: what they say is of this world's users, not of others that it might have had.
    """
    metrics = {key: float(np.mean([draw.metrics[key] for draw in draws])) for key in draws[0].metrics}
    total, discounted = (np.concatenate([getattr(d, k) for d in draws]) for k in ("sessions", "sessions_discounted"))
    return _of(total, discounted, metrics)


def _of(total: np.ndarray, discounted: np.ndarray, metrics: dict[str, float]) -> Truth:
    root = np.sqrt(len(total))
    return Truth(
        mean=float(total.mean()),
        se=float(total.std(ddof=1) / root),
        discounted=float(discounted.mean()),
        discounted_se=float(discounted.std(ddof=1) / root),
        metrics=metrics,
        sessions=total,
        sessions_discounted=discounted,
    )


def reward_weights(world: World) -> np.ndarray:
    """float64 [B]: the total reward's weight of each of BEHAVIOURS."""
    heads = world.spec.reward_heads
    return np.array([sum(head.weights.get(behaviour, 0.0) for head in heads) for behaviour in BEHAVIOURS])
