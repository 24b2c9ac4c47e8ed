"""IntegratedRL-MTF (arXiv 2404.17589): an ensemble of critics and an actor that stays in the exploration box.

Critic i of group g, each on its own TD error, no minimum over critics:
    y_gi = r_g + gamma (1 - done) phi(mu'(s')) Q'_gi(s', mu'(s'))        L_gi = mean (Q_gi(s, a) - y_gi)^2
Actor:
    L = mean[ -sum_g mean_i A_gi(s, mu(s)) + lambda sum_g std_i A_gi(s, mu(s)) + eta d(mu(s)) ]
v4 has one group, for the sum of the rewards; v6 (`unified_rl`) one for each reward head. The heads' weights are in the rewards.
phi and d (`penalty`) are taken in the box of the policy that is deployed now, recomputed at every state.

The critics have the advantage form `Q = V + A` (`networks.AdvantageCritics`): an MLP Q(s, a) fits the state and misses the
action (docs/method.md; `naive` is that form). No value that is read at s' may be moved by actions: V reads only columns that
are not, and in phi(s') the others are set to their mean; the actor sees them all, at s' too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from mtf.errors import InputError
from mtf.learning import parallel, penalty
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.critic_report import calibrate_action, calibrate_value, critic_warnings
from mtf.learning.networks import Actor, AdvantageCritics, JointCritics, SlateCritics, soft_update
from mtf.learning.problem import Problem, users_held_out
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.rows import Batch, Rows, act, mean_square, tensors
from mtf.learning.step import shorten
from mtf.learning.trainer import (
    Agent,
    Trained,
    TrainerConfig,
    descend,
    fit,
    keep_actor_loss,
    last_actor_loss,
    require_moves,
)
from mtf.learning.value import Value

Critics = AdvantageCritics | JointCritics | SlateCritics
LAST_RATE = 0.05


@dataclass(frozen=True, kw_only=True)
class IntegratedRLConfig(TrainerConfig):
    """critics: how many a group, m (4 to 48; paper: 24). critic_hidden, actor_hidden: widths of their layers (32 to 256).
    groups: one group of critics for the sum of the rewards (v4), or one for each reward head (v6).
    value_lr, head_lr: rates of AdamW for V and for the action heads (1e-4 to 3e-3); both fall linearly to a twentieth.
    head_decay: the heads' weight decay (0 to .1). actor_lr: rate of Adam for the actor (1e-3 to 3e-2).
    tau, delay: targets move by tau every `delay` steps, and so does the actor (.005 to .1, 1 to 20; paper: .08, 15).
    lam: weight of the critics' disagreement (0 to 1; paper: .2). eta: weight of leaving the box (.3 to 3; paper: not stated).
    beta: softness of its bounds (.1 to 1; paper: .3).
    alpha: weight of d in the subtractive target (0 to 2; paper: 1.2). target: `phi` multiplies the next value (v6), `subtract` is
        v4's `y = r + gamma (Q' - alpha d)`, right also where values are negative.
    continuous: d in v4's target without its jump at the bound (the actor's gradient is the same).
    bootstrap: each critic sees each user with a Poisson(1) weight, so that their spread is sampling error.
    form: `advantage` Q = V + A, `slate` the same with A through the slates that actions rank (`slate_critics`; `advantage` takes
        over where they are not all that an action does), `joint` an MLP.
    """

    name: ClassVar[str] = "integrated_rl"

    critics: int = 8
    critic_hidden: tuple[int, ...] = (32, 32)
    actor_hidden: tuple[int, ...] = (32,)
    groups: Literal["total", "heads"] = "total"
    value_lr: float = 2e-3
    head_lr: float = 1e-3
    head_decay: float = 1e-2
    actor_lr: float = 1e-2
    tau: float = 0.08
    delay: int = 15
    lam: float = 0.2
    eta: float = 1.2
    alpha: float = 1.2
    beta: float = 0.3
    target: Literal["phi", "subtract"] = "phi"
    continuous: bool = False
    bootstrap: bool = False
    form: Literal["advantage", "slate", "joint"] = "advantage"


@dataclass(frozen=True)
class CriticLoss:
    """total: scalar to minimise; each: weighted mean squared TD error of each critic [q m]; target: mean of y."""

    total: torch.Tensor
    each: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class ActorLoss:
    """total = -advantage + lam * disagreement + eta * outside, each a mean over the batch, summed over groups."""

    total: torch.Tensor
    advantage: torch.Tensor
    disagreement: torch.Tensor
    outside: torch.Tensor


def critic_loss(
    critics: Critics,
    target: Critics,
    target_actor: Actor,
    batch: Batch,
    unit: torch.Tensor,
    gamma: float,
    config: IntegratedRLConfig,
) -> CriticLoss:
    """Each critic's TD error (equation at the top). Critics are in order of their groups, the columns of batch.reward."""
    with torch.no_grad():
        action, u = act(target_actor, batch.next_z, batch.next_box, unit)
        excess = penalty.relative_excess(action, *batch.next_box, config.beta)
        next_q = target(batch.next, u, mean_square(batch.next_box, unit))
        if config.target == "phi":
            next_q = penalty.phi(excess) * next_q
        else:
            next_q = next_q - config.alpha * penalty.distance(excess, continuous=config.continuous)
        reward = batch.reward.T.repeat_interleave(len(next_q) // batch.reward.shape[1], dim=0)
        y = reward + gamma * (1 - batch.done) * next_q
    q = logged_value(critics, batch)
    weight = batch.weight.T if batch.weight.dim() == 2 else batch.weight
    each = (weight * (q - y).square()).mean(1)
    return CriticLoss(each.sum(), each.detach(), y.mean())


def logged_value(critics: Critics, batch: Batch) -> torch.Tensor:
    """Q_i of the logged actions [q m, n]; of rows that did not explore V alone."""
    if isinstance(critics, JointCritics):
        return critics(batch.now, batch.u)
    return critics.value(batch.now) + batch.signal * critics.logged_part(batch)


def actor_loss(critics: Critics, actor: Actor, batch: Batch, unit: torch.Tensor, config: IntegratedRLConfig) -> ActorLoss:
    """The actor's loss (equation at the top). Only the actor's parameters are meant to be stepped with it."""
    action, u = act(actor, batch.z, batch.box, unit)
    part = critics.action_part(batch.now, u, mean_square(batch.box, unit)).unflatten(0, (batch.reward.shape[1], -1))
    advantage = part.mean(1).sum(0).mean()
    disagreement = (part.var(1, unbiased=False) + 1e-12).sqrt().sum(0).mean()
    outside = penalty.distance(penalty.relative_excess(action, *batch.box, config.beta), continuous=config.continuous).mean()
    return ActorLoss(-advantage + config.lam * disagreement + config.eta * outside, advantage, disagreement, outside)


def require(problem: Problem, config: IntegratedRLConfig) -> None:
    """Raises InputError where the actor would never move, where a setting changes nothing, or where `form = slate` has no
    candidates to replay."""
    require_moves(config.steps, config.delay)
    unread = {"head_lr": "form=joint", "head_decay": "form=joint"} if config.form == "joint" else {}
    # the jump of d at the bound has no slope: the actor does not see it, v4's target does
    unread |= {"alpha": "target=phi", "continuous": "target=phi"} if config.target == "phi" else {}
    for name, why in unread.items():
        if (value := getattr(config, name)) != getattr(type(config)(), name):
            raise InputError(f"--set {name}={value:g}: changes nothing where {why}; leave it out, or change that")
    if config.form == "slate":
        from mtf.learning.slate_critics import require_candidates

        require_candidates(problem, by_head=config.groups == "heads")


def learn(
    problem: Problem,
    value: Value,
    config: IntegratedRLConfig,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Learned:
    """Train critics and actor for `config.steps` and return the actor's actions, shortened to `max_rms_step`."""
    # rewards are divided, never shifted: phi multiplies values and needs them >= 0
    scale = max(float(value.ret.std()), 1e-6)
    by_head = config.groups == "heads"
    mediated: dict[str, Any] = {}
    slates, held = None, users_held_out(problem, config.held_out)
    if config.form == "slate":
        from mtf.learning.slate_critics import slate_part
        from mtf.learning.slate_replay import SlateReplayConfig, mediation_fails

        slates = slate_part(problem, value, scale, held=held, seed=seed, progress=progress, by_head=by_head)
        mediated = {"used": "slate", **slates.report}
        # as in `slate_replay`: where the action acts past its slates, what slates are worth is not what it is worth
        test = slates.report["direct_effect"]
        if reason := mediation_fails(test, SlateReplayConfig().max_z):
            mediated = {"used": "advantage", "direct_effect": test, "warnings": [f"{reason}; form=advantage used"]}
            slates, config = None, replace(config, form="advantage")
    rows = tensors(
        problem,
        scale,
        by_head=by_head,
        joint=config.form == "joint",
        slate=slates.effects if slates else None,
        weight=_user_weights(problem, config, seed) if config.bootstrap else None,
    )
    agent = IntegratedAgent(problem, rows.all, config, seed, slates)
    pool, kept = (torch.from_numpy(np.flatnonzero(of)) for of in (~held, held))
    returns = torch.from_numpy(value.ret)[kept] / scale
    trained = fit(
        agent, rows, pool, kept, returns, config, seed=seed, name=config.name, progress=progress, checkpoints=checkpoints
    )
    with torch.no_grad():
        return _result(problem, value, config, agent, rows, held, scale, trained, mediated)


class IntegratedAgent(Agent):
    """Critics, actor and their targets."""

    def __init__(self, problem: Problem, rows: Batch, config: IntegratedRLConfig, seed: int, slates: Any = None) -> None:
        self.config, self.gamma = config, problem.gamma
        self.generator = torch.Generator().manual_seed(seed)
        self.unit = torch.from_numpy(problem.unit)
        m, width, seen = config.critics * rows.reward.shape[1], problem.data.action_width, rows.now
        self.critics: Critics
        if config.form == "joint":
            self.critics = JointCritics(m, seen[1].shape[1], width, config.critic_hidden, self.generator)
        elif config.form == "advantage":
            self.critics = AdvantageCritics(m, seen[0].shape[1], seen[1].shape[1], width, config.critic_hidden, self.generator)
        else:
            prior = slates.prior.repeat_interleave(config.critics, dim=0)
            self.critics = SlateCritics(
                m, seen[0].shape[1], slates.slopes, slates.second, prior, config.critic_hidden, self.generator
            )
        heads = [] if isinstance(self.critics, JointCritics) else self.critics.heads()
        rest = [p for p in self.critics.parameters() if not any(p is head for head in heads)]
        self.actor = Actor(problem.z.shape[1], width, config.actor_hidden, self.generator)
        self.target, self.target_actor = copy.deepcopy(self.critics), copy.deepcopy(self.actor)
        self.modules = nn.ModuleDict(
            {"critics": self.critics, "actor": self.actor, "target": self.target, "target_actor": self.target_actor}
        )
        keep_actor_loss(self.modules)
        groups = [{"params": rest, "lr": config.value_lr, "weight_decay": 0.0}]
        if heads:
            groups.append({"params": heads, "lr": config.head_lr, "weight_decay": config.head_decay})
        self.optimisers = {
            "critics": torch.optim.AdamW(groups, fused=True),
            "actor": torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True),
        }
        self.rates = [config.value_lr, config.head_lr][: len(groups)]

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """A step of the critics, and every `delay` steps one of the actor and the targets."""
        config = self.config
        share = max(LAST_RATE, 1 - (step - 1) / config.steps)
        for group, rate in zip(self.optimisers["critics"].param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        loss = critic_loss(self.critics, self.target, self.target_actor, batch, self.unit, self.gamma, config)
        descend(self.optimisers["critics"], loss.total, self.critics.parameters())
        if step % config.delay == 0:
            actor = actor_loss(self.critics, self.actor, batch, self.unit, config)
            descend(self.optimisers["actor"], actor.total, self.actor.parameters())
            self.modules.actor_loss.copy_(parallel.mean(actor.total.detach()))
            soft_update(self.target, self.critics, config.tau)
            soft_update(self.target_actor, self.actor, config.tau)
        return {"td_error": loss.each.mean(), "target": loss.target} | last_actor_loss(self.modules, step >= config.delay)

    def values(self, batch: Batch) -> torch.Tensor:
        """Means over each group's critics, summed over the groups."""
        q = logged_value(self.critics, batch)
        return q.unflatten(0, (batch.reward.shape[1], -1)).mean(1).sum(0)


def _user_weights(problem: Problem, config: IntegratedRLConfig, seed: int) -> np.ndarray:
    """[n, q m]: each row's weight for each critic; a critic sees a user Poisson(1) times."""
    data, groups = problem.data, problem.data.n_heads if config.groups == "heads" else 1
    generator = torch.Generator().manual_seed(seed + 1)
    often = torch.poisson(torch.ones(len(data.user_ids), config.critics * groups), generator=generator).numpy()
    (weight,) = data.arrays.build(len(data), lambda some: (problem.weight[some, None] * often[data.user[some]],))
    return weight


def _result(
    problem: Problem,
    value: Value,
    config: IntegratedRLConfig,
    agent: IntegratedAgent,
    rows: Rows,
    held: np.ndarray,
    scale: float,
    trained: Trained,
    extra: dict[str, Any],
) -> Learned:
    q, arrays = rows.all.reward.shape[1], problem.data.arrays

    def some(part: slice) -> tuple[np.ndarray, ...]:
        """Move, V of each critic, the groups' mean V and A, and the critics' disagreement on A, of some rows."""
        batch = rows.part(part)
        values = agent.critics.value(batch.now)
        joint = isinstance(agent.critics, JointCritics)
        # as in the loss: rows that did not explore are V's alone
        advantage = agent.critics(batch.now, batch.u) - values if joint else batch.signal * agent.critics.logged_part(batch)
        means = (of.unflatten(0, (q, -1)).mean(1).sum(0).numpy() for of in (values, advantage))
        apart = advantage.unflatten(0, (q, -1)).std(1, unbiased=False).sum(0)
        return agent.actor(batch.z).numpy(), values.T.numpy(), *means, apart.numpy()

    move, values_all, total, a, spread = arrays.build(len(rows), some)
    varied = problem.half_width > 0
    wanted = problem.moves(problem.step_action(move))
    step = shorten(wanted, config.max_rms_step, varied, arrays)
    report: dict[str, Any] = {
        "rms_wanted": step.rms_wanted,
        "wanted_edge_share": step.wanted_edge_share,
        "reward_scale": scale,
        "curve": trained.curve,
        "flat": trained.flat,
        "best_step": trained.best_step,
        "resumed_from": trained.resumed,
        "held_out_action": calibrate_action(problem, value, held, a * scale),
        "held_out_value": calibrate_value(value, held, (total + a) * scale),
        "spread": float(spread.mean()) * scale,
        **extra,
        "warnings": [*extra.get("warnings", []), *critic_warnings(value, values_all, scale, q), *_sign(value, config)],
    }
    return Learned(problem.step_action(step.y), report)


def _sign(value: Value, config: IntegratedRLConfig) -> list[str]:
    if config.target == "phi" and value.ret.mean() < 0:
        return ["negative_values: phi favours leaving the box where values are negative; --set target=subtract"]
    return []
