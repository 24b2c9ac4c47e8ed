"""The gate: may this policy go to a canary?

pass: the primary's interval lies above 0 and every check that votes holds. fail: it lies below 0, or the policy leaves the
logged box. Anything else is inconclusive, with the reason in one sentence.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from mtf.evaluation.intervals import Estimate
from mtf.evaluation.referee import Calibration, Referee
from mtf.evaluation.steps import Coverage, Steps

MAX_UNCOVERED = 0.01
MAX_STEP = 0.5
STEP_SLACK = 1.05  # a distilled network misses its target by a little
CALIBRATED = (0.9, 1.1)
REFEREE_WITHIN = 2.0
SECOND_ORDER = 0.5
MIN_USERS = 200
MAX_OUTSIDE_BOX = 0.001
MAX_UNIFORM_Z = 5.0
MIN_LEVEL_Z = 4.0

Verdict = Literal["pass", "fail", "inconclusive"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of the gate.

    holds: whether it is met; votes: whether the verdict depends on it; value and allowed: as text; why: what breaks where it
    does not hold, one sentence that ends the verdict's reason.
    """

    name: str
    holds: bool
    votes: bool
    value: str
    allowed: str
    meaning: str
    why: str


def coverage_check(coverage: Coverage) -> Check:
    """At most 1 % of states may have an action outside the logged box: nothing is known there."""
    return Check(
        name="coverage",
        holds=coverage.states <= MAX_UNCOVERED,
        votes=True,
        value=f"{coverage.states:.2%} of states outside",
        allowed=f"<= {MAX_UNCOVERED:.0%}",
        meaning="the policy's actions lie inside the box that was explored; what lies outside was never tried",
        why=f"the policy leaves the explored box in {coverage.states:.1%} of states (at most {MAX_UNCOVERED:.0%}), "
        "where nothing was ever tried; clip it to the box and train again",
    )


def row_checks(steps: Steps, coverage: Coverage, users: int) -> list[Check]:
    """Can these rows carry an estimate: enough users, explored around this baseline, uniformly in their boxes."""
    outside = float((np.abs(steps.x) > 1 + 1e-3).any(axis=1).mean())
    z = uniformity(steps)
    return [
        Check(
            name="users",
            holds=users >= MIN_USERS,
            votes=True,
            value=f"{users:,}",
            allowed=f">= {MIN_USERS}",
            meaning="users are the unit of every interval; with too few, none of them holds",
            why=f"only {users} users are left (at least {MIN_USERS} are needed); explore for longer or with a larger share",
        ),
        Check(
            name="baseline",
            holds=coverage.deployed_off <= MAX_UNCOVERED,
            votes=True,
            value=f"{coverage.deployed_off:.2%} of states differ",
            allowed=f"<= {MAX_UNCOVERED:.0%}",
            meaning="the rows were explored around the policy that the lift is measured against",
            why=f"in {coverage.deployed_off:.1%} of states the logged centre is not the baseline's action; "
            "explore around this baseline, or name the policy that did explore",
        ),
        Check(
            name="propensities",
            holds=outside <= MAX_OUTSIDE_BOX and z <= MAX_UNIFORM_Z,
            votes=True,
            value=f"{outside:.2%} outside their box, |z| {z:.1f}",
            allowed=f"<= {MAX_OUTSIDE_BOX:.1%}, <= {MAX_UNIFORM_Z:.0f}",
            meaning="logged actions are uniform in their boxes, as the weights assume (first two moments of the position)",
            why="the logged actions are not uniform in their boxes, so the weights would be wrong; log action, center, lower and "
            "upper exactly as they were sampled",
        ),
    ]


def uniformity(steps: Steps) -> float:
    """Largest |z| over the varied dimensions of mean x against 0 and mean x^2 against 1/3."""
    x = steps.x[:, steps.varied].astype(np.float64)
    moving = (x != 0).mean(axis=0)
    count = np.maximum(moving * len(x), 1)
    first = np.abs(x.sum(axis=0)) / np.sqrt(count / 3)
    second = np.abs((x * x).sum(axis=0) - count / 3) / np.sqrt(count * 4 / 45)
    return float(np.concatenate([first, second]).max(initial=0.0))


def step_size(steps: Steps) -> float:
    """RMS of y - y0 over states and varied dimensions: how far the policy moves, in half-widths of the box."""
    moved = (steps.y - steps.y0)[: len(steps), steps.varied].astype(np.float64)
    return float(np.sqrt((moved**2).mean())) if moved.size else 0.0


