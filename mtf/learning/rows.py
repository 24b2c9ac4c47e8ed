"""All rows of a problem, scaled once, and batches of them: what every learner of gradient steps reads.

Rows lie side by side in one matrix: a batch is one gather. Where the problem's columns are mapped files (`transitions.arrays`)
the matrix is, too, and a batch reads its rows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mtf.learning.networks import Actor
from mtf.learning.problem import Problem

Box = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
PARTED = ("now", "next", "box", "next_box")
"""Fields of a batch that are tuples of tensors."""


@dataclass(frozen=True)
class Batch:
    """Rows as tensors: observations (what V reads, phi) and z at s and s'; u; the boxes now; reward; done, signal [n].

    mean_square [n, A]: E u^2 in the box that the action was drawn from, in the half-widths of u; no columns for joint critics.
    box, next_box: (center, lower, upper) [n, A] of the policy deployed now. reward [n, q]: a column a critic group, divided by
    the reward scale. weight [n], or [n, m] with a weight for each critic. hold [n]: `Problem.hold`. slate [n, L]: see
    `slate_critics`; None elsewhere.
    """

    now: tuple[torch.Tensor, torch.Tensor]
    next: tuple[torch.Tensor, torch.Tensor]
    z: torch.Tensor
    next_z: torch.Tensor
    u: torch.Tensor
    mean_square: torch.Tensor
    box: Box
    next_box: Box
    reward: torch.Tensor
    done: torch.Tensor
    signal: torch.Tensor
    weight: torch.Tensor
    hold: torch.Tensor
    slate: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.done)


@dataclass(frozen=True)
class Rows:
    """All rows [n, width]; `layout`: the widths of each field's parts in order, None for a vector."""

    matrix: torch.Tensor
    layout: Mapping[str, tuple[int | None, ...]]

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, rows: torch.Tensor) -> Batch:
        """The rows of these numbers."""
        return self._batch(self.matrix.index_select(0, rows))

    def part(self, rows: slice) -> Batch:
        """The rows from start to stop, not copied."""
        return self._batch(self.matrix[rows])

    @property
    def all(self) -> Batch:
        """Every row, not copied."""
        return self._batch(self.matrix)

    @cached_property
    def _widths(self) -> list[int]:
        return [1 if width is None else width for widths in self.layout.values() for width in widths]

    def _batch(self, matrix: torch.Tensor) -> Batch:
        parts = iter(matrix.split(self._widths, dim=1))
        fields = {}
        for name, widths in self.layout.items():
            values = tuple(next(parts)[:, 0] if width is None else next(parts) for width in widths)
            fields[name] = values if name in PARTED else values[0]
        # phi = [1, z]
        return Batch(z=fields["now"][1][:, 1:], **fields)


def tensors(
    problem: Problem,
    reward_scale: float,
    *,
    by_head: bool = False,
    joint: bool = False,
    slate: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> Rows:
    """All rows of the problem; `by_head`: one critic group a reward head, else one for their sum. weight: None = the problem's.
    u is the action's position in the box that it was drawn from, which is what slopes are learned of. joint: for critics of state
    and action together u is its position in the box now, so that they see the same action as the same input whenever it was
    logged; and what V alone reads has no columns.

    In phi(s') the columns that actions move are at their mean (z = 0): nothing that is read at s' may be moved by actions.
    """
    data, columns = problem.data, problem.value_columns
    mean, sd = data.step.mean(), data.step.std() + 1e-6
    reward = data.reward if by_head else data.total_reward[:, None]
    weight, hold = problem.weight if weight is None else weight, problem.hold

    def by_v(z: np.ndarray, step: np.ndarray) -> np.ndarray:
        return z[:, :0] if joint else np.concatenate([z[:, columns], step], axis=1)

    def some(rows: slice) -> dict[str, tuple[np.ndarray, ...]]:
        z, next_z, step = problem.z[rows], problem.next_z[rows], data.step[rows, None]
        one = np.ones((len(z), 1), np.float32)
        now, nxt = (np.clip((s - mean) / sd, -3, 3) for s in (step, step + 1))
        fields = {
            "now": (by_v(z, now), np.concatenate([one, z], axis=1)),
            "next": (by_v(next_z, nxt), np.concatenate([one, next_z * data.value_mask], axis=1)),
            "next_z": (next_z,),
            "u": (problem.position_now(rows) if joint else problem.u[rows],),
            "mean_square": (problem.mean_square(rows)[:, : 0 if joint else None],),
            "box": (problem.center[rows], problem.lower[rows], problem.upper[rows]),
            "next_box": (problem.next_center[rows], problem.next_lower[rows], problem.next_upper[rows]),
            "reward": (reward[rows] / reward_scale,),
            "done": (data.terminal[rows],),
            "signal": (problem.signal[rows],),
            "weight": (weight[rows],),
            "hold": (hold[rows],),
        }
        return fields if slate is None else {**fields, "slate": (slate[rows],)}

    def side_by_side(rows: slice) -> tuple[np.ndarray]:
        parts = [part if part.ndim == 2 else part[:, None] for of in some(rows).values() for part in of]
        return (np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe"),)

    (matrix,) = data.arrays.build(len(data), side_by_side)
    layout = {name: tuple(p.shape[1] if p.ndim == 2 else None for p in of) for name, of in some(slice(0, 1)).items()}
    return Rows(torch.from_numpy(matrix), layout)


def mean_square(box_now: Box, unit: torch.Tensor) -> torch.Tensor:
    """E u^2 [n, A] of a uniform draw from the box: a third of the square of its half-width, as it is cut, in `unit`."""
    _, lower, upper = box_now
    return ((upper - lower) / 2 / unit).square() / 3


def act(actor: Actor, z: torch.Tensor, box_now: Box, unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """mu(s) = mu_bp(s) + h g(z) [n, A], and its position u in the box now."""
    center, lower, upper = box_now
    varied = (upper > lower).to(z.dtype)
    action = center + actor(z) * unit * varied
    return action, (action - center - (lower + upper) / 2) / unit * varied
