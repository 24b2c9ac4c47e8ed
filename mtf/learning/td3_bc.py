"""TD3+BC (Fujimoto and Gu, 2021): TD3 whose actor is held to the logged actions.

Actor loss `-alpha mean Q_1(s, mu(s)) / mean |Q_1| + mean (mu(s) - a)^2`, actions in half-widths of the box. The square is a mean
over the dimensions that vary, as in the authors' code: alpha is worth the same in one and in ten. It is of the rows around the
policy deployed now (`Problem.hold`). The rest is `td3`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtf.learning import parallel
from mtf.learning.actor_critic import cloning_loss, run
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch
from mtf.learning.td3 import TD3, ActorLoss, TD3Config, require
from mtf.learning.value import Value

__all__ = ["TD3BC", "TD3BCConfig", "actor_loss", "learn", "require"]


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(TD3Config):
    """alpha: weight of Q against cloning (1 to 10; paper: 2.5)."""

    alpha: float = 2.5


def actor_loss(
    q: torch.Tensor, u: torch.Tensor, logged: torch.Tensor, hold: torch.Tensor, alpha: float, varied: int
) -> ActorLoss:
    """`-alpha mean q / mean |q| + mean hold (u - u_logged)^2`, hold [n], the square a mean over the `varied` dimensions, too.

    mean |q| is a mere number, as in the paper, and 1e-6 at least.
    """
    size, n = parallel.mean(q.abs().mean()).clamp(min=1e-6), len(q)
    cloning, by_u = cloning_loss(u, logged, hold / varied)
    return cloning - alpha * q.mean() / size, (-alpha / n / size).expand(n), by_u


class TD3BC(TD3):
    """TD3 with the cloning term."""

    config: TD3BCConfig

    def __init__(self, problem: Problem, rows: Batch, config: TD3BCConfig, generator: torch.Generator) -> None:
        super().__init__(problem, rows, config, generator)
        self.varied = max(int((problem.half_width > 0).sum()), 1)

    def actor_loss(self, batch: Batch, q: torch.Tensor, u: torch.Tensor) -> ActorLoss:
        return actor_loss(q, u, batch.u, batch.hold, self.config.alpha, self.varied)


def learn(
    problem: Problem,
    value: Value,
    config: TD3BCConfig,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Learned:
    """Train on the explored rows."""
    return run(
        lambda p, rows, generator: TD3BC(p, rows, config, generator),
        problem,
        value,
        config,
        name="td3_bc",
        seed=seed,
        progress=progress,
        checkpoints=checkpoints,
    )
