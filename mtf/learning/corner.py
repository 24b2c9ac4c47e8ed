"""The corner rule: go where the global slope points, as far as the gate can follow, in every dimension alike.

The simplest learner there is, and one that a better one must beat: the sign of each dimension's slope of the TD residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.learning.config import Config
from mtf.learning.linear_advantage import LinearAdvantageConfig
from mtf.learning.linear_advantage import learn as fit_linear
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.step import shorten
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class CornerConfig(Config):
    """No settings of its own."""


def learn(problem: Problem, value: Value, config: CornerConfig, *, seed: int, progress: Progress) -> Learned:
    """The signs of the shrunken global slopes of `linear_advantage`. Closed form: the seed changes nothing."""
    fitted = fit_linear(problem, value, LinearAdvantageConfig(), seed=seed, progress=progress)
    slope = np.array(fitted.report["global_slope"], np.float32)
    varied = problem.half_width > 0
    wanted = np.broadcast_to(np.sign(slope) * varied, problem.center.shape)
    step = shorten(wanted, config.max_rms_step, varied)
    report = {"global_slope": slope.tolist(), "rms_wanted": step.rms_wanted, "wanted_edge_share": step.wanted_edge_share}
    return Learned(problem.step_action(step.y), report)
