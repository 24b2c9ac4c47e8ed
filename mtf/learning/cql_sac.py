"""CQL+SAC (Kumar et al., 2020; Haarnoja et al., 2018): soft actor-critic whose critics are pushed down off the data.

The critics' losses and target, and the actor's:
    Q_i: (Q_i(s, a) - y)^2 + alpha (log mean exp Q_i(s, .) - Q_i(s, a))
    y = r + gamma (1 - done) (min_i Q'_i(s', a') - c log pi(a' | s')),   a' drawn from the policy
the mean over draws uniform in the box and from the policy, each divided by its density (CQL(H)); the push is of rows around the
policy deployed now (`Problem.hold`) and in its box: at an action outside it, Q would only rise, and slope that way;
actor: c log pi(a|s) - min Q_i(s, a), a squashed normal in the box. Served is its mode.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from mtf.errors import InputError
from mtf.learning import parallel
from mtf.learning.actor_critic import ActorCritic, OneRateConfig, adams, from_center, run, squashed
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.networks import JointCritics, Stack, soft_update
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch, Box
from mtf.learning.trainer import descend
from mtf.learning.value import Value

LOG_SD = (-4.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class CQLSACConfig(OneRateConfig):
    """conservatism: alpha, the weight of the push (1 to 10). entropy: c, the temperature (0 to .2).
    draws: of each kind a state (4 to 15)."""

    conservatism: float = 1.0
    entropy: float = 0.02
    draws: int = 4


class CQLSAC(ActorCritic):
    """Twin critics with targets and a squashed normal policy."""

    def __init__(self, problem: Problem, rows: Batch, config: CQLSACConfig, generator: torch.Generator) -> None:
        self.config, self.gamma, self.generator = config, problem.gamma, generator
        self.unit, self.width = torch.from_numpy(problem.unit), problem.data.action_width
        # alpha is worth the same whatever share of the rows is pushed
        pushed = (rows.hold * self.inside(rows))[rows.signal > 0].mean()
        self.push_scale = 1 / float(pushed) if pushed > 0 else 0.0
        self.critics = JointCritics(2, rows.now[1].shape[1], self.width, config.critic_hidden, generator)
        self.actor = Stack(1, (rows.z.shape[1], *config.actor_hidden, 2 * self.width), generator)
        self.target = copy.deepcopy(self.critics)
        self.modules = nn.ModuleDict({"critics": self.critics, "actor": self.actor, "target": self.target})
        self.optimisers = adams(self.modules, config.lr, "critics", "actor")

    def sample(self, z: torch.Tensor, box_now: Box, *draws: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(u [*draws, n, A], log density in the box's own coordinates [*draws, n])."""
        mean, log_sd = self.actor(z)[0].chunk(2, dim=1)
        log_sd = log_sd.clamp(*LOG_SD)
        noise = parallel.drawn(torch.randn, *draws, *mean.shape, batch=self.config.batch, generator=self.generator)
        raw = mean + log_sd.exp() * noise
        # log (1 - tanh^2 x) = 2 (log 2 - x - softplus(-2 x))
        jacobian = 2 * (math.log(2) - raw - nn.functional.softplus(-2 * raw))
        log_density = (-0.5 * noise.square() - log_sd - 0.5 * math.log(2 * math.pi) - jacobian).sum(-1)
        return squashed(raw, box_now, self.unit), log_density

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(TD error, push), each summed over the critics."""
        config, n = self.config, len(batch)
        with torch.no_grad():
            next_u, log_density = self.sample(batch.next_z, batch.next_box)
            next_q = self.target(batch.next, next_u).min(0).values - config.entropy * log_density
            y = batch.reward.sum(1) + self.gamma * (1 - batch.done) * next_q
        logged = self.critics(batch.now, batch.u)
        error = (logged - y).square().mean(1).sum()
        half = (batch.box[2] - batch.box[1]) / 2 / self.unit
        uniform = parallel.drawn(torch.rand, config.draws, n, self.width, batch=config.batch, generator=self.generator)
        uniform = (uniform * 2 - 1) * half
        with torch.no_grad():
            own, own_density = self.sample(batch.z, batch.box, config.draws)
        everywhere = self.critics.over(batch.now, uniform) + self.width * math.log(2)
        policy = self.critics.over(batch.now, own) - own_density
        both = torch.cat([everywhere, policy], dim=1)
        gap = torch.logsumexp(both, dim=1) - math.log(2 * config.draws) - logged
        push = (self.push_scale * batch.hold * self.inside(batch) * gap).mean(1).sum()
        return error, push

    def inside(self, batch: Batch) -> torch.Tensor:
        """bool [n]: logged actions in the box now."""
        half = (batch.box[2] - batch.box[1]) / 2 / self.unit
        # hair's breadth: rounding must not leave out the rows at the edge
        return (batch.u.abs() <= half * 1.0001 + 1e-6).all(1)

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        config = self.config
        error, push = self.critic_loss(batch)
        descend(self.optimisers["critics"], error + config.conservatism * push, self.critics.parameters())
        u, log_density = self.sample(batch.z, batch.box)
        actor = (config.entropy * log_density - self.critics(batch.now, u).min(0).values).mean()
        descend(self.optimisers["actor"], actor, self.actor.parameters())
        soft_update(self.target, self.critics, config.tau)
        return {"td_error": error.detach() / 2, "push": push.detach() / 2, "actor": actor.detach()}

    def move(self, batch: Batch) -> torch.Tensor:
        mode = squashed(self.actor(batch.z)[0].chunk(2, dim=1)[0], batch.box, self.unit)
        return from_center(mode, batch.box, self.unit)


def require(problem: Problem, config: CQLSACConfig) -> None:
    """Raises InputError where the best step is asked for: its Q, pushed down off the data, is no return to be judged by."""
    if config.keep == "best":
        raise InputError(
            "--set keep=best: cql_sac pushes its Q down, so that returns cannot say which step was best; use keep=last"
        )


def learn(
    problem: Problem,
    value: Value,
    config: CQLSACConfig,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Learned:
    """Train on the explored rows."""
    return run(
        lambda p, rows, generator: CQLSAC(p, rows, config, generator),
        problem,
        value,
        config,
        name="cql_sac",
        seed=seed,
        progress=progress,
        checkpoints=checkpoints,
    )
