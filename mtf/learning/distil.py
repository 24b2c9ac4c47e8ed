"""The last step of every training: one network that gives the wanted actions and needs no parent.

What the gate judges and the server runs is this network, byte for byte, not the formula it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from mtf import box
from mtf.learning.config import Config
from mtf.learning.problem import Z_CLIP, Problem
from mtf.policy import Lineage, Policy
from mtf.transitions.arrays import Arrays, chunks

MARGINS = (1, 2, 4, 8)
OUTSIDE_ALLOWED = 0.01
OUTSIDE_COST = 30.0
BATCH = 4096
TINY = 1e-3
FIXED_UNIT = 1e-2


@dataclass(frozen=True)
class Distilled:
    """residual_rms: of network minus target, in half-widths; outside_share: of states whose action leaves the box.
    clipped_share: of states whose wanted action lay beyond the margin, a share of the box's width that is kept free."""

    policy: Policy
    residual_rms: float
    outside_share: float
    clipped_share: float
    margin: float

    def report(self) -> dict[str, Any]:
        """The numbers, for train.json."""
        return {k: getattr(self, k) for k in ("residual_rms", "outside_share", "clipped_share", "margin")}


def distil(problem: Problem, action: np.ndarray, config: Config, lineage: Lineage, *, seed: int) -> Distilled:
    """A network (linear part + one small MLP) that answers `action` [n, A], clipped to the box shrunk by the margin.

    The linear part is least squares, the MLP learns what it leaves by a few hundred Adam steps. Where more than half of
    the allowed 1 % of states would leave the box, the margin is doubled and the fit repeated.
    """
    for factor in MARGINS:
        margin = factor * config.margin
        low, high, target = problem.data.arrays.build(len(action), partial(_within, problem, action, margin))
        policy = Policy(
            _fit(problem, target, low, high, config, seed), spec=problem.data.spec, lineage=lineage, scaler_clip=Z_CLIP
        )
        clipped, outside, residual = _measure(problem, policy, action, target)
        if outside <= OUTSIDE_ALLOWED / 2:
            break
    return Distilled(policy, residual, outside, clipped, margin)


def unmoved(deployed: Policy, lineage: Lineage, config: Config) -> Distilled:
    """The deployed network itself, for a training that takes no step: fitted again it would be another one, if only a little."""
    policy = Policy(deployed.arrays, spec=deployed.spec, lineage=lineage, scaler_clip=deployed.scaler_clip)
    return Distilled(policy, residual_rms=0.0, outside_share=0.0, clipped_share=0.0, margin=config.margin)


def _within(problem: Problem, action: np.ndarray, margin: float, rows: slice) -> tuple[np.ndarray, ...]:
    """Lowest and highest action that the margin leaves, and the wanted one clipped to them."""
    width = problem.upper[rows] - problem.lower[rows]
    low = problem.center[rows] + (problem.lower[rows] + margin * width)
    high = problem.center[rows] + (problem.upper[rows] - margin * width)
    return low, high, np.clip(action[rows], low, high)


def _measure(problem: Problem, policy: Policy, action: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
    """Share of states that were clipped, share whose answer leaves the box (0 where there is none), RMS of answer - target."""
    clipped = outside = 0
    tolerance = np.where(problem.half_width > 0, box.ROUNDING, box.FIXED_TOLERANCE)
    square = 0.0
    for rows in chunks(len(action)):
        answer = policy.act(problem.data.state[rows])
        clipped += int((np.abs(target[rows] - action[rows]) > 1e-6).any(axis=1).sum())
        outside += int((~box.contains(answer, problem.center[rows], problem.lower[rows], problem.upper[rows], tolerance)).sum())
        square += float(np.square((answer - target[rows]) / problem.unit, dtype=np.float64).sum())
    n = len(action)
    return clipped / n, outside / n if problem.signal.any() else 0.0, float(np.sqrt(square / target.size))


def act(policy: Policy, states: np.ndarray, arrays: Arrays | None = None) -> np.ndarray:
    """`policy.act` some rows at a time, so that hidden layers of many do not lie in memory at once."""
    (action,) = (arrays or Arrays()).build(len(states), lambda rows: (policy.act(states[rows]),))
    return action


def _fit(
    problem: Problem, target: np.ndarray, low: np.ndarray, high: np.ndarray, config: Config, seed: int
) -> dict[str, np.ndarray]:
    z, n, phi = problem.z, len(problem.z), problem.phi
    unit = np.where(problem.half_width > 0, problem.half_width, FIXED_UNIT).astype(np.float32)
    gram, right = 1e-8 * n * np.eye(phi.shape[1]), np.zeros((phi.shape[1], target.shape[1]))
    for rows in chunks(n):
        design = phi[rows].astype(np.float64)
        gram += design.T @ design
        right += design.T @ target[rows].astype(np.float64)
    linear = np.linalg.solve(gram, right).astype(np.float32)

    def beside(rows: slice) -> tuple[np.ndarray, ...]:
        """What the linear part leaves of the target and of its bounds, in half-widths."""
        start = phi[rows] @ linear
        return tuple(((v[rows] - start) / unit).astype(np.float32) for v in (target, low, high))

    left, room_below, room_above = problem.data.arrays.build(n, beside)
    arrays = {"mean": problem.mean, "scale": problem.scale, "skip": linear[1:]}
    if np.sqrt(sum(float(np.square(left[rows]).sum()) for rows in chunks(n)) / left.size) < TINY:
        hidden: tuple[int, ...] = ()
        layers = [(np.zeros((z.shape[1], target.shape[1])), np.zeros(target.shape[1]))]
    else:
        hidden = config.hidden
        layers = _mlp(z, left, room_below, room_above, hidden, config.distil_steps, seed)
    for i, (weight, bias) in enumerate(layers):
        last = i == len(hidden)
        arrays[f"weight_{i}"] = weight * unit if last else weight
        arrays[f"bias_{i}"] = bias * unit + linear[0] if last else bias
    return arrays


def _mlp(
    z: np.ndarray, left: np.ndarray, low: np.ndarray, high: np.ndarray, hidden: tuple[int, ...], steps: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of a ReLU network z -> left, by Adam with a cosine schedule; starts at 0.

    What leaves [low, high] costs OUTSIDE_COST times more: the tails of the state decide whether the gate accepts it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    widths = (z.shape[1], *hidden, left.shape[1])
    weights, biases = [], []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = i == len(hidden)
        weights.append(torch.randn(fan_in, fan_out, generator=generator) * (0.0 if last else (2 / fan_in) ** 0.5))
        biases.append(torch.zeros(fan_out))
    parameters = [p.requires_grad_() for p in (*weights, *biases)]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    states, wanted, floor, ceiling = (torch.from_numpy(np.ascontiguousarray(v)) for v in (z, left, low, high))
    for _ in range(steps):
        rows = torch.randint(len(z), (min(BATCH, len(z)),), generator=generator)
        h = states[rows]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.relu(h @ weight + bias)
        y = h @ weights[-1] + biases[-1]
        beyond = torch.relu(y - ceiling[rows]) + torch.relu(floor[rows] - y)
        loss = (y - wanted[rows]).square().mean() + OUTSIDE_COST * beyond.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return [(w.detach().numpy(), b.detach().numpy()) for w, b in zip(weights, biases, strict=True)]
