"""The next box: as wide as the policy moves, wider where it wants to go further, narrower where nothing is left to learn.

For each dimension, h the half-width that the logs were explored with:
    widen   (x 1.25) where most states' new actions lie beyond .8 h: the policy wants out of the box
    shrink  (x .8)   where slopes are known to be worth less than .2 % of the reward a request, even at their 95 % bounds: in the
                     mean over states, and in their root mean square, for what differs by state is there to be learned, too
    uphill  (x 1.25) where, else, the mean slope is known (at its 95 % bound) to point out of the box at its edge still: a policy
                     whose step was shortened does not show that
    moved            never below the 90 % quantile of |mu_new - mu_bp|, so that the next move of that size stays inside
    floor, cap       the nearest of the two where any of these would leave them
Then the budget, which binds the cost's upper side (its estimate + 1 standard error, so the lower
bound of what exploring earns), taken at the new widths:
    where it would be exceeded, nothing grows further than the budget allows
    where it is exceeded all the same and the cost is known not to be 0 (at its 95 % bound), all is narrowed by one factor,
    down to the floor, until it is not
A cost that cannot be told from 0 narrows nothing: the error of a curvature a half-width depends on the rows and not on the
width, so that few rows would exceed any budget at any width and take the box to its floor, round after round, where even
less can be learned. Where that error exceeds the budget nothing grows either: a cost below 0 counts as 0. Where the cost is
known, its upper side is at most 1.5 times its estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mtf.contracts.exploration import Dimension, ExplorationDocument, require_place, write_exploration
from mtf.errors import InputError
from mtf.learning.diagnostics import slope_tests
from mtf.learning.distil import act
from mtf.learning.problem import Problem, box_of_another, constant_reward, prepare
from mtf.learning.threads import fixed_threads
from mtf.learning.value import Value, fit_value
from mtf.policy import Policy, bootstrap_policy, load_policy
from mtf.transitions.table import TransitionSet, load_transitions

WIDEN, SHRINK = 1.25, 0.8
OUTWARD = 0.8
SETTLED_SHARE = 0.002
KNOWN = 1.96
DIGITS = 4
BISECTIONS = 30


def refresh(
    *,
    policy: Policy | Path | str,
    transitions: TransitionSet | Path,
    baseline: str | Path,
    previous: ExplorationDocument | None = None,
    out: Path | None = None,
    quantile: float = 0.9,
    floor: float = 0.05,
    cap: float = 0.3,
    budget: float = 0.03,
) -> ExplorationDocument:
    """The box for `policy`, from the training users' rows that explored around `baseline`; written to `out` if given.

    policy: the one that the box will be around; the baseline itself gives the champion's next box.
    previous: the box in force (default: that of the baseline's latest rows). budget: share of the reward a request that
    exploring may cost; floor and cap, normalised half-widths of every dimension that varies, come before it.
    Where no row explored around the baseline those around other policies speak for it; `reason` says so, as it says other
    warnings of the rows. Raises InputError where the policy does not fit the rows, where too few of them explored within their
    own boxes, where no reward differs, where `previous` varies what they do not, where floor, cap, quantile and budget make no
    sense, or where `out` is something else than an earlier exploration.json.
    """
    if not (0 < floor <= cap <= 1 and 0 < quantile <= 1 and 0 < budget < np.inf):
        raise InputError(
            f"exploration: floor {floor}, cap {cap}, quantile {quantile}, budget {budget}; keep 0 < floor <= cap <= 1, "
            "0 < quantile <= 1 and a budget above 0 that is finite"
        )
    if out is not None:
        require_place(out)
    data = transitions if isinstance(transitions, TransitionSet) else load_transitions(transitions, users="train")
    half = np.array(previous.half_width, np.float32) if previous is not None else None
    with fixed_threads():
        problem = prepare(data, baseline, half_width=half)
        target = _open(policy, problem)
        _require_rows(problem, half)
        of = previous.policy_sha if previous is not None else None
        warnings = [*problem.warnings, *constant_reward(problem.data), *box_of_another("`previous`", of, problem.baseline)]
        value = fit_value(problem)
        tests = slope_tests(problem, value, problem.current)
        q, covariance = curvature(problem, value)
        varying = rms_slope_bound(problem, value)
    before = problem.half_width
    move = np.abs(act(target, problem.data.state) - problem.center)
    reached = np.quantile(move, quantile, axis=0)
    outward = (move > OUTWARD * before).mean(axis=0)
    slope, se = np.array(tests["delta_slope"]), np.array(tests["delta_slope_se"])
    edge, edge_se = slope_at_the_edge(slope, se, q, covariance)
    reward = max(abs(float(problem.data.total_reward.mean())), 1e-12)
    widths, evidence = np.zeros(len(before)), []
    for d in range(len(before)):
        if before[d] == 0:
            rule, width = "fixed", 0.0
        elif outward[d] > 0.5:
            rule, width = "widen", before[d] * WIDEN
        elif max(abs(slope[d]) + KNOWN * se[d], varying[d]) < SETTLED_SHARE * reward:
            rule, width = "shrink", before[d] * SHRINK
        elif edge[d] > KNOWN * edge_se[d]:
            rule, width = "uphill", before[d] * WIDEN
        else:
            rule, width = "keep", float(before[d])
        if rule != "fixed" and reached[d] > width:
            rule, width = "moved", float(reached[d])
        if rule != "fixed" and not floor <= round(width, DIGITS) <= cap:
            rule = "floor" if width < floor else "cap"
        widths[d] = width
        evidence.append(
            Dimension(
                move=_round(reached[d]),
                outward=_round(outward[d]),
                slope=_round(slope[d]),
                slope_se=_round(se[d]),
                before=_round(before[d]),
                rule=rule,
            )
        )

    def limited(width: np.ndarray) -> np.ndarray:
        # in the digits that are written, so that the cost is that of the box that is served
        return np.where(before > 0, np.clip(np.round(width, DIGITS), floor, cap), 0.0)

    def cost(width: np.ndarray) -> tuple[float, float]:
        loss, se = exploration_cost(q, covariance, width / problem.unit)
        return loss / reward, se / reward

    widths, reason = within_budget(limited(widths), limited(np.minimum(widths, before)), budget, limited, cost)
    loss, loss_se = cost(widths)
    document = ExplorationDocument(
        policy_sha=target.sha,
        half_width=tuple(widths.tolist()),
        budget=budget,
        expected_loss=_round(loss),
        loss_se=_round(loss_se),
        evidence=tuple(evidence),
        reason="; ".join([reason, *warnings]),
    )
    return write_exploration(document, out) if out is not None else document.named()


def curvature(problem: Problem, value: Value) -> tuple[np.ndarray, np.ndarray]:
    """q [A] of `A = u . c - q . u^2` and its covariance [A, A], in reward a request; u in half-widths of the problem's box.

    Least squares of the TD residual on `u^2 - E u^2`, given the state, in the rows that explored around the baseline: in a box
    that is cut E u^2 is less, and u^2 alone would get what V leaves of the states whose box is. 0 where nothing varies.
    There must be more of those rows than columns of the two (`refresh` sees to it).
    """
    rows, varied = problem.current, problem.half_width > 0
    phi = problem.phi[rows].astype(np.float64)
    square = np.square(problem.u[rows][:, varied].astype(np.float64))
    square -= problem.mean_square(rows)[:, varied]
    both = np.column_stack([value.residual[rows].astype(np.float64), square])
    both -= phi @ np.linalg.lstsq(phi, both, rcond=None)[0]
    y, square = both[:, 0], both[:, 1:]
    inverse = np.linalg.pinv(square.T @ square, hermitian=True)
    found = -inverse @ (square.T @ y)
    noise = np.square(y + square @ found).sum() / (len(y) - phi.shape[1] - len(found))
    q, covariance = np.zeros(len(varied)), np.zeros((len(varied), len(varied)))
    q[varied] = found
    covariance[np.ix_(varied, varied)] = noise * inverse
    return q, covariance


def slope_at_the_edge(slope: np.ndarray, se: np.ndarray, q: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean advantage's slope [A] at the edge that it rises towards, `|slope| - 2 q`, and its standard error; above 0 it
    points out of the box. slope, se [A], q [A] and its covariance (see `curvature`): reward a request, in half-widths."""
    return np.abs(slope) - 2 * q, np.sqrt(np.square(se) + 4 * np.maximum(np.diag(covariance), 0.0))


def rms_slope_bound(problem: Problem, value: Value) -> np.ndarray:
    """Upper 95 % bound [A] of the root mean square over states of the advantage's slope in u_d, reward a request a half-width.

    Slopes are linear in phi, b by least squares in the rows that explored around the baseline, with covariance C (White, 1980).
    With G the mean of phi phi', `b' G b - tr(G C)` is their mean square without bias, of variance `2 tr(G C G C) + 4 b' G C G b`.
    """
    rows = problem.current
    phi, u = problem.phi[rows].astype(np.float64), problem.u[rows].astype(np.float64)
    y = value.residual[rows].astype(np.float64)
    y -= phi @ np.linalg.lstsq(phi, y, rcond=None)[0]
    gram, bound = phi.T @ phi / len(phi), np.zeros(u.shape[1])
    for d in np.flatnonzero(problem.half_width > 0):
        x = u[:, d, None] * phi
        inverse = np.linalg.pinv(x.T @ x, hermitian=True)
        b = inverse @ (x.T @ y)
        error = x * (y - x @ b)[:, None]
        gc = gram @ (inverse @ (error.T @ error) @ inverse)
        square = b @ gram @ b - np.trace(gc)
        sd = np.sqrt(max(2 * np.trace(gc @ gc) + 4 * b @ gc @ gram @ b, 0.0))
        bound[d] = np.sqrt(max(square + KNOWN * sd, 0.0))
    return bound


def exploration_cost(q: np.ndarray, covariance: np.ndarray, width: np.ndarray) -> tuple[float, float]:
    """(reward a request that exploring loses, standard error) in a box of half-widths `width` [A], in units of q's own box.

    u_d^2 is `width_d^2 / 3` in the mean of a box that is not cut, and 0 in its middle: `sum_d q_d width_d^2 / 3`.
    """
    share = np.square(width) / 3
    return float(share @ q), float(np.sqrt(max(share @ covariance @ share, 0.0)))


def within_budget(
    wanted: np.ndarray,
    held: np.ndarray,
    budget: float,
    limited: Callable[[np.ndarray], np.ndarray],
    cost: Callable[[np.ndarray], tuple[float, float]],
) -> tuple[np.ndarray, str]:
    """The box [A] between `wanted`, `held` (the same without what grows) and the floor that the budget allows, and why.

    limited: the nearest box within the floor and the cap. cost: (loss, standard error) of a box, in the budget's unit.
    """

    def fits(width: np.ndarray) -> bool:
        loss, se = cost(width)
        return max(loss, 0.0) + se <= budget

    if fits(wanted):
        return wanted, "within its budget"
    share, width = _largest(lambda t: limited(held + t * (wanted - held)), fits)
    if fits(width):
        return width, f"grown by {share:.0%} of what was asked for: all of it might cost more than its budget"
    loss, se = cost(held)
    if loss <= KNOWN * se:
        return held, "not grown: it might cost more than its budget, and its cost cannot be told from 0; gather more rows"
    factor, width = _largest(lambda t: limited(held * t), fits)
    if fits(width):
        return width, f"narrowed by {factor:.2f}: exploring might cost more than its budget"
    return width, "at its floor: exploring might cost more than its budget even there"


def _largest(path: Callable[[float], np.ndarray], fits: Callable[[np.ndarray], bool]) -> tuple[float, np.ndarray]:
    """The largest t in [0, 1) whose box fits, by bisection, and that box; 0 where none does. That of 1 does not fit."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(path(middle)) else (low, middle)
    return low, path(low)


def _require_rows(problem: Problem, previous: np.ndarray | None) -> None:
    """Raises InputError where the rows that explored around the baseline cannot say what its box is worth."""
    varied, rows = problem.half_width > 0, problem.current
    count, unknowns, name = int(rows.sum()), problem.phi.shape[1] + int(varied.sum()), problem.baseline.name
    if count <= unknowns:
        raise InputError(
            f"transitions: {count} row(s) around {name} have `action` in their own box (center + lower to center + upper), "
            f"{problem.dropped['action_outside_its_box']} outside of it; log more than {unknowns} inside, with the center, "
            "lower and upper that their actions were drawn from"
        )
    # `prepare` has taken the width of those that no row explored
    in_force = problem.half_width if previous is None else previous
    still = np.flatnonzero((in_force > 0) & ~problem.u[rows].any(axis=0))
    if len(still):
        raise InputError(
            f"exploration: half_width[{still[0]}] is {in_force[still[0]]:g} and no row around {name} varies there; "
            "give the box that they explored"
        )


def _open(policy: Policy | Path | str, problem: Problem) -> Policy:
    if isinstance(policy, Policy):
        found = policy
    elif str(policy) == "bootstrap":
        if problem.data.spec is None:
            raise InputError("policy: `bootstrap` is the spec's start and these transitions have no spec; give a bundle")
        found = bootstrap_policy(problem.data.spec)
    else:
        found = load_policy(policy)
    name = "policy:" if isinstance(policy, Policy) else f"policy: {policy}"
    problem.data.require_fit(name, found, "give a policy of the spec that they were logged under")
    return found


def _round(value: float) -> float:
    return round(float(value), DIGITS)
