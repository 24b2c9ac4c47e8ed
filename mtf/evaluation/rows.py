"""Which sessions may speak: explored around the deployed policy, closed, started early enough, without a fallback."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.logs.days import day_bounds
from mtf.transitions.table import TransitionSet

LATE_QUANTILE = 0.99
DEFAULT_GAP_S = 1800.0
ALIKE = 1e-6
CUT_ALLOWED = 0.01


@dataclass(frozen=True)
class Selection:
    """The sessions that the estimators read, and what became of the others.

    drops: sessions left out, by the first reason that applies. Every session is kept or dropped whole.
    on_policy: sessions of the same policy that did not explore (its own arm), for a check of the level; may be empty, and is
        where more than a hundredth of them were cut: the mean of those that ended is that of the short ones.
    policy_sha: the policy around which the kept sessions explored; None where the data does not say.
    reason: why nothing is left, or why it says nothing, in words; None where it may speak.
    """

    data: TransitionSet
    on_policy: TransitionSet
    drops: dict[str, int]
    policy_sha: str | None
    reason: str | None


def select(data: TransitionSet, deployed_sha: str | None) -> Selection:
    """Select from `data` the sessions explored around the policy `deployed_sha` (None: the one that explored last).

    Data without policy_sha is taken to be of one policy. Dropped: sessions without exploration; explored around another
    policy; partly explored; with a fallback answer; and those that started so late that of their kind only the short ones
    have closed: within the 99 % quantile of the sessions' duration before the last moment at which a session had to stop.
    """
    starts = data.starts
    known = data.policy_sha != None  # noqa: E711  elementwise on an object array
    sha = _explored_sha(data, known) if deployed_sha is None else deployed_sha
    any_explored = _any(data.exploring, starts)
    partly = any_explored & _any(~data.exploring, starts)
    other = _any(known & (data.policy_sha != sha), starts) if known.any() else np.zeros(len(starts), bool)
    fallback = _any(data.fallback.astype(bool), starts)
    late = _late(data, starts)

    reasons = {
        "not_explored": ~any_explored,
        "other_policy": other,
        "partly_explored": partly,
        "fallback": fallback,
        "late_start": late,
    }
    left = np.ones(len(starts), bool)
    drops = {}
    for name, hit in reasons.items():
        drops[name] = int((left & hit).sum())
        left &= ~hit
    ended = data.terminal[np.append(starts[1:], len(data)) - 1] if len(starts) else left
    own = ~any_explored & ~other & ~fallback & ~late
    own &= ended & ((own & ~ended).sum() <= CUT_ALLOWED * own.sum())
    kept = data.select(left[data.session])
    reason = _alike(kept) if left.any() else _why_empty(drops, sha, known.any())
    return Selection(
        data=kept,
        on_policy=data.select(own[data.session]),
        drops=drops,
        policy_sha=sha if known.any() else None,
        reason=reason,
    )


def _explored_sha(data: TransitionSet, known: np.ndarray) -> str | None:
    rows = np.flatnonzero(data.exploring & known)
    return str(data.policy_sha[rows[np.argmax(data.ts[rows])]]) if len(rows) else None


def _any(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """bool [s]: is it True of any row of the session?"""
    return np.logical_or.reduceat(rows, starts) if len(starts) else np.zeros(0, bool)


def _late(data: TransitionSet, starts: np.ndarray) -> np.ndarray:
    if "ts" not in data.columns or not len(starts):
        return np.zeros(len(starts), bool)
    first = data.ts[starts]
    duration = data.ts[np.append(starts[1:], len(data)) - 1] - first
    return first > _last_stop(data) - np.quantile(duration, LATE_QUANTILE)


def _last_stop(data: TransitionSet) -> int:
    """Microseconds: a session whose last request came later is not in the data yet.

    A day holds the sessions that closed on it, a gap after their last request; of rows without days the last one speaks.
    """
    days = [d for d in data.dt if d is not None]
    if not days:
        return int(data.ts.max())
    gap = data.spec.session_gap_s if data.spec is not None else DEFAULT_GAP_S
    return day_bounds(max(days))[1] - round(gap * 1e6)


def _alike(data: TransitionSet) -> str | None:
    """Why rewards tell no policy from another, None where they differ: noise of the last digit would pass for a lift."""
    total = np.add.reduceat(data.total_reward.astype(np.float64), data.starts)
    if np.ptp(total) > ALIKE * np.abs(total).max():
        return None
    return (
        f"each of {len(total)} sessions earned {total[0]:.6g}, so that no policy can be told from another; "
        "check the reward's weights and the feedback"
    )


def _why_empty(drops: dict[str, int], sha: str | None, has_sha: bool) -> str:
    total = sum(drops.values())
    if drops["not_explored"] == total:
        return (
            f"none of the {total} sessions of gate users explored (no row has a box of non-zero width), so the data says nothing "
            "about other actions; log a day with exploration"
        )
    if has_sha and drops["other_policy"]:
        return (
            f"none of the {total} sessions of gate users explored around the baseline {str(sha)[:12]}; explore a day around it, "
            "or name the policy that did explore as the baseline"
        )
    found = ", ".join(f"{name} {count}" for name, count in drops.items() if count)
    return f"none of the {total} sessions of gate users is usable ({found})"
