"""BatchRL-MTF (Zhang et al., KDD 2022): BCQ for fusion. A generative model proposes actions like the logged ones, a small
perturbation moves them, and the critics choose.

    VAE: |decode(z, s) - a|^2 + KL / 2          perturbation: xi(s, a) in [-phi, phi], loss -Q_1(s, a + xi)
    y = r + gamma (1 - done) max_j [ c min_i Q'_i(s', a_j + xi'_j) + (1 - c) max_i Q'_i ],   a_j decoded from z ~ N(0, 1) in +-.5
The VAE learns from the rows around the policy deployed now (`Problem.hold`). Served: the best of n proposals by Q_1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from mtf.learning import parallel
from mtf.learning.actor_critic import ActorCritic, ActorCriticConfig, from_center, run
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.networks import JointCritics, Stack, soft_update
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch, Box
from mtf.learning.trainer import descend
from mtf.learning.value import Value

LATENT_CLIP = 0.5


@dataclass(frozen=True, kw_only=True)
class BatchRLConfig(ActorCriticConfig):
    """perturbation: the largest move of a proposal, normalised action (.02 to .2; paper: .15). proposals: a state, n (5 to
    100; paper: 10). pessimism: c, weight of the smaller critic (.5 to 1; .75).
    vae_lr, perturbation_lr, critic_lr: of the three optimisers (1e-4 to 1e-3; paper: 1e-3, 1e-4, 2e-4).
    tau, delay: targets move by tau every `delay` steps (.005 to .1, 1 to 20; paper: .05, 10). latent: width of the VAE's code
    (4 to 32).
    """

    perturbation: float = 0.15
    proposals: int = 10
    pessimism: float = 0.75
    vae_lr: float = 1e-3
    perturbation_lr: float = 1e-4
    critic_lr: float = 2e-4
    tau: float = 0.05
    delay: int = 10
    latent: int = 8


class BatchRL(ActorCritic):
    """VAE, perturbation and twin critics, targets of the last two."""

    def __init__(self, problem: Problem, rows: Batch, config: BatchRLConfig, generator: torch.Generator) -> None:
        self.config, self.gamma, self.generator = config, problem.gamma, generator
        self.unit, width = torch.from_numpy(problem.unit), problem.data.action_width
        state, hidden = rows.z.shape[1], config.actor_hidden
        self.critics = JointCritics(2, rows.now[1].shape[1], width, config.critic_hidden, generator)
        self.perturb = Stack(1, (state + width, *hidden, width), generator)
        self.encoder = Stack(1, (state + width, *hidden, 2 * config.latent), generator)
        self.decoder = Stack(1, (state + config.latent, *hidden, width), generator)
        self.target, self.target_perturb = copy.deepcopy(self.critics), copy.deepcopy(self.perturb)
        self.modules = nn.ModuleDict(
            {
                "critics": self.critics,
                "perturb": self.perturb,
                "encoder": self.encoder,
                "decoder": self.decoder,
                "target": self.target,
                "target_perturb": self.target_perturb,
            }
        )
        self.optimisers = {
            "vae": torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters()], lr=config.vae_lr, fused=True),
            "perturb": torch.optim.Adam(self.perturb.parameters(), lr=config.perturbation_lr, fused=True),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=config.critic_lr, fused=True),
        }

    def decode(self, z: torch.Tensor, code: torch.Tensor, box_now: Box) -> torch.Tensor:
        """Proposals u [n, A] inside the box; [k, n, A] of codes [k, n, latent]."""
        half = (box_now[2] - box_now[1]) / 2 / self.unit
        return torch.tanh(_with_state(self.decoder, z, code)) * half

    def moved(self, perturb: Stack, z: torch.Tensor, u: torch.Tensor, box_now: Box) -> torch.Tensor:
        """Proposals after the perturbation, kept in the box."""
        half = (box_now[2] - box_now[1]) / 2 / self.unit
        xi = torch.tanh(_with_state(perturb, z, u)) * (self.config.perturbation / self.unit)
        return torch.maximum(torch.minimum(u + xi, half), -half)

    def noise(self, *rows: int) -> torch.Tensor:
        """Standard normal [.., n, latent] for the rows of a batch."""
        return parallel.drawn(torch.randn, *rows, self.config.latent, batch=self.config.batch, generator=self.generator)

    def codes(self, *rows: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Codes [.., n, latent] to propose from; those of a generator of its own are for all rows, in every process."""
        drawn = self.noise(*rows) if generator is None else torch.randn(*rows, self.config.latent, generator=generator)
        return drawn.clamp(-LATENT_CLIP, LATENT_CLIP)

    def target_value(self, batch: Batch) -> torch.Tensor:
        """y [n]."""
        k, n = self.config.proposals, len(batch)
        proposal = self.decode(batch.next_z, self.codes(k, n), batch.next_box)
        q = self.target.over(batch.next, self.moved(self.target_perturb, batch.next_z, proposal, batch.next_box))
        soft = self.config.pessimism * q.min(0).values + (1 - self.config.pessimism) * q.max(0).values
        return batch.reward.sum(1) + self.gamma * (1 - batch.done) * soft.max(0).values

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        config = self.config
        mean, log_sd = self.encoder(torch.cat([batch.z, batch.u], dim=1))[0].chunk(2, dim=1)
        log_sd = log_sd.clamp(-4, 4)
        code = mean + log_sd.exp() * self.noise(len(mean))
        rebuilt = (self.decode(batch.z, code, batch.box) - batch.u).square().mean(1)
        divergence = 0.5 * (mean.square() + (2 * log_sd).exp() - 2 * log_sd - 1).mean(1)
        vae = (batch.hold * (rebuilt + 0.5 * divergence)).mean()
        descend(self.optimisers["vae"], vae, [*self.encoder.parameters(), *self.decoder.parameters()])
        with torch.no_grad():
            y = self.target_value(batch)
        error = (self.critics(batch.now, batch.u) - y).square().mean(1).sum()
        descend(self.optimisers["critics"], error, self.critics.parameters())
        with torch.no_grad():
            proposal = self.decode(batch.z, self.codes(len(batch)), batch.box)
        gain = -self.critics.first(batch.now, self.moved(self.perturb, batch.z, proposal, batch.box)).mean()
        descend(self.optimisers["perturb"], gain, self.perturb.parameters())
        if step % config.delay == 0:
            soft_update(self.target, self.critics, config.tau)
            soft_update(self.target_perturb, self.perturb, config.tau)
        return {"td_error": error.detach() / 2, "vae": vae.detach(), "q": -gain.detach()}

    def move(self, batch: Batch) -> torch.Tensor:
        """The best of the proposals by Q_1; the same codes for every state."""
        generator, best, found = torch.Generator().manual_seed(0), None, torch.empty(0)
        for _ in range(self.config.proposals):
            code = self.codes(1, generator=generator).expand(len(batch), -1)
            u = self.moved(self.perturb, batch.z, self.decode(batch.z, code, batch.box), batch.box)
            q = self.critics.first(batch.now, u)
            better = torch.ones_like(q, dtype=torch.bool) if best is None else q > best
            found = torch.where(better[:, None], u, found) if best is not None else u
            best = torch.where(better, q, best) if best is not None else q
        return from_center(found, batch.box, self.unit)


def _with_state(net: Stack, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Outputs for (z [n, S], x [n, .]), or for k of them a state, x [k, n, .]."""
    return net.over(z, x)[0] if x.dim() == 3 else net(torch.cat([z, x], dim=1))[0]


def learn(
    problem: Problem,
    value: Value,
    config: BatchRLConfig,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Learned:
    """Train on the explored rows."""
    return run(
        lambda p, rows, generator: BatchRL(p, rows, config, generator),
        problem,
        value,
        config,
        name="batch_rl",
        seed=seed,
        progress=progress,
        checkpoints=checkpoints,
    )
