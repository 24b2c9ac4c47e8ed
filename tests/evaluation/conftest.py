"""A tiny recommender with closed-form slopes: rewards move with the action, sessions end at a rate that moves with it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mtf.policy import Lineage, Policy, constant_policy
from mtf.transitions.table import TransitionSet

GAMMA = 0.9


def policy_at(action: np.ndarray, state_width: int = 3) -> Policy:
    """The constant policy."""
    return constant_policy(action, state_width, spec=None, lineage=Lineage(algorithm="test"))


def make_sessions(
    sessions: int,
    *,
    seed: int,
    slope: np.ndarray,
    bend: float = 0.0,
    leave: float = 0.0,
    half_width: float = 0.3,
    end: float = 0.15,
    longest: int = 400,
) -> TransitionSet:
    """Sessions explored around 0, one a user: `E r = exp(.5 s_0) (1 + slope . a - bend |a|^2)`, ended with chance
    `end (1 - leave slope . a)` after each step, cut after `longest`."""
    rng = np.random.default_rng(seed)
    width = len(slope)
    trait = rng.normal(size=(sessions, 3)).astype(np.float32)
    alive = np.arange(sessions)
    columns: list[tuple[np.ndarray, ...]] = []
    for step in range(longest):
        if not len(alive):
            break
        action = rng.uniform(-half_width, half_width, (len(alive), width)).astype(np.float32)
        gain = action @ slope
        mean = np.exp(0.5 * trait[alive, 0]) * np.maximum(1 + gain - bend * (action**2).sum(axis=1), 0.01)
        reward = rng.gamma(1.0, mean)
        ended = rng.random(len(alive)) < np.clip(end * (1 - leave * gain), 0, 1)
        columns.append((alive, np.full(len(alive), step), action, reward, ended))
        alive = alive[~ended]
    user, step, action, reward, ended = (np.concatenate([c[i] for c in columns]) for i in range(5))
    order = np.lexsort((step, user))
    user, step, action, reward, ended = (v[order] for v in (user, step, action, reward, ended))
    last = np.append(user[1:] != user[:-1], True)
    n = len(user)
    nothing = np.full(n, None, object)
    zeros = np.zeros_like(action)
    low, high = np.full_like(action, -half_width), np.full_like(action, half_width)
    return TransitionSet(
        session=np.cumsum(np.diff(user, prepend=-1) != 0) - 1,
        step=step,
        user=user,
        user_ids=np.arange(sessions).astype(str).astype(object),
        state=trait[user],
        next_state=np.where(ended[:, None], 0, trait[user]).astype(np.float32),
        action=action,
        center=zeros,
        lower=low,
        upper=high,
        next_center=zeros,
        next_lower=low,
        next_upper=high,
        reward=reward[:, None].astype(np.float32),
        terminal=ended,
        truncated=last & ~ended,
        exploring=np.full(n, half_width > 0),
        policy_sha=nothing,
        arm=nothing,
        dt=nothing,
        fallback=nothing,
        ts=np.arange(n),
        value_mask=np.ones(3, bool),
    )


def relabel(data: TransitionSet, **columns: object) -> TransitionSet:
    """`data` with some columns replaced; a scalar fills the column."""
    full = {name: value if isinstance(value, np.ndarray) else np.full(len(data), value) for name, value in columns.items()}
    return replace(data, **full)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def world() -> Callable[..., TransitionSet]:
    """`make_sessions`."""
    return make_sessions


@pytest.fixture(scope="session")
def constant() -> Callable[..., Policy]:
    """`policy_at`."""
    return policy_at


@pytest.fixture(scope="session")
def changed() -> Callable[..., TransitionSet]:
    """`relabel`."""
    return relabel
