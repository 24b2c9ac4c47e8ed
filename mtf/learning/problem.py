"""What every algorithm sees: training rows, the deployed policy at each of their states, and the box around it now.

Notation of docs/method.md: a action, mu_bp the deployed policy, h the box's half-width in force now. Positions of actions:

    u = (a - mid) / h, mid the middle of the box that the row was drawn from    so rows of wider (|u| > 1) or narrower boxes pool
    x = 2 (a - mid) / W, W that box's own width                                 from -1 to 1; what ratios and weights are in
    move = (a - mu_bp(s)) / h                                                   0 at the deployed policy; what learners return
    y = 2 (a - mid) / W of the box around mu_bp now                             what the gate measures steps in

A box that is cut at the edge of the action space has its middle elsewhere than mu_bp; else move and y are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mtf import box
from mtf.errors import InputError
from mtf.policy import Policy, bootstrap_policy, load_policy
from mtf.transitions.arrays import chunks
from mtf.transitions.table import TransitionSet

Z_CLIP = 3.0
ROUND_DECAY = 0.7
PARTS = 5
"""Of the users, to judge an advantage by those that it was not fitted on; from four of five it is nearly what it is from all."""
LEAST_SESSIONS = 20
OUTSIDE_ALLOWED = 0.01
OFF_CENTER = 0.05
UNEVEN = 0.02
WIDER = 1.1
NAMED = ("bootstrap", "logged")
"""Baselines that are no bundle's folder."""


@dataclass(frozen=True)
class Baseline:
    """The policy that is deployed now; `policy` is None for `logged`, where each row's stored centre stands for it."""

    name: str
    policy: Policy | None

    @property
    def sha(self) -> str | None:
        """The bundle's hash; None for `logged`."""
        return self.policy.sha if self.policy is not None else None


