"""What a policy would do to the metrics that a canary guards beside the reward, before any user meets it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mtf.evaluation.gate import MIN_LEVEL_Z
from mtf.evaluation.intervals import Estimate
from mtf.evaluation.primary import primary
from mtf.evaluation.steps import Steps
from mtf.evaluation.values import fit_action_value

GUARDED = {"valid": "valid", "duration": "watch"}
"""A canary's metric and the behaviour that it adds up."""


def guardrails(steps: Steps, behaviour: np.ndarray | None, behaviours: tuple[str, ...], alpha: float) -> dict[str, Estimate]:
    """Lift over the deployed policy of each of GUARDED that these rows hold: the primary estimator, with the behaviour in the
    reward's place and a Q of its own.

    behaviour [n, B]: sums over shown items, in the order of `behaviours`. A metric is left out where the deployed policy's
    value of it cannot be told from 0. Discounted as the reward is; a canary counts whole sessions, of which logs alone say far
    less (docs/evaluation.md).
    """
    found = {}
    for metric, name in GUARDED.items():
        if behaviour is None or name not in behaviours:
            continue
        reward = behaviour[:, behaviours.index(name)].astype(np.float64)
        if not np.ptp(reward) > 0:
            continue
        of = replace(steps, reward=reward)
        lift = primary(of, fit_action_value(of), alpha)
        if abs(lift.deployed.mean) >= MIN_LEVEL_Z * lift.deployed.se:
            found[metric] = lift.lift
    return found
