"""What an action does to the slate that it ranks, for the ensemble's critics (`networks.SlateCritics`, form `slate`).

The features and their replay are those of `slate_replay`; here each critic learns their worth from its own TD error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtf.errors import InputError
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.ridge import empirical_bayes
from mtf.learning.slate_replay import Replay, SlateReplayConfig
from mtf.learning.value import Value


@dataclass(frozen=True)
class SlatePart:
    """effects [n, 2 L]: l~ and l~^2 of the logged slates. slopes [A, P, F], second [A, F], prior [F]: see `Replay`; the prior is
    in units of the reward scale, and as much of it as rewards bear out."""

    effects: torch.Tensor
    slopes: torch.Tensor
    second: torch.Tensor
    prior: torch.Tensor
    report: dict[str, Any]


def require_candidates(problem: Problem) -> None:
    """Raises InputError where fewer than half of the explored requests logged their candidates."""
    logged, explored = int((problem.signal & problem.data.has_candidates).sum()), int(problem.signal.sum())
    if problem.data.spec is None or logged < 0.5 * explored:
        raise InputError(
            f"form = 'slate': {logged} of {explored} explored rows logged their candidates; log them, or use 'advantage'"
        )


def slate_part(problem: Problem, value: Value, scale: float, *, seed: int, progress: Progress) -> SlatePart:
    """Replay the explored requests once."""
    rows = np.flatnonzero(problem.signal & problem.data.has_candidates)
    replay = Replay(problem, value, SlateReplayConfig(), rows, seed, progress, keep=True)
    assert replay.effects is not None
    moments = (replay.folds[0] + replay.folds[1]).columns(replay.model)
    worth = empirical_bayes(moments, replay.group, replay.prior).worth or {"value": 0.0, "sd": 1.0}
    # as in `step.evidence_step`: nothing for one standard deviation, all for two; the critics share it, so no spread doubts it
    trusted = worth["value"] * float(np.clip(abs(worth["value"]) / worth["sd"] - 1, 0, 1))

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    return SlatePart(
        effects=tensor(replay.effects),
        slopes=tensor(replay.slopes),
        second=tensor(replay.second),
        prior=tensor(trusted * replay.prior[replay.effect] / scale),
        report={"plug_in_scale": replay.plug_in_scale, "plug_in_worth": worth, "plug_in_trusted": trusted},
    )
