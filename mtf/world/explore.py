"""Days of exploration as transitions in memory, without logs: what studies train on, ten times faster than the whole way.

The same play, ranking and rewards as `simulate` -> `transitions`, for sessions of one arm; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from mtf.errors import InputError
from mtf.exploration.noise import Noise, sample
from mtf.features import build_state, moved_by_action
from mtf.fusion import rank
from mtf.policy import Policy
from mtf.transitions.table import TransitionSet, Users, is_gate_user
from mtf.world.params import BEHAVIOURS
from mtf.world.world import World, day_number


class Exploring:
    """A policy with noise on top, for `true_value`: what a day of exploration pays."""

    def __init__(self, policy: Policy, half_width: float, noise: Noise = "box", *, seed: int) -> None:
        self.policy, self.half_width, self.noise = policy, half_width, noise
        self.rng = np.random.default_rng(seed)

    def act(self, states: np.ndarray) -> np.ndarray:
        """float32 [n, S] -> [n, A]: another draw each time."""
        return sample(self.rng, self.policy.act(states), self.half_width, self.noise)[2]


def explore(
    world: World,
    policy: Policy,
    users: int,
    dt: str,
    seed: int,
    half_width: float,
    *,
    noise: Noise = "box",
    of: Users = "all",
    candidates: bool = True,
    width: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> TransitionSet:
    """One session each of `users` users, all of whom explore around `policy`; sorted by (session, step).

    noise: `box` uniform within +-half_width; `gaussian` with that standard deviation; `uniform` over the whole action space.
    lower and upper are the ends of what may be drawn. of: keep only these users (the others are not played at all).
    candidates: keep all candidates' scores. Raises InputError.
    """
    if not 0 < half_width <= 1:
        raise InputError(f"half_width {half_width}; keep it above 0 and at most 1")
    chosen = world.sample_users(users, dt, seed)
    if of != "all":
        chosen = chosen[[is_gate_user(user) == (of == "gate") for user in world.user_ids[chosen]]]
    rng = np.random.default_rng([seed, day_number(dt), 17])
    cohort = world.cohort(chosen, dt=dt, seed=seed, width=width)
    parts: dict[str, list[np.ndarray]] = {}
    spec = world.spec
    while cohort.active:
        seen = cohort.observe()
        state = build_state(spec, seen.given, seen.scores)
        center = policy.act(state)
        lower, upper, action = sample(rng, center, half_width, noise)
        shown = rank(spec, action, seen.scores)
        feedback = cohort.respond(seen, shown)
        rows = {
            "session": seen.rows,
            "ts": seen.ts_us,
            "state": state,
            "center": center,
            "lower": lower,
            "upper": upper,
            "action": action,
            "behaviour": feedback.behaviours().sum(axis=1, dtype=np.float64),
        }
        if candidates:
            rows["scores"] = seen.scores.astype(np.float16)
        for name, value in rows.items():
            parts.setdefault(name, []).append(value)
        if progress is not None:
            progress(cohort.ended)
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    order = np.lexsort((arrays["ts"], arrays["session"]))
    return _transitions(world, policy, chosen, dt, {name: value[order] for name, value in arrays.items()})


def join(days: list[TransitionSet]) -> TransitionSet:
    """The rows of several days, sessions one after the other. The days are of one world."""
    users, codes = np.unique(np.concatenate([day.user_ids[day.user] for day in days]), return_inverse=True)
    offset = np.cumsum([0, *(day.n_sessions for day in days)])
    merged: dict[str, object] = {"user": codes.astype(np.int64), "user_ids": users}
    merged["session"] = np.concatenate([day.session + o for day, o in zip(days, offset, strict=False)])
    for name in _PER_ROW:
        merged[name] = np.concatenate([getattr(day, name) for day in days])
    chunks = [day.cand_scores for day in days]
    merged["cand_scores"] = (
        pa.chunked_array([c for chunk in chunks if chunk is not None for c in chunk.chunks]) if None not in chunks else None
    )
    first = days[0]
    return TransitionSet(value_mask=first.value_mask, spec=first.spec, columns=first.columns, **merged)  # type: ignore[arg-type]


_PER_ROW = (
    "step", "state", "next_state", "action", "center", "lower", "upper", "next_center", "next_lower", "next_upper", "reward",
    "terminal", "truncated", "exploring", "policy_sha", "arm", "dt", "fallback", "ts", "behaviour",
)  # fmt: skip


def _transitions(world: World, policy: Policy, chosen: np.ndarray, dt: str, a: dict[str, np.ndarray]) -> TransitionSet:
    spec, n = world.spec, len(a["ts"])
    session = np.unique(a["session"], return_inverse=True)[1].astype(np.int64)
    last = np.append(session[1:] != session[:-1], True)
    starts = np.flatnonzero(np.diff(session, prepend=-1))
    following = np.where(last, 0, np.minimum(np.arange(n) + 1, n - 1))

    def after(values: np.ndarray) -> np.ndarray:
        return np.where(last[:, None], np.float32(0), values[following]).astype(np.float32)

    heads = [sum(w * a["behaviour"][:, BEHAVIOURS.index(b)] for b, w in head.weights.items()) for head in spec.reward_heads]
    user_ids, user = np.unique(world.user_ids[chosen[a["session"]]], return_inverse=True)
    scores = a.get("scores")
    return TransitionSet(
        session=session,
        step=np.arange(n) - starts[session],
        user=user.astype(np.int64),
        user_ids=user_ids,
        state=a["state"],
        next_state=after(a["state"]),
        action=a["action"],
        center=a["center"],
        lower=a["lower"],
        upper=a["upper"],
        next_center=after(a["center"]),
        next_lower=after(a["lower"]),
        next_upper=after(a["upper"]),
        reward=np.stack(heads, axis=1).astype(np.float32),
        terminal=last,
        truncated=np.zeros(n, bool),
        exploring=np.ones(n, bool),
        policy_sha=np.full(n, policy.sha, object),
        arm=np.full(n, "explore", object),
        dt=np.full(n, dt, object),
        fallback=np.full(n, None, object),
        ts=a["ts"],
        value_mask=~moved_by_action(spec),
        spec=spec,
        behaviour=a["behaviour"].astype(np.float32),
        cand_scores=None if scores is None else _bytes(scores),
        columns=("ts",),
    )


def _bytes(scores: np.ndarray) -> pa.ChunkedArray:
    """float16 [n, C, K] as one binary value a row."""
    width = scores.shape[1] * scores.shape[2] * 2
    rows = max((2**31 - 1) // width, 1)
    chunks = []
    for start in range(0, len(scores), rows):
        part = np.ascontiguousarray(scores[start : start + rows])
        offsets = np.arange(len(part) + 1, dtype=np.int32) * width
        chunks.append(
            pa.Array.from_buffers(pa.binary(), len(part), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(part.tobytes())])
        )
    return pa.chunked_array(chunks, pa.binary())