def estimate_checks(step: float, calibration: Calibration, lift: Estimate, deployed: Estimate, second: Referee) -> list[Check]:
    """Can the primary be believed: a small step, Q on the right scale, and a referee that does not use that scale."""
    slope, level = calibration.slope, calibration.level
    # a slope that the data cannot tell from 1 cannot move the lift by more than a fraction of its standard error
    slope_holds = slope.low <= CALIBRATED[1] and slope.high >= CALIBRATED[0]
    level_holds = CALIBRATED[0] <= level.mean <= CALIBRATED[1]
    # the two differ in products of effects of a session's steps, which grow with the square of the lift
    beyond = max(abs(second.gap.mean) - SECOND_ORDER * lift.mean**2, 0.0)
    apart = beyond / second.gap.se if second.gap.se > 0 else 0.0
    positive = second.lift.mean > 0
    valued = abs(deployed.mean) >= MIN_LEVEL_Z * deployed.se
    return [
        Check(
            name="value",
            holds=valued,
            votes=True,
            value=f"{deployed.mean:.4g} +- {deployed.se:.2g}",
            allowed=f"{MIN_LEVEL_Z:.0f} standard errors from 0",
            meaning="a lift is a fraction of the deployed policy's value, which must therefore be known",
            why="the deployed policy's value cannot be told from 0, so a lift as a fraction of it means nothing",
        ),
        Check(
            name="step",
            holds=step <= MAX_STEP * STEP_SLACK,
            votes=True,
            value=f"{step:.3f}",
            allowed=f"<= {MAX_STEP}",
            meaning="RMS move in half-widths of the box; the estimate takes the states to be those that were logged",
            why=f"the policy moves {step:.2f} half-widths (RMS; at most {MAX_STEP}), too far for an estimate that takes states "
            "as they were logged; train a smaller step",
        ),
        Check(
            name="calibration",
            holds=slope_holds and level_holds,
            votes=True,
            value=f"slope {slope.mean:.3f} [{slope.low:.3f}, {slope.high:.3f}], level {level.mean:.3f}",
            allowed=f"[{CALIBRATED[0]}, {CALIBRATED[1]}]",
            meaning="realised return-to-go of held-out users against Q: a Q of the wrong scale invents or hides lift. The slope "
            "breaks it when its 95 % interval misses the range, the level when it lies outside",
            why=f"Q is off scale on held-out users (slope {slope.mean:.2f}, level {level.mean:.2f}; allowed {CALIBRATED[0]} to "
            f"{CALIBRATED[1]}), so the lift cannot be trusted",
        ),
        Check(
            name="referee",
            holds=apart <= REFEREE_WITHIN and (positive or lift.mean <= 0),
            votes=True,
            value=f"{second.lift.mean:+.2%} +- {second.lift.se:.2%}, {apart:.1f} standard errors apart",
            allowed=f"> 0 where the lift is, within {REFEREE_WITHIN:.0f}",
            meaning="an estimate from realised returns, which does not use Q's scale, says the same",
            why=f"the referee, which does not use Q's scale, disagrees ({second.lift.mean:+.1%} against {lift.mean:+.1%})",
        ),
    ]


def guardrail_check(found: dict[str, Estimate]) -> Check:
    """Is no guarded metric shown to fall? Not voted: whether the reward is worth it is for people to say, or for its weights."""
    falls = [f"{name} by {-of.mean:.1%} ({-of.high:.1%} to {-of.low:.1%})" for name, of in found.items() if of.high < 0]
    return Check(
        name="guardrails",
        holds=not falls,
        votes=False,
        value="; ".join(f"{name} {of.mean:+.1%} [{of.low:+.1%}, {of.high:+.1%}]" for name, of in found.items()),
        allowed="no interval below 0",
        meaning="what the canary guards beside the reward, by the primary's own estimator; not voted",
        why=f"it is expected to lower {' and '.join(falls)}, discounted as the lift is; a canary counts whole sessions and "
        "rolls back a metric that it sees fall. Where the reward is not worth that, raise these behaviours' weights in it",
    )


def decide(lift: Estimate | None, checks: list[Check], alpha: float, detectable: float | None) -> tuple[Verdict, str]:
    """(verdict, reason) from the primary's interval and the checks, in the order in which they are listed."""
    broken = [check for check in checks if check.votes and not check.holds]
    for check in broken:
        if check.name == "coverage":
            return "fail", sentence(check.why)
    if lift is None:
        return "inconclusive", sentence(broken[0].why if broken else "there is nothing to estimate from")
    known = f"lift {lift.mean:+.2%} with a {1 - alpha:.0%} interval of {lift.low:+.2%} to {lift.high:+.2%}"
    fatal = [check for check in broken if check.name in ("users", "baseline", "propensities", "value")]
    if not fatal and lift.high < 0:
        return "fail", sentence(f"{known} lies below 0")
    if broken:
        return "inconclusive", sentence(broken[0].why)
    if lift.low > 0:
        warned = "".join(f"; but {check.why}" for check in checks if not check.votes and not check.holds)
        return "pass", sentence(f"{known} lies above 0, and all checks that vote hold{warned}")
    found = f"; this far from the deployed policy a lift of {detectable:.1%} is found four times in five" if detectable else ""
    return "inconclusive", sentence(f"{known} includes 0{found}")


def sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    return text[:1].upper() + text[1:] + "."
