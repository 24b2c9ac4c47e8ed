"""The plug-in rule: rank by the reward that the scores promise, were they exact and were nothing to happen later.

It learns nothing from outcomes but each head's level: the step along the replayed slopes of `slate_replay` with its prior in
place of what it learned. Without long-term effects and with unbiased scores it is hard to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.errors import InputError
from mtf.learning.config import Config
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.slate_replay import Replay, SlateReplayConfig, replayed_rows, require_pairs
from mtf.learning.slates import require_paid_scores
from mtf.learning.step import evidence_step, linear_slopes
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class PlugInConfig(Config):
    """draws: fresh actions a request, in pairs mirrored at the box's middle (4 to 12)."""

    draws: int = 4


def require(problem: Problem, config: PlugInConfig) -> None:
    """Raises InputError where no candidates, no spec or no behaviour were logged, or where no score promises a reward."""
    if problem.data.spec is None or not len(replayed_rows(problem)):
        raise InputError("plug_in: needs a spec and the candidates' scores of explored requests; log them, or use another one")
    require_pairs(config.draws)
    problem.data.require_whole_candidates()
    require_paid_scores("plug_in", problem.data.spec)
    if problem.data.behaviour is None:
        raise InputError("plug_in: no column `behaviour` in the transitions, by which scores are calibrated; use another one")


def learn(problem: Problem, value: Value, config: PlugInConfig, *, seed: int, progress: Progress) -> Learned:
    """Step along the plug-in reward's slopes."""
    rows = replayed_rows(problem)
    replay = Replay(problem, value, SlateReplayConfig(draws=config.draws), rows, seed, progress)
    b = replay.prior[replay.effect]
    c = replay.slopes @ b
    arrays = problem.data.arrays
    slopes = linear_slopes(problem.phi, c, np.zeros((len(c), c.shape[1], c.shape[1])), arrays)
    step = evidence_step(
        slopes,
        kappa=1.0,
        threshold=0.0,
        max_rms=config.max_rms_step,
        varied=problem.half_width > 0,
        curvature=-(replay.second @ b),
        start=problem.start,
        arrays=arrays,
    )
    report = {"rms_wanted": step.rms_wanted, "plug_in_slope": c[:, 0].tolist(), "plug_in_scale": replay.plug_in_scale}
    return Learned(problem.step_action(step.y), report)
