"""The referee: the lift without Q's scale, from realised returns; and whether Q's scale is right.

    sum_t gamma^t (omega_t - omega0_t) (G_t - V(s_t)),    G the realised return-to-go

V only takes variance away. It sees what the degree-1 weight sees, and nothing past the end of a session that was cut but V: it is
compared with the primary less its bend and less the advantages that the primary adds there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.evaluation import weights
from mtf.evaluation.intervals import Estimate, by_user, ratio, slope
from mtf.evaluation.primary import Lift
from mtf.evaluation.steps import Steps
from mtf.evaluation.values import ActionValue


@dataclass(frozen=True)
class Referee:
    """lift: the referee's. gap: referee minus (primary less what it alone can see), user by user, with its own standard error."""

    lift: Estimate
    gap: Estimate


@dataclass(frozen=True)
class Calibration:
    """Held-out users' realised return-to-go against Q: slope, and the ratio of their means (the level)."""

    slope: Estimate
    level: Estimate


def referee(steps: Steps, q: ActionValue, against: Lift, alpha: float) -> Referee:
    """The referee's lift over the deployed value of `against` (the primary), and how far the two are apart."""
    n = len(steps)
    omega, omega0 = (weights.degree1(steps.x, at[:n]) for at in (steps.y, steps.y0))
    apart = omega - omega0
    surprise = steps.returns(q.value) - q.value[:n]
    difference = by_user(steps.per_session(steps.discount * apart * surprise), steps.session_user)
    bend = by_user(steps.per_session(steps.discount * q.bend), steps.session_user)
    beyond = steps.gamma * (omega * steps.next_values(q.target) - omega0 * steps.next_values(q.deployed))
    ahead = by_user(steps.per_session(steps.discount * np.where(steps.cut, beyond, 0)), steps.session_user)
    gap = difference - (against.difference - bend - ahead)
    return Referee(lift=ratio(difference, against.denominator, alpha), gap=ratio(gap, against.denominator, 0.05))


def calibrate(steps: Steps, q: ActionValue) -> Calibration:
    """Slope and level of the realised return-to-go on Q at the logged action, intervals of 95 %."""
    predicted = q.value[: len(steps)] + q.logged
    realised = steps.returns(q.value)
    sign = np.sign(predicted.sum())
    level = ratio(by_user(sign * realised, steps.user), by_user(sign * predicted, steps.user), 0.05)
    return Calibration(slope=slope(realised, predicted, steps.user, 0.05), level=level)


def slope_agreement(steps: Steps, q: ActionValue) -> tuple[float, int]:
    """(chi^2, degrees of freedom): one-step slopes in each dimension of the box against Monte-Carlo slopes.

    Far above its degrees of freedom, V pays credit for something that actions move and that is worth nothing.
    """
    n = len(steps)
    one_step = steps.reward + steps.gamma * steps.next_values(q.value) - q.value[:n]
    surprise = steps.returns(q.value) - q.value[:n]
    x = steps.x[:, steps.varied].astype(np.float64)
    apart = by_user(steps.per_session(x * (steps.discount * (one_step - surprise))[:, None]), steps.session_user)
    total = apart.sum(axis=0)
    covariance = apart.T @ apart
    return float(total @ np.linalg.lstsq(covariance, total, rcond=None)[0]), x.shape[1]
