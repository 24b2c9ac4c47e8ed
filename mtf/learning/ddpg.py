"""DDPG (Lillicrap et al., 2016): the deterministic policy gradient, without any caution about what the data do not cover.

`y = r + gamma (1 - done) Q'(s', mu'(s'))`, critic loss `(Q(s, a) - y)^2`, actor loss `-Q(s, mu(s))`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from mtf.learning.actor_critic import ActorCritic, OneRateConfig, adams, boxed, from_center, run
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.networks import Actor, JointCritics, soft_update
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch
from mtf.learning.trainer import descend
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(OneRateConfig):
    """No settings of its own."""


def critic_loss(
    critic: JointCritics, target: JointCritics, target_actor: Actor, batch: Batch, unit: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Mean squared TD error."""
    with torch.no_grad():
        next_q = target(batch.next, boxed(target_actor, batch.next_z, batch.next_box, unit))[0]
        y = batch.reward.sum(1) + gamma * (1 - batch.done) * next_q
    return (critic(batch.now, batch.u)[0] - y).square().mean()


def actor_loss(critic: JointCritics, actor: Actor, batch: Batch, unit: torch.Tensor) -> torch.Tensor:
    """`-mean Q(s, mu(s))`."""
    return -critic(batch.now, boxed(actor, batch.z, batch.box, unit)).mean()


class DDPG(ActorCritic):
    """One critic, one actor, their targets."""

    def __init__(self, problem: Problem, rows: Batch, config: DDPGConfig, generator: torch.Generator) -> None:
        self.config, self.gamma, self.generator = config, problem.gamma, generator
        self.unit = torch.from_numpy(problem.unit)
        width = problem.data.action_width
        self.critics = JointCritics(1, rows.now[1].shape[1], width, config.critic_hidden, generator)
        self.actor = Actor(rows.z.shape[1], width, config.actor_hidden, generator)
        self.target, self.target_actor = copy.deepcopy(self.critics), copy.deepcopy(self.actor)
        self.modules = nn.ModuleDict(
            {"critics": self.critics, "actor": self.actor, "target": self.target, "target_actor": self.target_actor}
        )
        self.optimisers = adams(self.modules, config.lr, "critics", "actor")

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        loss = critic_loss(self.critics, self.target, self.target_actor, batch, self.unit, self.gamma)
        descend(self.optimisers["critics"], loss, self.critics.parameters())
        gain = actor_loss(self.critics, self.actor, batch, self.unit)
        descend(self.optimisers["actor"], gain, self.actor.parameters())
        soft_update(self.target, self.critics, self.config.tau)
        soft_update(self.target_actor, self.actor, self.config.tau)
        return {"td_error": loss.detach(), "q": -gain.detach()}

    def move(self, batch: Batch) -> torch.Tensor:
        return from_center(boxed(self.actor, batch.z, batch.box, self.unit), batch.box, self.unit)


def learn(
    problem: Problem,
    value: Value,
    config: DDPGConfig,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Learned:
    """Train on the explored rows."""
    return run(
        lambda p, rows, generator: DDPG(p, rows, config, generator),
        problem,
        value,
        config,
        name="ddpg",
        seed=seed,
        progress=progress,
        checkpoints=checkpoints,
    )
