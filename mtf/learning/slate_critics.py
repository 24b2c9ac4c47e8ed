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
from mtf.learning.slate_replay import Replay, SlateReplayConfig
from mtf.learning.value import Value


@dataclass(frozen=True)
class SlatePart:
    """effects [n, 2 L]: l~ and l~^2 of the logged slates. slopes [A, P, F], second [A, F], prior [F]: see `Replay`; the prior is
    in units of the reward scale."""

    effects: torch.Tensor
    slopes: torch.Tensor
    second: torch.Tensor
    prior: torch.Tensor
    report: dict[str, Any]


def slate_part(problem: Problem, value: Value, scale: float, *, seed: int, progress: Progress) -> SlatePart:
    """Replay the explored requests once. Raises InputError where fewer than half of them logged their candidates."""
    rows = np.flatnonzero(problem.signal & problem.data.has_candidates)
    explored = int(problem.signal.sum())
    if problem.data.spec is None or len(rows) < 0.5 * explored:
        raise InputError(
            f"form = 'slate': {len(rows)} of {explored} explored rows logged their candidates; log them, or use 'advantage'"
        )
    replay = Replay(problem, value, SlateReplayConfig(), rows, seed, progress, keep=True)
    assert replay.effects is not None

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    return SlatePart(
        effects=tensor(replay.effects),
        slopes=tensor(replay.slopes),
        second=tensor(replay.second),
        prior=tensor(replay.prior[replay.effect] / scale),
        report={"plug_in_scale": replay.plug_in_scale},
    )
