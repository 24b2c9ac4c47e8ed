"""The primary estimator: lift over the deployed policy by projected weights around a cross-fitted Q (doubly robust).

For a policy at position y in the box, a session is worth

    Q(s_0, y) + sum_t gamma^t omega_t (r_t + gamma Q(s_{t+1}, y) - Q(s_t, a_t)),    omega_t = 1 + 3 sum_d x_d y_d

and the lift is the difference between target and deployed policy, paired session by session, over the deployed policy's
own value by the same estimator. The state distribution is taken to be the one that was logged: valid for small steps
(RMS |y| <= .5). It inherits Q's scale, hence the calibration check and the referee.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.evaluation import weights
from mtf.evaluation.intervals import Estimate, by_user, ratio
from mtf.evaluation.steps import Steps
from mtf.evaluation.values import ActionValue


@dataclass(frozen=True)
class Lift:
    """A lift and what it was made from.

    lift: a fraction, with its interval. deployed, target: mean value of a session. difference, denominator [u]: sums over
    each user's sessions of target - deployed and of deployed. bend: the share of the lift that squares and products of x
    contributed (the weight does not see them).
    """

    lift: Estimate
    deployed: Estimate
    target: float
    difference: np.ndarray
    denominator: np.ndarray
    bend: float


def primary(steps: Steps, q: ActionValue, alpha: float, degree: int = 1) -> Lift:
    """The paired doubly robust lift; `degree` 2 uses the degree-2 weight (no bias from curvature, a far larger variance)."""
    weight = weights.degree1 if degree == 1 else weights.degree2
    n = len(steps)
    worth = {}
    for name, at, position in (("target", q.target, steps.y), ("deployed", q.deployed, steps.y0)):
        q_at = q.value + at
        error = steps.reward + steps.gamma * steps.next_values(q_at) - (q.value[:n] + q.logged)
        worth[name] = q_at[steps.starts] + steps.per_session(steps.discount * weight(steps.x, position[:n]) * error)
    sessions = len(steps.starts)
    user = steps.session_user
    difference, denominator = by_user(worth["target"] - worth["deployed"], user), by_user(worth["deployed"], user)
    count = by_user(np.ones(sessions), user)
    level = abs(float(worth["deployed"].mean()))
    return Lift(
        lift=ratio(difference, denominator, alpha, q.bend_se / level if degree == 1 else 0.0),
        deployed=ratio(denominator, count, alpha),
        target=float(worth["target"].mean()),
        difference=difference,
        denominator=denominator,
        bend=float(steps.discount @ q.bend) / sessions / level,
    )
