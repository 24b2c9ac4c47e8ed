"""IQL (Kostrikov, Nair and Levine, 2022): values by expectile regression on logged actions alone, a policy by advantage.

V: mean |tau - 1{Q' - V < 0}| (min_i Q'_i(s, a) - V(s))^2        Q_i: (Q_i(s, a) - r - gamma (1 - done) V(s'))^2
actor: mean exp(beta (min_i Q'_i - V)) |mu(s) - a|^2, the weight at most `max_weight`, over the rows around the policy deployed
now (`Problem.hold`). V and Q read the same of a state: of what one alone saw, the advantage would be a credit for states.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from mtf.learning.actor_critic import ActorCritic, OneRateConfig, boxed, cloning_loss, from_center, run
from mtf.learning.backprop import ActorPass, Flat, Pass, in_one_vector, squared_error
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.networks import Actor, JointCritics, Stack
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class IQLConfig(OneRateConfig):
    """expectile: tau (.7 to .9). temperature: beta, in units of the returns' standard deviation (1 to 10).
    max_weight: the largest weight of a row (10 to 1000)."""

    expectile: float = 0.7
    temperature: float = 3.0
    max_weight: float = 100.0


def expectile_loss(difference: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`mean |tau - 1{d < 0}| d^2`, and its slope in d [n]. Its minimiser over V of d = y - V is the tau-expectile of y."""
    weighted = torch.where(difference < 0, 1 - tau, tau) * difference
    return (weighted * difference).mean(), weighted * (2 / len(difference))


def advantage_weight(advantage: torch.Tensor, temperature: float, largest: float) -> torch.Tensor:
    """`min(exp(beta A), largest)`."""
    return (temperature * advantage).exp().clamp(max=largest)


class IQL(ActorCritic):
    """Twin Q with their targets, V, and the actor."""

    def __init__(self, problem: Problem, rows: Batch, config: IQLConfig, generator: torch.Generator) -> None:
        self.config, self.gamma, self.generator = config, problem.gamma, generator
        self.unit, width = torch.from_numpy(problem.unit), problem.data.action_width
        self.critics = JointCritics(2, rows.now[1].shape[1], width, config.critic_hidden, generator)
        self.value = Stack(1, (rows.now[1].shape[1], *config.critic_hidden, 1), generator)
        self.actor = Actor(rows.z.shape[1], width, config.actor_hidden, generator)
        self.target = copy.deepcopy(self.critics)
        self.modules = nn.ModuleDict({"critics": self.critics, "value": self.value, "actor": self.actor, "target": self.target})
        # no parameter is in two of the three losses: one optimiser does what three would
        self.learned = Flat((p for name in ("critics", "value", "actor") for p in self.modules[name].parameters()), config.lr)
        self.optimisers = {"all": self.learned.adam}
        self.followed = in_one_vector(self.target.parameters())

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            y = self.target_value(batch)
            v, q = Pass(self.value, batch.now[1]), Pass(self.critics.net, self.critics.joined(batch.now, batch.u))
            mu = ActorPass(self.actor, batch.z, batch.box, self.unit)
            advantage = self.target(batch.now, batch.u).min(0).values - v.out[0, :, 0]
            value, by_advantage = expectile_loss(advantage, self.config.expectile)
            critics, by_q = squared_error(q.out[..., 0], y)
            weight = advantage_weight(advantage, self.config.temperature, self.config.max_weight)
            actor, by_u = cloning_loss(mu.u, batch.u, weight * batch.hold)
            gradients = (q.parameters(by_q[..., None]), v.parameters(-by_advantage[None, :, None]), mu.parameters(by_u))
            self.learned.step(gradient for of in gradients for gradient in of)
            self.followed.lerp_(self.learned.vector[: len(self.followed)], self.config.tau)
            return {"value": value, "td_error": critics / 2, "actor": actor}

    def target_value(self, batch: Batch) -> torch.Tensor:
        """`r + gamma (1 - done) V(s')` [n]."""
        return batch.reward.sum(1) + self.gamma * (1 - batch.done) * self.value(batch.next[1])[0, :, 0]

    def move(self, batch: Batch) -> torch.Tensor:
        return from_center(boxed(self.actor, batch.z, batch.box, self.unit), batch.box, self.unit)


def learn(
    problem: Problem,
    value: Value,
    config: IQLConfig,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Learned:
    """Train on the explored rows."""
    return run(
        lambda p, rows, generator: IQL(p, rows, config, generator),
        problem,
        value,
        config,
        name="iql",
        seed=seed,
        progress=progress,
        checkpoints=checkpoints,
    )
