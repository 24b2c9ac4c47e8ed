"""The arrays that every estimator reads: steps of sessions, positions of action, target and deployed policy in the box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf import box
from mtf.policy import Policy
from mtf.transitions.table import TransitionSet

DEFAULT_GAMMA = 0.9
VARIED_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Steps:
    """n steps in s sessions of u users, then m states after which nothing was logged (a cut, not an end).

    state [n + m, S]; place [n + m]: the step's number; successor int64 [n]: where the next state lies in `state`, -1 where
    the session ended; session, user int64 [n]; starts int64 [s]; discount float64 [n]: gamma^t from the session's first
    step; reward float64 [n].
    x [n, A]: position of the logged action in its box; y, y0 [n + m, A]: of the target and of the deployed policy, clipped.
    varied bool [A]: dimensions that the box varied; value_mask bool [S].
    """

    state: np.ndarray
    place: np.ndarray
    successor: np.ndarray
    session: np.ndarray
    user: np.ndarray
    starts: np.ndarray
    discount: np.ndarray
    reward: np.ndarray
    x: np.ndarray
    y: np.ndarray
    y0: np.ndarray
    varied: np.ndarray
    value_mask: np.ndarray
    gamma: float

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def session_user(self) -> np.ndarray:
        """int64 [s]: the user of each session."""
        return self.user[self.starts]

    @property
    def cut(self) -> np.ndarray:
        """bool [n]: last steps of sessions that were cut with a real next state."""
        last = np.append(np.diff(self.session) > 0, True)
        return np.asarray(last & (self.successor >= 0))

    @property
    def cut_sessions(self) -> int:
        """Sessions that were cut with a real next state."""
        return int(self.cut.sum())

    def per_session(self, values: np.ndarray) -> np.ndarray:
        """Sums float64 [s] (or [s, k]) of `values` [n] (or [n, k])."""
        return np.add.reduceat(values, self.starts, axis=0)

    def next_values(self, values: np.ndarray) -> np.ndarray:
        """`values` [n + m, ...] at each step's next state, 0 where the session ended."""
        found = values[np.maximum(self.successor, 0)]
        return np.where((self.successor >= 0).reshape(-1, *[1] * (values.ndim - 1)), found, 0.0)

    def returns(self, value: np.ndarray) -> np.ndarray:
        """Realised return-to-go float64 [n, ...]; `value` [n + m, ...] is what a cut session is worth where it was cut."""
        out = np.broadcast_to(self.reward.reshape(-1, *[1] * (value.ndim - 1)), (len(self), *value.shape[1:])).copy()
        ends = np.append(self.starts[1:], len(self)) - 1
        lengths = ends - self.starts + 1
        out[ends] += self.gamma * self.next_values(value)[ends]
        for back in range(1, int(lengths.max(initial=1))):
            rows = (ends - back)[lengths > back]
            out[rows] += self.gamma * out[rows + 1]
        return out


@dataclass(frozen=True)
class Coverage:
    """Where the target's actions lie.

    states: share of states with any dimension outside the logged box; dims [A]: per dimension.
    deployed_off: share of states where the baseline's action is not the centre that the rows logged.
    """

    states: float
    dims: np.ndarray
    deployed_off: float


def make_steps(data: TransitionSet, target: Policy, deployed: Policy | None) -> tuple[Steps, Coverage]:
    """Arrays of `data` for `target` against `deployed` (None: the centre that the rows logged).

    Raises InputError where a policy's widths or its spec are not the data's.
    """
    for name, policy in (("policy", target), ("baseline", deployed)):
        if policy is not None:
            data.require_fit(f"{name}:", policy, "evaluate it on the data of its own spec")
    n = len(data)
    gamma = data.spec.gamma if data.spec is not None else DEFAULT_GAMMA
    following = np.append(data.session[1:] == data.session[:-1], False)
    following[:-1] &= (data.next_state[:-1] == data.state[1:]).all(axis=1) | data.terminal[:-1]
    tails = np.flatnonzero(~following & ~data.terminal)
    successor = np.where(following & ~data.terminal, np.arange(1, n + 1), -1)
    successor[tails] = n + np.arange(len(tails))
    starts = data.starts
    place = np.arange(n) - starts[data.session]

    center = np.concatenate([data.center, data.next_center[tails]])
    lower = np.concatenate([data.lower, data.next_lower[tails]])
    upper = np.concatenate([data.upper, data.next_upper[tails]])
    state = np.concatenate([data.state, data.next_state[tails]])
    action = target.act(state)
    base = center if deployed is None else deployed.act(state)
    width = (upper - lower)[:n]
    tolerance = np.where(width > 0, VARIED_TOLERANCE, box.FIXED_TOLERANCE)
    outside = ~_within(action[:n], center[:n], lower[:n], upper[:n], tolerance)
    moved = np.abs(base[:n] - center[:n]) > box.FIXED_TOLERANCE
    coverage = Coverage(
        states=float(outside.any(axis=1).mean()), dims=outside.mean(axis=0), deployed_off=float(moved.any(axis=1).mean())
    )
    steps = Steps(
        state=state,
        place=np.concatenate([data.step, data.step[tails] + 1]),
        successor=successor,
        session=data.session,
        user=data.user,
        starts=starts,
        discount=gamma ** place.astype(np.float64),
        reward=data.total_reward.astype(np.float64),
        x=data.position,
        y=box.position(box.clip(action, center, lower, upper), center, lower, upper),
        y0=box.position(box.clip(base, center, lower, upper), center, lower, upper),
        varied=(width > 0).any(axis=0),
        value_mask=data.value_mask,
        gamma=gamma,
    )
    return steps, coverage


def _within(action: np.ndarray, center: np.ndarray, lower: np.ndarray, upper: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    return (action >= center + lower - tolerance) & (action <= center + upper + tolerance)
