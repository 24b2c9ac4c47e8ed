"""TD3 (Fujimoto, van Hoof and Meger, 2018): twin critics, a smoothed target, a slower actor. No caution about coverage.

`y = r + gamma (1 - done) min_i Q'_i(s', mu'(s') + clipped noise)`, actor loss `-Q_1(s, mu(s))`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from mtf.learning import parallel
from mtf.learning.actor_critic import ActorCritic, OneRateConfig, boxed, from_center, run
from mtf.learning.backprop import ActorPass, Flat, Pass, in_one_vector, squared_error
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.networks import Actor, JointCritics
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch
from mtf.learning.trainer import keep_actor_loss, last_actor_loss, require_moves
from mtf.learning.value import Value

ActorLoss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A loss, and its slopes in q [n] and in u [n, A]."""


@dataclass(frozen=True, kw_only=True)
class TD3Config(OneRateConfig):
    """delay: critic updates a policy update (1 to 4). noise, noise_clip: spread and bound of the noise on the target's action,
    in half-widths (.1 to .5, .2 to 1)."""

    delay: int = 2
    noise: float = 0.2
    noise_clip: float = 0.5


def target_value(
    target: JointCritics, target_actor: Actor, batch: Batch, unit: torch.Tensor, gamma: float, noise: torch.Tensor
) -> torch.Tensor:
    """`y = r + gamma (1 - done) min_i Q'_i(s', mu'(s') + noise)` [n]; noise [n, A] in half-widths, clipped already."""
    mu = ActorPass(target_actor, batch.next_z, batch.next_box, unit)
    # a box that is cut ends before 1, and a dimension that is fixed has no room at all
    next_q = target(batch.next, (mu.u + noise).clamp_(-mu.reach, mu.reach)).min(0).values
    return batch.reward.sum(1) + gamma * (1 - batch.done) * next_q


def policy_gradient(
    critics: JointCritics, actor: Actor, batch: Batch, unit: torch.Tensor, loss: Callable[[torch.Tensor, torch.Tensor], ActorLoss]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`loss(q, u)` at q = Q_1(s, mu(s)) [n], u = mu(s) [n, A], and its slopes in the actor's parameters, in their order:
    `grad mu . (grad_u Q_1 by_q + by_u)` (Silver et al., 2014)."""
    mu = ActorPass(actor, batch.z, batch.box, unit)
    q = Pass(critics.net, critics.joined(batch.now, mu.u), 1)
    found, by_q, by_u = loss(q.out[0, :, 0], mu.u)
    return found, mu.parameters(by_u + q.last(mu.u.shape[1], by_q[None, :, None])[0])


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
        keep_actor_loss(self.modules)
        self.learned = {name: Flat(self.modules[name].parameters(), config.lr) for name in ("critics", "actor")}
        self.targets = {
            name: in_one_vector(of.parameters()) for name, of in (("critics", self.target), ("actor", self.target_actor))
        }
        self.optimisers = {name: flat.adam for name, flat in self.learned.items()}

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            config = self.config
            noise = parallel.drawn(torch.randn, len(batch), self.width, batch=config.batch, generator=self.generator)
            noise = (noise * config.noise).clamp_(-config.noise_clip, config.noise_clip)
            y = target_value(self.target, self.target_actor, batch, self.unit, self.gamma, noise)
            q = Pass(self.critics.net, self.critics.joined(batch.now, batch.u))
            loss, by_q = squared_error(q.out[..., 0], y)
            self.learned["critics"].step(q.parameters(by_q[..., None]))
            if step % config.delay == 0:
                actor, gradient = policy_gradient(self.critics, self.actor, batch, self.unit, partial(self.actor_loss, batch))
                self.modules.actor_loss.copy_(parallel.mean(actor))
                self.learned["actor"].step(gradient)
                for name, target in self.targets.items():
                    target.lerp_(self.learned[name].vector, config.tau)
            return {"td_error": loss / 2} | last_actor_loss(self.modules, step >= config.delay)

    def actor_loss(self, batch: Batch, q: torch.Tensor, u: torch.Tensor) -> ActorLoss:
        """The actor's loss where Q_1(s, u) is q: `-mean q`."""
        return -q.mean(), torch.full_like(q, -1 / len(q)), torch.zeros_like(u)

    def move(self, batch: Batch) -> torch.Tensor:
        return from_center(boxed(self.actor, batch.z, batch.box, self.unit), batch.box, self.unit)


def require(problem: Problem, config: TD3Config) -> None:
    """Raises InputError where the actor would never move."""
    require_moves(config.steps, config.delay)


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
