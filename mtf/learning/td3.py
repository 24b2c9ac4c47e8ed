"""TD3 (Fujimoto, van Hoof and Meger, 2018): twin critics, a smoothed target, a slower actor. No caution about coverage.

`y = r + gamma (1 - done) min_i Q'_i(s', mu'(s') + clipped noise)`, actor loss `-Q_1(s, mu(s))`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from mtf.learning import parallel
from mtf.learning.actor_critic import ActorCritic, ActorCriticConfig, adams, boxed, from_center, run
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.networks import Actor, JointCritics, soft_update
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch
from mtf.learning.trainer import descend
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class TD3Config(ActorCriticConfig):
    """delay: critic updates a policy update (1 to 4). noise, noise_clip: spread and bound of the noise on the target's action,
    in half-widths (.1 to .5, .2 to 1)."""

    delay: int = 2
    noise: float = 0.2
    noise_clip: float = 0.5


def critic_loss(
    critics: JointCritics,
    target: JointCritics,
    target_actor: Actor,
    batch: Batch,
    unit: torch.Tensor,
    gamma: float,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Both critics against the smaller of their targets; noise [n, A] in half-widths, clipped already."""
    with torch.no_grad():
        u = boxed(target_actor, batch.next_z, batch.next_box, unit)
        # a box that is cut ends before 1, and a dimension that is fixed has no room at all
        _, lower, upper = batch.next_box
        reach = (upper - lower) / 2 / unit
        next_q = target(batch.next, (u + noise).clamp(-reach, reach)).min(0).values
        y = batch.reward.sum(1) + gamma * (1 - batch.done) * next_q
    return (critics(batch.now, batch.u) - y).square().mean(1).sum()


def actor_loss(critics: JointCritics, actor: Actor, batch: Batch, unit: torch.Tensor) -> torch.Tensor:
    """`-mean Q_1(s, mu(s))`."""
    return -critics.first(batch.now, boxed(actor, batch.z, batch.box, unit)).mean()


class TD3(ActorCritic):
    """Twin critics, one actor, their targets."""

    def __init__(self, problem: Problem, rows: Batch, config: TD3Config, generator: torch.Generator) -> None:
        self.config, self.gamma, self.generator = config, problem.gamma, generator
        self.unit, self.width = torch.from_numpy(problem.unit), problem.data.action_width
        self.critics = JointCritics(2, rows.now[1].shape[1], self.width, config.critic_hidden, generator)
        self.actor = Actor(rows.z.shape[1], self.width, config.actor_hidden, generator)
        self.target, self.target_actor = copy.deepcopy(self.critics), copy.deepcopy(self.actor)
        self.modules = nn.ModuleDict(
            {"critics": self.critics, "actor": self.actor, "target": self.target, "target_actor": self.target_actor}
        )
        self.optimisers = adams(self.modules, config.lr, "critics", "actor")

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        config = self.config
        noise = parallel.drawn(torch.randn, len(batch), self.width, batch=config.batch, generator=self.generator)
        noise = (noise * config.noise).clamp(-config.noise_clip, config.noise_clip)
        loss = critic_loss(self.critics, self.target, self.target_actor, batch, self.unit, self.gamma, noise)
        descend(self.optimisers["critics"], loss, self.critics.parameters())
        if step % config.delay == 0:
            descend(self.optimisers["actor"], self.actor_loss(batch), self.actor.parameters())
            soft_update(self.target, self.critics, config.tau)
            soft_update(self.target_actor, self.actor, config.tau)
        return {"td_error": loss.detach() / 2}

    def actor_loss(self, batch: Batch) -> torch.Tensor:
        """The actor's loss on a batch."""
        return actor_loss(self.critics, self.actor, batch, self.unit)

    def held_out_loss(self, batch: Batch) -> torch.Tensor:
        still = torch.zeros(len(batch), self.width)
        return critic_loss(self.critics, self.target, self.target_actor, batch, self.unit, self.gamma, still) / 2

    def move(self, batch: Batch) -> torch.Tensor:
        return from_center(boxed(self.actor, batch.z, batch.box, self.unit), batch.box, self.unit)


def learn(
    problem: Problem,
    value: Value,
    config: TD3Config,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Learned:
    """Train on the explored rows."""
    return run(
        lambda p, rows, generator: TD3(p, rows, config, generator),
        problem,
        value,
        config,
        name="td3",
        seed=seed,
        progress=progress,
        checkpoints=checkpoints,
    )
