"""The loop of every learner of gradient steps: batches, steps, held-out users, checkpoints.

A learner is an `Agent`: modules, optimisers, and `update`, one step on a batch that returns its losses as values. A run that
is killed goes on from its last checkpoint and ends in the same parameters, bit by bit (same threads and build).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mtf.errors import InputError
from mtf.learning import parallel
from mtf.learning.checkpoint import Best, Checkpoints
from mtf.learning.config import Config
from mtf.learning.memory import keep_freed_memory
from mtf.learning.progress import Progress
from mtf.learning.rows import Batch, Rows

CURVE_POINTS = 20
BLOCK = 64
"""Batches whose row numbers are drawn at once."""
HELD_OUT_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Config):
    """steps: updates (1000 to 300,000). batch: rows in each (256 to 4096; all processes together).
    held_out: share of the training users that no step sees (.05 to .2).
    keep: the parameters after the last step, or those whose Q is nearest to the held-out users' returns on the way.
    checkpoint_every: steps between checkpoints, where a folder for them is given (500 to 10,000).
    """

    steps: int = 4000
    batch: int = 1024
    held_out: float = 0.1
    keep: Literal["last", "best"] = "last"
    checkpoint_every: int = 1000


class Agent(ABC):
    """What is trained. `generator` draws all its noise, so that a checkpoint holds everything."""

    modules: nn.ModuleDict
    optimisers: dict[str, torch.optim.Optimizer]
    generator: torch.Generator

    @abstractmethod
    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """Step number `step` (from 1) on a batch; the losses as detached scalars."""

    @abstractmethod
    def values(self, batch: Batch) -> torch.Tensor:
        """Q(s, a) of the logged actions [n] by all critics together, in units of the reward scale. Draws nothing."""


def require_moves(steps: int, delay: int) -> None:
    """Raises InputError where an actor that moves every `delay` steps never would."""
    if steps < delay:
        raise InputError(f"--steps {steps}: the actor moves every {delay} steps; take more, or --set delay=")


@dataclass(frozen=True)
class Trained:
    """curve: losses at CURVE_POINTS steps, `step` among them, `held_out` too where users are held out. best_step: of the least
    held-out error. resumed: the step of the checkpoint that the run went on from, 0 where it began anew."""

    curve: list[dict[str, float]]
    best_step: int
    resumed: int

    @property
    def flat(self) -> bool:
        """Has Q's error on held-out users' returns come to rest: its last quarter within 1 % of the one before, either way?"""
        values = [point["held_out"] for point in self.curve if "held_out" in point]
        quarter = len(values) // 4
        if quarter == 0:
            return False
        last, before = sum(values[-quarter:]) / quarter, sum(values[-2 * quarter : -quarter]) / quarter
        return abs(last - before) <= 0.01 * before


def fit(
    agent: Agent,
    rows: Rows,
    pool: torch.Tensor,
    held: torch.Tensor,
    returns: torch.Tensor,
    config: TrainerConfig,
    *,
    seed: int,
    name: str,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Train `agent` for `config.steps` on the rows numbered in `pool`; it is left with the parameters to keep.

    held: numbers of the held-out rows. returns: what was realised from each of them on, in units of the reward scale: unlike a
    TD error, whose targets grow with the values, it is one yardstick for all steps. checkpoints: where to write them and to
    resume from.
    Raises InputError where a checkpoint is of another training, where no row is left to train on, where processes cannot share
    the batch evenly, or where a loss diverges.
    """
    if not len(pool):
        raise InputError(f"{name}: all explored rows are of the held-out users; log more users, or lower --set held_out")
    if config.batch % parallel.size():
        raise InputError(f"--set batch={config.batch}: {parallel.size()} processes share it; take a multiple of their number")
    keep_freed_memory()
    curve: list[dict[str, float]] = []
    best: Best = (float("inf"), 0, {})
    begin = 0
    if checkpoints is not None and (found := checkpoints.load(agent)) is not None:
        begin, curve, best = found.step, found.curve, found.best
    sample = torch.linspace(0, len(held) - 1, min(len(held), HELD_OUT_ROWS)).long() if len(held) else held
    watched, realised = rows.take(held[sample]) if len(held) else None, returns[sample]
    every = max(config.steps // CURVE_POINTS, 1)
    for step in progress.over(range(begin + 1, config.steps + 1), name):
        losses = agent.update(rows.take(draw(pool, step, config.batch, seed)), step)
        if step % every == 0 or step == config.steps:
            point = {"step": float(step), **{key: float(parallel.mean(value)) for key, value in losses.items()}}
            _finite(point, name)
            if watched is not None:
                with torch.no_grad():
                    point["held_out"] = float((agent.values(watched) - realised).square().mean())
                if point["held_out"] < best[0]:
                    best = (point["held_out"], step, {k: v.clone() for k, v in agent.modules.state_dict().items()})
            curve.append(point)
            progress.show({key: value for key, value in point.items() if key != "step"})
        if checkpoints is not None and step % config.checkpoint_every == 0 and parallel.rank() == 0:
            checkpoints.save(agent, step=step, curve=curve, best=best)
    if config.keep == "best" and best[2]:
        agent.modules.load_state_dict(best[2])
    return Trained(curve, best[1], begin)


def _finite(point: dict[str, float], name: str) -> None:
    """Raises InputError where a loss is not a number any more: nothing that follows would be."""
    if lost := [key for key, value in point.items() if not math.isfinite(value)]:
        raise InputError(
            f"{name}: divergence: `{lost[0]}` is {point[lost[0]]} at step {point['step']:.0f}; take smaller "
            "steps (the learning rates are among this algorithm's settings), or another algorithm"
        )


def draw(pool: torch.Tensor, step: int, batch: int, seed: int) -> torch.Tensor:
    """Row numbers of the batch of `step`: a function of seed and step alone; of several processes each takes its part."""
    block, place = divmod(step - 1, BLOCK)
    if _drawn.get("key") != (seed, block, batch, len(pool)):
        mixed = hashlib.sha256(f"{seed} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7], "little"))
        _drawn.update(key=(seed, block, batch, len(pool)), rows=torch.randint(len(pool), (BLOCK, batch), generator=generator))
    rows = _drawn["rows"]
    assert isinstance(rows, torch.Tensor)
    return pool[rows[place, parallel.rank() :: parallel.size()]]


_drawn: dict[str, object] = {}


def keep_actor_loss(modules: nn.ModuleDict) -> None:
    """A place for the actor's last loss, which is not computed every step: checkpoints hold it with the parameters."""
    modules.register_buffer("actor_loss", torch.zeros(()))


def last_actor_loss(modules: nn.ModuleDict, there: bool) -> dict[str, torch.Tensor]:
    """It, once it is there."""
    return {"actor": modules.actor_loss.clone()} if there else {}


def descend(
    optimiser: torch.optim.Optimizer, loss: torch.Tensor, parameters: Iterable[nn.Parameter] | Sequence[nn.Parameter]
) -> None:
    """One step of `optimiser` on `parameters` alone: nothing else that the loss depends on gets a gradient."""
    chosen = list(parameters)
    for parameter, gradient in zip(chosen, torch.autograd.grad(loss, chosen), strict=True):
        # a fused optimiser goes through memory side by side, whatever the strides
        parameter.grad = parallel.mean(gradient).contiguous()
    optimiser.step()
