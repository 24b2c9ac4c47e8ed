"""Behaviour cloning: the conditional mean of the logged actions, by ridge on the state.

In a box around the deployed policy that mean is the box's middle: the policy itself, but where the box is cut at the edge of the
action space. Whoever is held to logged actions walks there too, without having learned anything from rewards: `bc` is what they
are to be read against. Of a log without exploration it is what was served: all that such a log can teach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mtf.learning.config import Config
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.ridge import Moments, ridge
from mtf.learning.value import Value
from mtf.transitions.arrays import chunks


@dataclass(frozen=True, kw_only=True)
class BCConfig(Config):
    """penalty: ridge penalty a row (1e-4 to .1)."""

    needs_exploration: ClassVar[bool] = False

    penalty: float = 1e-3


def learn(problem: Problem, value: Value, config: BCConfig, *, seed: int, progress: Progress) -> Learned:
    """Regress `a - mu_bp(s)` of the rows around the deployed policy on phi(s)."""
    data, phi = problem.data, problem.phi
    used = problem.held_to if problem.signal.any() else np.ones(len(data), bool)
    moments = Moments.zero(phi.shape[1], data.action_width)
    for rows in chunks(len(data)):
        move = (data.action[rows] - data.center[rows]) / problem.unit
        moments = moments + Moments.of(phi[rows][used[rows]], move[used[rows]])
    coefficients = ridge(moments, config.penalty)
    (step,) = data.arrays.build(len(data), lambda rows: (phi[rows] @ coefficients.astype(np.float32),))
    square = sum(moments.squared_error(coefficients[:, d], d) for d in range(data.action_width))
    residual = np.sqrt(max(square, 0.0) / (moments.n * data.action_width))
    return Learned(problem.step_action(step), {"residual_rms": float(residual)})
