"""What the data at hand can tell, before anything is trained: the smallest lift that the gate and the canary would detect.

It reads how noisy returns are, never how good any policy is, so it may look at the gate's users.
"""

from __future__ import annotations

import msgspec
import numpy as np

from mtf.evaluation import weights
from mtf.evaluation.intervals import by_user
from mtf.evaluation.rows import select
from mtf.evaluation.steps import DEFAULT_GAMMA, Steps, make_steps
from mtf.evaluation.values import held_out_value
from mtf.policy import Lineage, constant_policy
from mtf.transitions.table import TransitionSet

ALPHA = 0.04
POWER = 0.8
LIFTS = (0.01, 0.02, 0.05)
ARM_USERS = (500, 1000, 2000, 5000, 10000, 20000, 50000)
MIN_USERS = 20


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """Two arms of `users` users each, reward of a user's first closed session: the lift detected with 80 % power at a
    two-sided 5 %, at a fixed time and by an always-valid interval."""

    users: int
    detectable: float
    detectable_any_time: float


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """See `power`. Numbers are None, and `reason` says why, where the data holds no usable exploration.

    se_half, se_full: standard error of the primary lift of a policy half-way to the box's edge, and at the edge, in every
    varied dimension (|y| = .5 and 1). Further from the centre the same sessions tell less.
    se_formula_half: the same as se_half from `E[omega^2]` and the residual's variance, steps taken as independent.
    detectable_lift: at |y| = .5. sessions_needed: {lift: sessions} at |y| = .5.
    """

    sessions: int
    users: int
    requests_per_session: float
    varied_dimensions: int
    gamma: float
    value: float | None = None
    return_cv: float | None = None
    user_cv: float | None = None
    residual_sd: float | None = None
    se_half: float | None = None
    se_full: float | None = None
    se_formula_half: float | None = None
    second_moment: dict[str, float] = {}
    detectable_lift: float | None = None
    detectable_lift_full: float | None = None
    sessions_needed: dict[str, int] = {}
    arms: list[Arm] = []
    reason: str | None = None


def power(data: TransitionSet, policy_sha: str | None = None) -> Power:
    """Power of the gate on the sessions of `data` explored around `policy_sha` (None: the policy that explored last), and of a
    canary.

    For a policy at positions `y_d = +-c` whose signs are unknown, the variance of a user's contribution is, averaged over
    the signs, `9 c^2 sum_d Var_u[ sum_t gamma^t x_td delta_t ]`, delta the residual of a cross-fitted V; the lift's standard
    error follows, and `detectable = (z_.98 + z_.80) se`.
    """
    chosen = select(data, policy_sha)
    arms, user_cv = canary_arms(data)
    kept = chosen.data
    users = len(np.unique(kept.user))
    if chosen.reason is not None or users < MIN_USERS:
        return Power(
            sessions=kept.n_sessions,
            users=users,
            requests_per_session=len(kept) / max(kept.n_sessions, 1),
            varied_dimensions=0,
            gamma=kept.spec.gamma if kept.spec is not None else DEFAULT_GAMMA,
            arms=arms,
            user_cv=user_cv,
            reason=chosen.reason or f"only {users} users explored; no error can be told from fewer than {MIN_USERS}",
        )
    centre = constant_policy(np.zeros(kept.action_width), kept.state_width, spec=None, lineage=Lineage(algorithm="none"))
    steps, _ = make_steps(kept, centre, None)
    return power_of_steps(steps, held_out_value(steps)[0], arms, user_cv)


