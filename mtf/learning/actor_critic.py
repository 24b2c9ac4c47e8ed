"""What the usual actor-critic learners share: their settings, their actor in the box, and how a run begins and ends.

They are comparators (docs/method.md): critics are MLPs of state and action together, trained on explored rows alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mtf.learning.checkpoint import Checkpoints
from mtf.learning.critic_report import calibrate_action, calibrate_value, critic_warnings
from mtf.learning.networks import Actor, JointCritics
from mtf.learning.problem import Problem, users_held_out
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch, Box, tensors
from mtf.learning.step import shorten
from mtf.learning.trainer import Agent, TrainerConfig, fit
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(TrainerConfig):
    """tau: share of the targets' move a step (.001 to .05).
    critic_hidden, actor_hidden: widths (64 to 256)."""

    steps: int = 3000
    batch: int = 512
    tau: float = 0.005
    critic_hidden: tuple[int, ...] = (64, 64)
    actor_hidden: tuple[int, ...] = (64,)


@dataclass(frozen=True, kw_only=True)
class OneRateConfig(ActorCriticConfig):
    """lr: of all optimisers (1e-4 to 1e-3)."""

    lr: float = 1e-3


class ActorCritic(Agent):
    """An agent that can say what it would do, and whose critics say what that is worth."""

    critics: JointCritics

    @abstractmethod
    def move(self, batch: Batch) -> torch.Tensor:
        """The step from the deployed policy [n, A], in half-widths of the box."""

    def values(self, batch: Batch) -> torch.Tensor:
        return self.critics(batch.now, batch.u).mean(0)


def adams(modules: nn.ModuleDict, lr: float, *names: str) -> dict[str, torch.optim.Optimizer]:
    """An optimiser for each of the named modules; fused: one pass over all parameters."""
    return {name: torch.optim.Adam(modules[name].parameters(), lr=lr, fused=True) for name in names}


def squashed(raw: torch.Tensor, box_now: Box, unit: torch.Tensor) -> torch.Tensor:
    """Position u [n, A], in half-widths from the box's middle, of unbounded outputs: the whole box and nothing outside."""
    _, lower, upper = box_now
    return torch.tanh(raw) * (upper - lower) / 2 / unit


def from_center(u: torch.Tensor, box_now: Box, unit: torch.Tensor) -> torch.Tensor:
    """The step from the deployed policy, in half-widths, of a position u: a box that is cut has its middle elsewhere."""
    _, lower, upper = box_now
    return u + (lower + upper) / 2 / unit


def cloning_loss(u: torch.Tensor, logged: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`mean weight |u - u_logged|^2`, weight [n], and its slope in u [n, A]."""
    away = u - logged
    return (weight * away.square().sum(1)).mean(), away * (weight[:, None] * (2 / len(u)))


def boxed(actor: Actor, z: torch.Tensor, box_now: Box, unit: torch.Tensor) -> torch.Tensor:
    """`squashed` of an actor's outputs."""
    return squashed(actor(z), box_now, unit)


def run(
    make: Callable[[Problem, Batch, torch.Generator], ActorCritic],
    problem: Problem,
    value: Value,
    config: TrainerConfig,
    *,
    name: str,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None,
) -> Learned:
    """Train what `make` makes on the explored rows and return its actions, shortened to `max_rms_step`."""
    scale = max(float(value.ret.std()), 1e-6)
    rows = tensors(problem, scale, joint=True)
    agent = make(problem, rows.all, torch.Generator().manual_seed(seed))
    held = users_held_out(problem, config.held_out)
    pool, kept = (torch.from_numpy(np.flatnonzero(of & problem.signal)) for of in (~held, held))
    returns = torch.from_numpy(value.ret)[kept] / scale
    trained = fit(agent, rows, pool, kept, returns, config, seed=seed, name=name, progress=progress, checkpoints=checkpoints)
    with torch.no_grad():
        move, values, q = problem.data.arrays.build(len(rows), lambda some: _seen(agent, rows.part(some)))
    varied, wanted = problem.half_width > 0, problem.moves(problem.step_action(move))
    step = shorten(wanted, config.max_rms_step, varied, problem.data.arrays)
    report: dict[str, Any] = {
        "rms_wanted": step.rms_wanted,
        "wanted_edge_share": step.wanted_edge_share,
        "reward_scale": scale,
        "curve": trained.curve,
        "flat": trained.flat,
        "best_step": trained.best_step,
        "resumed_from": trained.resumed,
        "held_out_action": calibrate_action(problem, value, held, (q - values.mean(1)) * scale),
        "held_out_value": calibrate_value(value, held, q * scale),
        "warnings": critic_warnings(value, values, scale),
    }
    return Learned(problem.step_action(step.y), report)


def _seen(agent: ActorCritic, batch: Batch) -> tuple[np.ndarray, ...]:
    """The step [n, A]; each critic's value in the middle of the box [n, m]; their mean Q of the logged action [n]."""
    return agent.move(batch).numpy(), agent.critics.value(batch.now).T.numpy(), agent.values(batch).numpy()
