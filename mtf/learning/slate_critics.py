"""What an action does to the slate that it ranks, for the ensemble's critics (`networks.SlateCritics`, form `slate`).

The features and their replay are those of `slate_replay`; here each critic learns their worth from its own TD error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from mtf.errors import InputError
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.slate_replay import Replay, SlateReplayConfig, direct_effect, enough_logged, replayed_rows
from mtf.learning.slates import plug_in_weights
from mtf.learning.value import Value


@dataclass(frozen=True)
class SlatePart:
    """effects [n, 2 L]: l~ and l~^2 of the logged slates. slopes [A, P, F], second [A, F], prior [q, F]: see `Replay`; the prior
    is in units of the reward scale, as much of it as rewards bear out, a row for each group of critics: what its head pays."""

    effects: np.ndarray
    slopes: torch.Tensor
    second: torch.Tensor
    prior: torch.Tensor
    report: dict[str, Any]


def require_candidates(problem: Problem, *, by_head: bool) -> None:
    """Raises InputError where fewer than half of the explored requests logged their candidates, or, with a group of critics a
    reward head, where the heads are not those of the spec."""
    spec = problem.data.spec
    if spec is None or not enough_logged(problem):
        logged, explored = len(replayed_rows(problem)), int(problem.signal.sum())
        raise InputError(
            f"form = 'slate': {logged} of {explored} explored rows logged their candidates; log them, or use 'advantage'"
        )
    problem.data.require_whole_candidates()
    if by_head and problem.data.n_heads != spec.n_heads:
        raise InputError(
            f"form = 'slate': `reward` has width {problem.data.n_heads}, the spec {spec.n_heads} reward heads; "
            "give the spec that made the rewards, or use groups = 'total'"
        )


def slate_part(
    problem: Problem, value: Value, scale: float, *, held: np.ndarray, seed: int, progress: Progress, by_head: bool = False
) -> SlatePart:
    """Replay the explored requests once; `by_head`: for a group of critics a reward head, else one for their sum.

    held: bool [n], rows whose outcomes say nothing here: of users on whom the critics are judged.
    """
    spec = problem.data.spec
    assert spec is not None
    rows = replayed_rows(problem)
    replay = Replay(problem, value, SlateReplayConfig(), rows, seed, progress, keep=True, held=held)
    assert replay.effects is not None
    moments = replay.moments
    posterior = replay.fit(moments)
    test = direct_effect(posterior, moments, replay.model, replay.direct)
    worth = posterior.worth or {"value": 0.0, "sd": 1.0}
    # as in `step.evidence_step`: nothing for one standard deviation, all for two; the critics share it, so no spread doubts it
    trusted = worth["value"] * float(np.clip(abs(worth["value"]) / worth["sd"] - 1, 0, 1))

    prior = trusted * replay.prior[replay.effect][None] / scale
    if by_head:
        # a head promises its part of what a score is worth: all of it in every group would promise it once a head
        paid = np.array([plug_in_weights(msgspec.structs.replace(spec, reward_heads=(head,))) for head in spec.reward_heads])
        total = plug_in_weights(spec)
        share = np.divide(paid, total, out=np.zeros_like(paid), where=total != 0)
        means = slice(spec.n_objectives, 2 * spec.n_objectives)
        prior = np.repeat(prior, len(paid), axis=0)
        prior[:, means] *= share

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    return SlatePart(
        effects=replay.effects,
        slopes=tensor(replay.slopes),
        second=tensor(replay.second),
        prior=tensor(prior),
        report={"direct_effect": test, "plug_in_scale": replay.plug_in_scale, "plug_in_worth": worth, "plug_in_trusted": trusted},
    )
