"""The canary's statistics: always-valid intervals on users, sample-ratio test, the decision.

One observation is one user: totals over the user's window (here: the first session after enrolment), entering when the
window is complete, in the order of enrolment. Requests or user-days as units give false alarms (docs/rollout.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np

METRICS = ("reward", "valid", "duration")
Probability = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0)]


class Lift(msgspec.Struct, frozen=True, kw_only=True):
    """canary / control - 1, a fraction, with its always-valid interval."""

    lift: float
    low: float
    high: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Canary against control at one look.

    n_*: users in the intervals; enrolled_*: first enrolments (for the sample-ratio test). watermark_us: event time up to
    which windows counted as complete; received_until_us: server time of the last row that had been read.
    """

    n_canary: int
    n_control: int
    enrolled_canary: int
    enrolled_control: int
    srm_bayes_factor: float
    metrics: dict[str, Lift]
    watermark_us: int
    received_until_us: int


class Margins(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By how much of control's mean each guardrail may be worse for all that is known when a policy is promoted.

    They are no licence: a metric that is shown to be worse at all rolls back, whatever its margin.
    """

    valid: Fraction = 0.05
    duration: Fraction = 0.05


class DecisionRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to promote and when to roll back.

    alpha: of each always-valid interval, two-sided; a policy that is worse in nothing is rolled back by one of the three
    metrics with a chance of 1.5 alpha at most. srm_alpha: the sample-ratio alarm is a Bayes factor above 1 / srm_alpha.
    min_users: a look before each arm has this many complete users decides nothing (the interval is asymptotic).
    tuned_for: users in both arms at which the interval is tightest. margins: of the guardrails; together they permit the
    sum of what they permit one by one, which the report says.
    """

    alpha: Probability = 0.05
    srm_alpha: Probability = 0.001
    min_users: Annotated[int, msgspec.Meta(ge=2)] = 1000
    tuned_for: Annotated[int, msgspec.Meta(ge=1)] = 8000
    margins: Margins = Margins()


@dataclass(frozen=True)
class Users:
    """One row a complete user, in the order of enrolment. canary: bool [n]; totals: {metric: float64 [n]}, those of METRICS
    that the surface has; covariates: float [n, c], all from before the first treated ranking (NaN = missing)."""

    canary: np.ndarray
    totals: dict[str, np.ndarray]
    covariates: np.ndarray


def sequence_half_width(t: int, sigma: float, alpha: float, t_star: int) -> float:
    """Half-width of the asymptotic confidence sequence for a mean of t observations (Waudby-Smith et al., 2021).

    `sigma sqrt(2 (t rho^2 + 1) / (t^2 rho^2) ln(sqrt(t rho^2 + 1) / alpha))`, rho^2 such that it is tightest at t_star.
    """
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / t_star
    scaled = t * rho2 + 1
    return sigma * math.sqrt(2 * scaled / (t * t * rho2) * math.log(math.sqrt(scaled) / alpha))


def srm_bayes_factor(counts: tuple[int, ...], shares: tuple[float, ...]) -> float:
    """Evidence that users are not split as `shares`: Dirichlet(1, ..., 1) against the fixed shares (Lindon and Malek, 2020).

    A martingale under the null, so that an alarm at 1 / alpha is valid at every look.
    """
    k, n = len(counts), sum(counts)
    log_marginal = math.lgamma(k) - math.lgamma(n + k) + sum(math.lgamma(c + 1) for c in counts)
    log_null = sum(c * math.log(s) for c, s in zip(counts, shares, strict=True))
    return math.exp(min(log_marginal - log_null, 700.0))


def adjust(users: Users, metric: str) -> np.ndarray:
    """CUPED: the metric less what the covariates predict, same mean. One slope for both arms; missing values get the
    mean and an indicator."""
    y = users.totals[metric].astype(np.float64)
    missing = ~np.isfinite(users.covariates)
    x = np.where(missing, np.nan, users.covariates)
    with np.errstate(all="ignore"):
        mean = np.nan_to_num(np.nanmean(np.where(missing.all(axis=0), 0.0, x), axis=0)) if x.size else np.zeros(x.shape[1])
    x = np.concatenate([np.where(missing, mean, users.covariates), missing[:, missing.any(axis=0)]], axis=1)
    scale = x.std(axis=0)
    x = ((x - x.mean(axis=0)) / np.where(scale > 0, scale, 1))[:, scale > 0]
    if len(y) < 10 * (x.shape[1] + 1):
        return y
    # the slope is fitted within arms, so that the treatment's own effect does not enter it
    arm = np.where(users.canary, y[users.canary].mean(), y[~users.canary].mean())
    slope = np.linalg.solve(x.T @ x + 1e-6 * len(y) * np.eye(x.shape[1]), x.T @ (y - arm))
    return y - x @ slope


def lift(users: Users, metric: str, rules: DecisionRules) -> Lift:
    """Lift of a metric with its always-valid interval; the ratio is linearised around the control's mean.

    Nothing is known where control has no mean above 0, or where a total is no number.
    """
    y = adjust(users, metric)
    a, b = y[users.canary], y[~users.canary]
    mean_a, mean_b = float(a.mean()), float(b.mean())
    if not (mean_b > 0 and np.isfinite(y).all()):
        return Lift(lift=0.0, low=-math.inf, high=math.inf)
    ratio = mean_a / mean_b
    variance = a.var(ddof=1) / len(a) + ratio**2 * b.var(ddof=1) / len(b)
    n = len(y)
    half = sequence_half_width(n, math.sqrt(variance * n) / mean_b, rules.alpha, rules.tuned_for)
    return Lift(lift=ratio - 1, low=ratio - 1 - half, high=ratio - 1 + half)


def compare(
    users: Users, enrolled: tuple[int, int], rules: DecisionRules, *, watermark_us: int, received_until_us: int
) -> Comparison:
    """All statistics of one look. `enrolled`: first enrolments in (canary, control), complete or not."""
    n_canary = int(users.canary.sum())
    n_control = len(users.canary) - n_canary
    enough = min(n_canary, n_control) >= 2
    return Comparison(
        n_canary=n_canary,
        n_control=n_control,
        enrolled_canary=enrolled[0],
        enrolled_control=enrolled[1],
        srm_bayes_factor=srm_bayes_factor(enrolled, (0.5, 0.5)),
        metrics={m: lift(users, m, rules) for m in METRICS if m in users.totals} if enough else {},
        watermark_us=watermark_us,
        received_until_us=received_until_us,
    )


Decision = Literal["promote", "roll_back", "wait"]


def decide(comparison: Comparison, rules: DecisionRules, *, last_look: bool) -> tuple[Decision, str]:
    """What to do after a look, and why. `last_look`: the rollout's time is over, so `wait` is no longer possible.

    Promote = every condition holds; roll back = any one is broken.
    """
    if comparison.srm_bayes_factor > 1 / rules.srm_alpha:
        counts = f"{comparison.enrolled_canary} canary and {comparison.enrolled_control} control users"
        return "roll_back", f"sample ratio: {counts} are not an equal split (Bayes factor {comparison.srm_bayes_factor:.3g})"
    fewest = min(comparison.n_canary, comparison.n_control)
    if fewest < rules.min_users:
        why = f"{fewest} complete users in the smaller arm, {rules.min_users} needed"
        return ("roll_back", f"inconclusive: {why}") if last_look else ("wait", why)
    for name, found in comparison.metrics.items():
        if found.high < 0:
            return "roll_back", f"{name} is worse: {_text(found)}"
    # conditions are asked for as they must hold, so that what is no number holds none of them
    better = comparison.metrics["reward"].low > 0
    short = [] if better else [f"reward is not shown to be better: {_text(comparison.metrics['reward'])}"]
    margins = {name: m for name, m in msgspec.structs.asdict(rules.margins).items() if name in comparison.metrics}
    for name, margin in margins.items():
        if not comparison.metrics[name].low >= -margin:
            short.append(f"{name} may be worse by more than {margin:.0%}: {_text(comparison.metrics[name])}")
    if not short:
        within = ", ".join(f"{name} within {-margin:.0%}" for name, margin in margins.items())
        return "promote", f"reward is better: {_text(comparison.metrics['reward'])}; {within}"
    why = "; ".join(short)
    return ("roll_back", f"inconclusive: {why}") if last_look else ("wait", why)


def _text(found: Lift) -> str:
    return f"{found.lift:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"