@dataclass(frozen=True)
class Problem:
    """Rows of n requests; float32 unless said.

    center, lower, upper [n, A]: mu_bp(s) and the box around it now (offsets, cut at the edge); next_* the same at s'.
    half_width [A]: h of that box. unit [A]: h, and 1 where h is 0.
    u [n, A]: position of the logged action in its own box, see above; 0 in rows without exploration.
    signal: bool [n], rows that explored: only they say anything about actions; the others fit V alone.
    current: bool [n], those of them that explored around mu_bp itself.
    uniform: were they drawn uniformly in their boxes? Gaussian noise, cut at the same ends, is not.
    weight [n]: 0.7 ** (rounds since the row's policy was the newest that explored): earlier rounds count less.
    group: int64 [n], one code a (policy, exploring): V has an intercept each.
    mean, scale [S]; z, next_z [n, S]: the state, standardised and clipped to +-3.
    fold: int64 [n], 0 or 1 by user: V is fitted on the one and read on the other.
    part: int64 [n], 0 to PARTS - 1 by user: an advantage that is fitted on the others is judged by this one. Both by session
        where there are fewer than 20 users.
    dropped: {reason: rows}; warnings: what the reader of the report must know.
    """

    data: TransitionSet
    baseline: Baseline
    gamma: float
    center: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    next_center: np.ndarray
    next_lower: np.ndarray
    next_upper: np.ndarray
    half_width: np.ndarray
    u: np.ndarray
    signal: np.ndarray
    current: np.ndarray
    uniform: bool
    weight: np.ndarray
    group: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    z: np.ndarray
    next_z: np.ndarray
    fold: np.ndarray
    part: np.ndarray
    dropped: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def unit(self) -> np.ndarray:
        """h [A], and 1 where h is 0, only so that one may divide by it."""
        return np.where(self.half_width > 0, self.half_width, 1).astype(np.float32)

    @cached_property
    def phi(self) -> np.ndarray:
        """[n, 1 + S]: 1, then z; what a slope depends on."""
        (phi,) = self.data.arrays.build(
            len(self.z), lambda rows: (np.concatenate([np.ones((len(z := self.z[rows]), 1), np.float32), z], axis=1),)
        )
        return phi

    @property
    def held_to(self) -> np.ndarray:
        """bool [n]: the rows to whose actions a learner is held: those around the policy deployed now, or, where there are none,
        all that explored."""
        return self.current if self.current.any() else self.signal

    @property
    def hold(self) -> np.ndarray:
        """[n], mean 1 over the rows that explored: what a row counts where a learner is held to what was logged.

        The rows of `held_to` count, alike: held to earlier rounds' actions, it would be drawn back to policies that are gone.
        """
        share = max(self.held_to.sum() / max(self.signal.sum(), 1), 1e-9)
        return (self.held_to / share).astype(np.float32)

    @property
    def value_columns(self) -> np.ndarray:
        """int64: the state columns that a value may read (actions do not move them)."""
        return np.flatnonzero(self.data.value_mask)

    def step_action(self, step: np.ndarray) -> np.ndarray:
        """The actions [n, A] that lie `step` [n, A] half-widths from mu_bp, clipped to the box."""
        (action,) = self.data.arrays.build(
            len(self.center),
            lambda rows: (
                box.clip(self.center[rows] + step[rows] * self.half_width, self.center[rows], self.lower[rows], self.upper[rows]),
            ),
        )
        return action

    def moves(self, action: np.ndarray) -> np.ndarray:
        """The steps [n, A] from mu_bp to `action`, in half-widths."""
        (step,) = self.data.arrays.build(
            len(action), lambda rows: (((action[rows] - self.center[rows]) / self.unit).astype(np.float32),)
        )
        return step

    def position_now(self, rows: slice) -> np.ndarray:
        """Where the logged actions of `rows` lie in the box now, in half-widths from its middle; 0 where it has no width."""
        low, high = self.lower[rows], self.upper[rows]
        away = (self.data.action[rows] - self.center[rows] - (low + high) / 2) / self.unit
        position: np.ndarray = np.where((high > low) & (self.half_width > 0), away, 0).astype(np.float32)
        return position

    def mean_square(self, rows: slice | np.ndarray) -> np.ndarray:
        """E u^2 [n, A] of a uniform draw from the rows' own boxes, as they are cut: a third where whole, and as wide as now."""
        reach = (self.data.upper[rows] - self.data.lower[rows]) / 2 / self.unit
        square: np.ndarray = np.square(reach) / 3
        return square

    def start(self, rows: slice) -> np.ndarray:
        """Where mu_bp lies in the box now, in half-widths from its middle: 0 where the box is whole."""
        start: np.ndarray = -(self.lower[rows] + self.upper[rows]) / 2 / self.unit
        return start

    def box_position(self, action: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """y = 2 (a - mid) / W: where the actions of `rows` lie in the box now; the gate measures steps in it."""
        return box.position(action, self.center[rows], self.lower[rows], self.upper[rows])


def prepare(
    data: TransitionSet,
    baseline: str | Path,
    *,
    gamma: float | None = None,
    half_width: np.ndarray | None = None,
    round_decay: float = ROUND_DECAY,
    needs_exploration: bool = True,
) -> Problem:
    """Rows that can be learned from, in the terms of the policy deployed now.

    baseline: `bootstrap` (the spec's start), `logged` (each row's own centre and box) or the folder of a bundle.
    gamma: None takes the spec's, else 0.9. half_width [A]: None takes that of the baseline's latest explored rows.
    needs_exploration: False takes rows of which none explored too; the box has no width then. A dimension that no row explored
    has none either.
    Sessions with a fallback row are dropped and counted. Raises InputError where nothing explored is left, where there are
    fewer than LEAST_SESSIONS sessions, where the baseline does not fit the data, or where `logged` stands for several policies.
    """
    dropped: dict[str, int] = {}
    warnings: list[str] = []
    data, dropped["fallback"] = _without_fallback(data)
    if gamma is None:
        gamma = data.spec.gamma if data.spec is not None else 0.9
    deployed = open_baseline(baseline, data)
    if data.n_sessions < LEAST_SESSIONS:
        raise InputError(
            f"transitions: {data.n_sessions} session(s) of training users; V is fitted on one half of the users and read on the "
            f"other: log at least {LEAST_SESSIONS}"
        )
    n, width = len(data), data.action_width
    if not data.exploring.any():
        if needs_exploration:
            raise InputError(
                f"transitions: none of {n} rows explored (lower = upper everywhere): nothing says what another action would do; "
                "log actions drawn from a box, e.g. `mtf simulate --box 0.2`, or clone what was served: --algorithm bc"
            )
        if deployed.policy is not None:
            raise InputError(f"baseline: {baseline}: none of {n} rows explored around it; use --baseline logged")
        warnings.append("no_exploration: the log teaches what was served, not what else would do; the gate will be inconclusive")
    elif needs_exploration and deployed.policy is None:
        _of_one_policy(data)
    own = data.exploring & (data.policy_sha == deployed.sha) if deployed.sha is not None else data.exploring
    if not own.any() and data.exploring.any():
        warnings.append("baseline_not_in_data: no explored row is of the baseline; slopes are taken at the logged centres")
        own = data.exploring
    latest = _latest_half_width(data, own) if own.any() else np.zeros(width, np.float32)
    given = half_width is not None
    half_width = np.asarray(latest if half_width is None else half_width, np.float32)
    if half_width.shape != (width,):
        raise InputError(f"exploration: half_width has {half_width.size} numbers, the actions {width}; give one a dimension")
    if (wide := (latest > 0) & (half_width > WIDER * latest)).any():
        which = ", ".join(f"{d} ({half_width[d]:.3g}, explored {latest[d]:.3g})" for d in np.flatnonzero(wide))
        warnings.append(f"wider_than_explored: the box is wider in dimension(s) {which}; steps may lead where no row has been")
    if data.exploring.any() and (still := (half_width > 0) & ~_explored_dimensions(data)).any():
        half_width = np.where(still, 0, half_width).astype(np.float32)
        which = ", ".join(str(d) for d in np.flatnonzero(still))
        warnings.append(f"unexplored_dimensions: no row explored dimension(s) {which}; the policy keeps them where they are")
    mean, scale = _moments(data.state)
    unit = np.where(half_width > 0, half_width, 1)

    def relative(rows: slice) -> tuple[np.ndarray, ...]:
        """z, next_z and u of some rows, and whether the action lies in its own box."""
        low, high = data.lower[rows], data.upper[rows]
        mid = data.center[rows] + (low + high) * 0.5
        u = np.where(data.exploring[rows, None] & (high > low) & (half_width > 0), (data.action[rows] - mid) / unit, 0)
        outside = np.abs(u) > 1.001 * np.where(half_width > 0, (high - low) * 0.5 / unit, np.inf)
        z, next_z = (_standardise(state[rows], mean, scale) for state in (data.state, data.next_state))
        return z, next_z, u.astype(np.float32), np.logical_not(outside.any(axis=1, keepdims=True))

    center, lower, upper = _box_now(deployed, data, "", half_width, given)
    nxt = _box_now(deployed, data, "next_", half_width, given)
    z, next_z, u, inside = data.arrays.build(n, relative)
    signal = data.exploring & inside[:, 0]
    explored, astray = int(data.exploring.sum()), int((data.exploring & ~signal).sum())
    dropped["action_outside_its_box"] = astray
    if astray > OUTSIDE_ALLOWED * explored:
        outside = f"`action` lies outside `center` + [`lower`, `upper`] in {astray} of {explored} explored rows"
        if needs_exploration and not signal.any():
            raise InputError(
                f"transitions: {outside}; lower and upper are offsets from the centre, and the box is the one drawn from"
            )
        warnings.append(f"action_outside_its_box: {outside}; they say nothing about actions")
    if off_center := _off_center(u, signal):
        warnings.append(
            f"exploration_off_center: explored actions lie on average {off_center} from the middle of what they were drawn from, "
            "in spreads; slopes would take credit for states: check `center`, `lower` and `upper`"
        )
    uneven = _uneven(data, signal)
    if uneven:
        warnings.append(
            f"exploration_not_uniform: squared positions in the box are on average {uneven}, and .333 where actions are uniform "
            "in it; learning allows for that, the gate will not judge by such rows"
        )
    weight = _round_weight(data, deployed.sha, round_decay)
    if weight is None:
        warnings.append(
            "ages_unknown: rows of several policies have neither `dt` nor `ts`; older rounds count as much as new ones"
        )
    return Problem(
        data=data,
        baseline=deployed,
        gamma=float(gamma),
        center=center,
        lower=lower,
        upper=upper,
        next_center=nxt[0],
        next_lower=nxt[1],
        next_upper=nxt[2],
        half_width=half_width,
        u=u,
        signal=signal,
        current=signal & own,
        uniform=not uneven,
        weight=weight if weight is not None else np.ones(n, np.float32),
        group=_groups(data),
        mean=mean,
        scale=scale,
        z=z,
        next_z=next_z,
        fold=_units(data, 20240427) % 2,
        part=_units(data, 20240428) % PARTS,
        dropped=dropped,
        warnings=tuple(warnings),
    )


def open_baseline(baseline: str | Path, data: TransitionSet) -> Baseline:
    """The deployed policy by name or folder. Raises InputError where it does not fit the data."""
    if str(baseline) == "logged":
        return Baseline("logged", None)
    if str(baseline) == "bootstrap":
        if data.spec is None:
            raise InputError("baseline: `bootstrap` is the spec's start and these transitions have no spec; use `logged`")
        return Baseline("bootstrap", bootstrap_policy(data.spec))
    policy = load_policy(baseline)
    data.require_fit(f"baseline: {baseline}", policy, "give the policy that was deployed when they were logged")
    return Baseline(str(baseline), policy)


def box_of_another(name: str, box_of: str | None, baseline: Baseline) -> list[str]:
    """A warning where the box `name` was chosen around another policy than the baseline; none where one is not known."""
    if None in (box_of, baseline.sha) or box_of == baseline.sha:
        return []
    return [
        f"box_of_another_policy: {name} is of policy {str(box_of)[:12]}, the baseline is policy {str(baseline.sha)[:12]}; "
        "its widths are taken as given"
    ]


def constant_reward(data: TransitionSet) -> list[str]:
    """Raises InputError where every session earned the same; warns where only their length differs."""
    total = data.total_reward
    least, most = float(total.min()), float(total.max())
    if least != most:
        return []
    lengths = np.unique(np.diff(np.append(data.starts, len(data))))
    if most == 0 or len(lengths) == 1:
        raise InputError(
            f"transitions: `reward` is {most:g} in all of {len(data)} rows: no action was worth more than another; "
            "check the reward heads' weights and the feedback"
        )
    return [f"constant_reward: every row earned {most:g}; only the length of sessions can be learned"]


def _without_fallback(data: TransitionSet) -> tuple[TransitionSet, int]:
    """Sessions without fallback rows, and how many rows that dropped: a hole in a session breaks its returns."""
    bad = data.fallback.astype(bool)
    if not bad.any():
        return data, 0
    keep = ~np.isin(data.session, np.unique(data.session[bad]))
    if not keep.any():
        raise InputError("transitions: every session holds a fallback row; see the serving log for the reason")
    return data.select(keep), int((~keep).sum())


def _latest_half_width(data: TransitionSet, rows: np.ndarray) -> np.ndarray:
    """[A]: the widest half of a box, among the rows of the latest day (a box cut at the edge shows less)."""
    days = [d for d in data.dt[rows] if d is not None]
    latest = rows & (data.dt == max(days)) if days else rows
    upper = data.upper.max(axis=0, where=latest[:, None], initial=-np.inf)
    lower = data.lower.min(axis=0, where=latest[:, None], initial=np.inf)
    return np.asarray(np.maximum(upper, -lower), np.float32)


def _box_now(deployed: Baseline, data: TransitionSet, when: str, half_width: np.ndarray, given: bool) -> tuple[np.ndarray, ...]:
    """(center, lower, upper) [n, A] of the box around the deployed policy at s (`when` empty) or s' (`next_`).

    Of `logged` it is the row's own, and no wider than `half_width` where somebody gave that.
    """
    state, center, lower, upper = (getattr(data, when + name) for name in ("state", "center", "lower", "upper"))

    def some(rows: slice) -> tuple[np.ndarray, ...]:
        if deployed.policy is not None:
            now = deployed.policy.act(state[rows])
            return (now, *box.offsets(now, half_width))
        varied = (upper[rows] > lower[rows]).any(axis=1, keepdims=True)
        low, high = box.offsets(center[rows], half_width)
        least, most = (np.maximum(lower[rows], low), np.minimum(upper[rows], high)) if given else (lower[rows], upper[rows])
        return center[rows], np.where(varied, least, low), np.where(varied, most, high)

    return data.arrays.build(len(data), some)


def _of_one_policy(data: TransitionSet) -> None:
    """Raises InputError where `logged` would stand for several policies: a box around each row's own centre leads nowhere."""
    names = [s for s in dict.fromkeys(data.policy_sha[data.exploring]) if s is not None]
    if len(names) > 1:
        raise InputError(
            f"baseline: `logged` takes each row's own centre for the policy that is deployed now, but the explored rows are of "
            f"{len(names)} policies ({', '.join(s[:12] for s in names[:4])}{', ...' if len(names) > 4 else ''}); "
            "give --baseline the bundle that is deployed"
        )


def _off_center(u: np.ndarray, signal: np.ndarray) -> str:
    """The dimensions whose mean u is not 0, and by how many standard deviations of u; empty where all are centred.

    u is independent of the state only about its mean: with another one, `u . (G phi)` fits what phi says of the state, also
    what V must not read.
    """
    n = max(int(signal.sum()), 1)
    sums = np.zeros((2, u.shape[1]))
    for rows in chunks(len(u)):
        explored = u[rows][signal[rows]].astype(np.float64)
        sums += explored.sum(axis=0), np.square(explored).sum(axis=0)
    mean = sums[0] / n
    sd = np.sqrt(np.maximum(sums[1] / n - mean**2, 0))
    off = np.abs(mean) > max(OFF_CENTER, 5 / np.sqrt(n)) * sd
    return ", ".join(f"{mean[d] / sd[d]:+.2f} (dimension {d})" for d in np.flatnonzero(off & (sd > 0)))


def _uneven(data: TransitionSet, signal: np.ndarray) -> str:
    """The dimensions in which the mean of x^2 is not that of a uniform draw, 1/3, and what it is; empty where none."""
    square, n = np.zeros(data.action_width), np.zeros(data.action_width)
    for rows in chunks(len(data)):
        of = signal[rows]
        low, high = data.lower[rows][of], data.upper[rows][of]
        x = box.position(data.action[rows][of], data.center[rows][of], low, high).astype(np.float64)
        square += np.square(x).sum(axis=0)
        n += (high > low).sum(axis=0)
    mean = square / np.maximum(n, 1)
    # x^2 of a uniform draw has standard deviation .298
    off = (n > 0) & (np.abs(mean - 1 / 3) > np.maximum(UNEVEN, 5 * 0.298 / np.sqrt(np.maximum(n, 1))))
    return ", ".join(f"{mean[d]:.3f} (dimension {d})" for d in np.flatnonzero(off))


def _explored_dimensions(data: TransitionSet) -> np.ndarray:
    """bool [A]: those in which some explored row's box has a width."""
    found = np.zeros(data.action_width, bool)
    for rows in chunks(len(data)):
        found |= ((data.upper[rows] > data.lower[rows]) & data.exploring[rows, None]).any(axis=0)
    return found


def _round_weight(data: TransitionSet, sha: str | None, decay: float) -> np.ndarray | None:
    """decay ** age: the baseline's rows and any newer have age 0, the policy before it 1, and so on, by first day and request.

    Rounds are of policies that explored. What only served (a canary that was refused) is as old as what explored when it began.
    None where rows of several policies say neither when they are of.
    """
    names = [s for s in dict.fromkeys(data.policy_sha) if s is not None]
    if len(names) < 2:
        return np.ones(len(data), np.float32)
    explored = {s for s in names if data.exploring[data.policy_sha == s].any()} or set(names)
    dated = all(d is not None for d in data.dt)
    if not dated and data.columns and "ts" not in data.columns:
        return None
    # without `ts` rows are numbered in the order of their sessions' names, which says nothing of time
    first = {}
    for name in names:
        of = data.policy_sha == name
        first[name] = (min(data.dt[of]) if dated else "", data.ts[of].min())
    oldest_first = sorted(names, key=lambda name: first[name])
    began = {name: sum(other in explored for other in oldest_first[: i + 1]) for i, name in enumerate(oldest_first)}
    now = began[sha] if sha in began else max(began.values())
    weight = np.ones(len(data), np.float32)
    for name, number in began.items():
        weight[data.policy_sha == name] = decay ** max(now - max(number, 1), 0)
    return weight


def _groups(data: TransitionSet) -> np.ndarray:
    names = {s: i for i, s in enumerate(dict.fromkeys(data.policy_sha))}
    codes = np.array([names[s] for s in data.policy_sha], np.int64) * 2 + data.exploring
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _moments(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale [S] of the states; the scale of what does not vary is 1."""
    mean = state.mean(axis=0, dtype=np.float64)
    square = sum(np.square(state[rows] - mean).sum(axis=0) for rows in chunks(len(state)))
    sd = np.sqrt(square / len(state)).astype(np.float32)
    mean = mean.astype(np.float32)
    return mean, np.where(sd > 1e-6 * (1 + np.abs(mean)), sd, 1).astype(np.float32)


def _standardise(state: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((state - mean) / scale, -Z_CLIP, Z_CLIP).astype(np.float32)


def users_held_out(problem: Problem, share: float) -> np.ndarray:
    """bool [n]: rows of a `share` of the training users, kept from the fit for calibration.

    The same ones whenever the same data are trained on; another data set holds out others.
    """
    order = _units(problem.data, 977)
    return order < share * (order.max() + 1)


def _units(data: TransitionSet, seed: int) -> np.ndarray:
    """int64 [n]: each row's user in a fixed random order (its session where there are too few users to split)."""
    code, count = (data.user, len(data.user_ids)) if len(np.unique(data.user)) >= 20 else (data.session, data.n_sessions)
    return np.random.default_rng(seed).permutation(count)[code]