def power_of_steps(steps: Steps, value: np.ndarray, arms: list[Arm], user_cv: float | None) -> Power:
    """`power` once the rows are chosen and `value` [n + m], the cross-fitted V, is known."""
    residual = steps.reward + steps.gamma * steps.next_values(value) - value[: len(steps)]
    sessions, users = len(steps.starts), len(np.unique(steps.user))
    returns = steps.returns(value)[steps.starts]
    level = abs(float(returns.mean()))
    x = steps.x[:, steps.varied].astype(np.float64)
    scores = by_user(steps.per_session(x * (steps.discount * residual)[:, None]), steps.session_user)
    spread = float((scores**2).sum()) * users / max(users - 1, 1)
    se_full = 3 * float(np.sqrt(spread)) / sessions / level
    se_half = se_full / 2
    dims = int(steps.varied.sum())
    half = np.full(dims, 0.5)
    growth = float((steps.discount**2).sum()) / sessions
    formula = np.sqrt((weights.second_moment(half, 1) - 1) * residual.var() * growth / sessions) / level
    factor = detection_factor(ALPHA)
    detectable = factor * se_half
    return Power(
        sessions=sessions,
        users=users,
        requests_per_session=len(steps) / sessions,
        gamma=steps.gamma,
        varied_dimensions=dims,
        value=float(returns.mean()),
        return_cv=float(returns.std(ddof=1)) / level,
        user_cv=user_cv,
        residual_sd=float(residual.std()),
        se_half=float(se_half),
        se_full=float(se_full),
        se_formula_half=float(formula),
        second_moment={
            f"degree {degree}, |y| = {y}": float(weights.second_moment(np.full(dims, y), degree))
            for degree in (1, 2)
            for y in (0.5, 1)
        },
        detectable_lift=float(detectable),
        detectable_lift_full=float(factor * se_full),
        sessions_needed={str(lift): int(np.ceil(sessions * (detectable / lift) ** 2)) for lift in LIFTS},
        arms=arms,
    )


def detection_factor(alpha: float, share: float = POWER) -> float:
    """`z_{1 - alpha / 2} + z_share`: standard errors in the smallest lift found with probability `share`."""
    from scipy.special import ndtri

    return float(ndtri(1 - alpha / 2) + ndtri(share))


def canary_arms(data: TransitionSet) -> tuple[list[Arm], float | None]:
    """(detectable lifts by arm size, coefficient of variation of a user's reward in the first closed session)."""
    starts = data.starts
    if not len(starts):
        return [], None
    total = np.add.reduceat(data.total_reward.astype(np.float64), starts)
    began = data.ts[starts]
    order = np.lexsort((began, data.user[starts]))
    first = np.r_[True, np.diff(data.user[starts][order]) != 0]
    reward = total[order][first]
    if len(reward) < MIN_USERS or reward.mean() == 0:
        return [], None
    cv = float(reward.std(ddof=1) / abs(reward.mean()))
    arms = []
    for users in ARM_USERS:
        se = cv * float(np.sqrt(2 / users))
        any_time = (sequence_half_width(users, 0.05) + detection_factor(1.0)) * se
        arms.append(Arm(users=users, detectable=detection_factor(0.05) * se, detectable_any_time=float(any_time)))
    return arms, cv


def sequence_half_width(users: int, alpha: float) -> float:
    """Half-width, in standard errors at `users`, of the asymptotic confidence sequence tuned to that size.

    `sqrt(2 (t rho^2 + 1) / (t rho^2) ln(sqrt(t rho^2 + 1) / alpha))`, `t rho^2 = -2 ln alpha + ln(-2 ln alpha) + 1`
    (Waudby-Smith et al.).
    """
    spread = -2 * np.log(alpha) + np.log(-2 * np.log(alpha)) + 1
    return float(np.sqrt(2 * (spread + 1) / spread * np.log(np.sqrt(spread + 1) / alpha)))


def describe(result: Power) -> str:
    """The power analysis as text."""
    lines = [
        f"{result.sessions:,} explored sessions of {result.users:,} gate users, "
        f"{result.requests_per_session:.1f} requests a session, gamma {result.gamma}"
    ]
    if result.reason is not None:
        lines.append(f"gate: nothing to detect with: {result.reason}")
    else:
        lines += [
            f"mean discounted return of a session {result.value:.4g}, coefficient of variation {result.return_cv:.2f}; "
            f"residual sd {result.residual_sd:.3g}; {result.varied_dimensions} dimensions varied",
            f"gate, standard error of a lift: {result.se_half:.2%} half-way to the box's edge, {result.se_full:.2%} at the edge",
            f"gate, smallest lift found four times in five: {result.detectable_lift:.2%} half-way, "
            f"{result.detectable_lift_full:.2%} at the edge",
            "gate, sessions needed (half-way): "
            + ", ".join(f"{float(lift):.0%}: {count:,}" for lift, count in result.sessions_needed.items()),
        ]
    if result.arms:
        lines.append(f"canary, reward of a user's first session (coefficient of variation {result.user_cv:.2f}):")
        lines += [
            f"  {arm.users:>7,} users an arm: {arm.detectable:.1%} at a fixed time, {arm.detectable_any_time:.1%} at any time"
            for arm in result.arms
        ]
    return "\n".join(lines)
