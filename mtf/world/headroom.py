"""How much better than production's start a policy can be in a world: the best that a quick search finds there.

The search replays a few thousand requests, sampled from play under the start, with the true expectations of all their
candidates. What it finds is then played in full, with common random numbers and users it has not seen. So each number is
the value of an actual policy, and the headroom is a lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtf.fusion import rank
from mtf.policy import Lineage, Policy, bootstrap_policy, constant_policy
from mtf.spec import FusionSpec
from mtf.world.calibrate import DAY
from mtf.world.play import Acts, play
from mtf.world.truth import Truth, reward_weights, true_value
from mtf.world.world import HAZARD_HIGH, HAZARD_LOW, World, satisfaction

REACH = 0.75
"""The search stays within this distance of the start in every dimension of the normalised space: five boxes of .15."""
SEARCH_SEED, PLAY_SEED = 770_001, 880_001


@dataclass(frozen=True)
class Headroom:
    """start, best_global, best_linear: true values by play. lifts over the start: (lift, standard error)."""

    start: Truth
    best_global: Truth
    best_linear: Truth
    policies: dict[str, Policy]
    seconds: float

    def lifts(self, *, discounted: bool = False) -> dict[str, tuple[float, float]]:
        """global and linear over the start, and linear over global (`personal`)."""
        return {
            "global": self.best_global.lift_over(self.start, discounted=discounted),
            "linear": self.best_linear.lift_over(self.start, discounted=discounted),
            "personal": self.best_linear.lift_over(self.best_global, discounted=discounted),
        }


def headroom(
    world: World,
    *,
    quick: bool = False,
    seed: int = 0,
    gamma: float = 1.0,
    progress: Callable[[str], None] | None = None,
) -> Headroom:
    """Search by CMA-ES over global actions and by gradient over policies linear in the state, then play all three.

    gamma: discount of the search's objective: 1 = whole sessions, 0 = the request alone.
    """
    began = time.monotonic()
    say = progress or (lambda _: None)
    spec = world.spec
    say("sampling requests under the start")
    replay = sample(world, 6_000 if quick else 24_000, seed)
    start = bootstrap_policy(spec)
    say("global weights by CMA-ES")
    action = best_global(replay, start, gamma=gamma, seed=seed, generations=30 if quick else 60)
    found = constant_policy(action, spec.state_width, spec=spec, lineage=Lineage(algorithm="world_global"))
    say("a linear policy by gradient")
    linear = best_linear(replay, found, gamma=gamma, seed=seed, steps=200 if quick else 600)
    say("playing the three policies")
    users = min(5_000 if quick else 20_000, world.n_users)
    return Headroom(
        start=true_value(world, start, users, PLAY_SEED + seed),
        best_global=true_value(world, found, users, PLAY_SEED + seed),
        best_linear=true_value(world, linear, users, PLAY_SEED + seed),
        policies={"start": start, "global": found, "linear": linear},
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class Replay:
    """m requests of play under the start, with the truth of all their candidates.

    session int [m]: whose request. reward [m, C]: expected, an item. pull [m, C]: what an item adds to the log hazard, the
    repetition of tags aside. tag int [m, C]. base [m]: the log hazard of a request that shows nothing.
    repetition: the log hazard's coefficient of the repetition.
    """

    spec: FusionSpec
    session: np.ndarray
    state: np.ndarray
    scores: np.ndarray
    reward: np.ndarray
    pull: np.ndarray
    tag: np.ndarray
    base: np.ndarray
    repetition: float

    def outcome(self, policy: Acts) -> tuple[np.ndarray, np.ndarray]:
        """Expected (reward, hazard) [m] of the requests under `policy`."""
        shown = rank(self.spec, policy.act(self.state), self.scores)
        reward, pull, tag = (np.take_along_axis(x, shown, 1) for x in (self.reward, self.pull, self.tag))
        repeated = np.zeros(len(shown), np.float32)
        for j in range(1, shown.shape[1]):
            repeated += (tag[:, :j] == tag[:, j, None]).any(axis=1)
        log_hazard = self.base + pull.sum(axis=1) + self.repetition * repeated / shown.shape[1]
        return reward.sum(axis=1), np.clip(np.exp(log_hazard), HAZARD_LOW, HAZARD_HIGH)

    def value(self, policy: Acts, gamma: float) -> np.ndarray:
        """[m]: what a further request is worth to its user: mean reward / (1 - gamma (1 - mean hazard)) of its session."""
        reward, hazard = self.outcome(policy)
        _, session, count = np.unique(self.session, return_inverse=True, return_counts=True)
        mean_reward = np.bincount(session, reward) / count
        mean_hazard = np.bincount(session, hazard) / count
        return (mean_reward / (1 - gamma * (1 - mean_hazard)))[session].astype(np.float32)

    def first(self, m: int) -> Replay:
        """The first m requests."""
        parts = {n: getattr(self, n)[:m] for n in ("session", "state", "scores", "reward", "pull", "tag", "base")}
        return Replay(spec=self.spec, repetition=self.repetition, **parts)


def sample(world: World, n: int, seed: int) -> Replay:
    """About n requests of sessions under the start; every request has the same chance of one half to be kept."""
    s, weights, rng = world.params.scalars, reward_weights(world).astype(np.float32), np.random.default_rng(SEARCH_SEED + seed)
    users = world.sample_users(min(world.n_users, int(2 * n * s.leave_base) + 1), DAY, SEARCH_SEED + seed)
    cohort = world.cohort(users, dt=DAY, seed=SEARCH_SEED + seed, width=2048)
    parts: dict[str, list[np.ndarray]] = {}
    for seen, state, _, _ in play(cohort, bootstrap_policy(world.spec)):
        keep = np.flatnonzero(rng.random(len(seen.rows)) < 0.5)
        rows, items = seen.rows[keep], seen.items[keep]
        eta = world.truth(users[rows], items, cohort.mood[rows])
        expected = world.expected(eta, items)
        classes, like, interact = world.chances(eta)
        pull = s.leave_disappointment * classes[..., 1] - s.leave_satisfaction * satisfaction(classes[..., 2], like, interact)
        new = {
            "session": rows,
            "state": state[keep],
            "scores": seen.scores[keep],
            "reward": expected @ weights,
            "pull": pull * (s.leave_elasticity / world.spec.n_shown),
            "tag": world.params.item_tag[items],
            "base": np.log(s.leave_base) + world.params.user_leave[users[rows]] + s.leave_elasticity * s.leave_offset,
        }
        for name, value in new.items():
            parts.setdefault(name, []).append(value)
    mixed = rng.permutation(sum(map(len, parts["base"])))
    arrays = {name: np.concatenate(values)[mixed] for name, values in parts.items()}
    return Replay(spec=world.spec, repetition=s.leave_elasticity * s.leave_repetition, **arrays)


def best_global(replay: Replay, start: Policy, *, gamma: float, seed: int, generations: int) -> np.ndarray:
    """The action float32 [A] within REACH of the start with the best `reward - gamma hazard value`, by CMA-ES."""
    import cma

    spec = replay.spec
    replay = replay.first(6_000)
    centre = np.array(spec.start)
    low, high = np.maximum(centre - REACH, -1), np.minimum(centre + REACH, 1)
    best = centre
    for _ in range(2):  # the value of staying is first the start's, then that of what was found
        value = replay.value(_Constant(best), gamma)

        def loss(action: np.ndarray, value: np.ndarray = value) -> float:
            reward, hazard = replay.outcome(_Constant(action))
            return -float((reward - gamma * hazard * value).mean())

        options = {"bounds": [low, high], "seed": seed + 1, "maxiter": generations // 2, "popsize": 12, "verbose": -9}
        found = cma.CMAEvolutionStrategy(np.clip(best, low + 1e-3, high - 1e-3), 0.3, options).optimize(loss).result.xbest
        best = min((best, found), key=loss)
    return np.asarray(best, np.float32)


def best_linear(replay: Replay, baseline: Policy, *, gamma: float, seed: int, steps: int) -> Policy:
    """A policy clip(linear in the scaled state) within REACH of the start, by gradient ascent from `baseline`'s action.

    The choice of the top n is made smooth for the gradient: candidate j is shown with weight
    sigmoid((score_j - threshold) / temperature), the threshold between the n-th and the next.
    """
    import torch

    from mtf.fusion import log_fused_torch

    spec = replay.spec
    torch.manual_seed(seed)
    mean, scale = replay.state.mean(axis=0), np.maximum(replay.state.std(axis=0), 1e-3)
    z = torch.as_tensor(np.clip((replay.state - mean) / scale, -5, 5))
    scores, reward, pull, base = (torch.as_tensor(x) for x in (replay.scores, replay.reward, replay.pull, replay.base))
    tags = torch.nn.functional.one_hot(torch.as_tensor(replay.tag.astype(np.int64))).float()
    value = torch.as_tensor(replay.value(baseline, gamma))
    centre = torch.tensor(spec.start)
    low, high = (centre - REACH).clamp(min=-1), (centre + REACH).clamp(max=1)
    weight = torch.zeros(spec.state_width, spec.action_width, requires_grad=True)
    bias = torch.tensor(baseline.act(replay.state[:1])[0], requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(z), (2048,))
        action = torch.minimum(torch.maximum(z[rows] @ weight + bias, low), high)
        fused = log_fused_torch(spec, action, scores[rows])
        fused = fused / fused.std(dim=1, keepdim=True)
        top = fused.topk(spec.n_shown + 1, dim=1).values
        shown = torch.sigmoid((fused - top[:, -2:].mean(dim=1, keepdim=True)) / 0.15)
        # without this it would pay to make all candidates tie at the threshold
        shown = shown * (spec.n_shown / shown.sum(dim=1, keepdim=True))
        distinct = 1 - torch.exp((torch.log1p(-shown.clamp(max=1 - 1e-6))[..., None] * tags[rows]).sum(dim=1))
        repetition = 1 - distinct.sum(dim=1) / spec.n_shown
        log_hazard = base[rows] + (shown * pull[rows]).sum(dim=1) + replay.repetition * repetition
        hazard = log_hazard.exp().clamp(HAZARD_LOW, HAZARD_HIGH)
        gain = (shown * reward[rows]).sum(dim=1) - gamma * hazard * value[rows]
        loss = -gain.mean() + 1e-2 * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return _clipped_linear(spec, mean, scale, weight.detach().numpy(), bias.detach().numpy(), low.numpy(), high.numpy())


@dataclass(frozen=True)
class _Constant:
    """One action for every state."""

    action: np.ndarray

    def act(self, states: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.asarray(self.action, np.float32), (len(states), len(self.action)))


def _clipped_linear(
    spec: FusionSpec, mean: np.ndarray, scale: np.ndarray, weight: np.ndarray, bias: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Policy:
    """clip(z weight + bias, low, high) as a bundle: low + relu(x - low) - relu(x - high)."""
    eye = np.eye(len(bias))
    arrays = {
        "mean": mean,
        "scale": scale,
        "skip": np.zeros_like(weight),
        "weight_0": np.hstack([weight, weight]),
        "bias_0": np.concatenate([bias - low, bias - high]),
        "weight_1": np.vstack([eye, -eye]),
        "bias_1": low,
    }
    return Policy(arrays, spec=spec, lineage=Lineage(algorithm="world_linear"))
