"""All rows of a problem as tensors, scaled once, and batches of them: what every learner of gradient steps reads.

Where the problem's columns are mapped files (`transitions.arrays`) the tensors are, too: a batch reads its rows from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from mtf.learning.networks import Actor
from mtf.learning.problem import Problem

Box = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors: observations (what V reads, phi) and z at s and s'; u; the boxes now; reward; done, signal [n].

    box, next_box: (center, lower, upper) [n, A] of the policy deployed now. reward [n, q]: a column a critic group, divided by
    the reward scale. weight [n], or [n, m] with a weight for each critic. slate [n, L]: see `slate_critics`; None elsewhere.
    """

    now: tuple[torch.Tensor, torch.Tensor]
    next: tuple[torch.Tensor, torch.Tensor]
    z: torch.Tensor
    next_z: torch.Tensor
    u: torch.Tensor
    box: Box
    next_box: Box
    reward: torch.Tensor
    done: torch.Tensor
    signal: torch.Tensor
    weight: torch.Tensor
    slate: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.done)

    def take(self, rows: torch.Tensor) -> Batch:
        """The rows of these numbers."""

        def pick(value: Any) -> Any:
            if value is None:
                return None
            # v[rows] takes twice as long
            return tuple(v.index_select(0, rows) for v in value) if isinstance(value, tuple) else value.index_select(0, rows)

        return Batch(**{f.name: pick(getattr(self, f.name)) for f in fields(self)})

    def part(self, rows: slice) -> Batch:
        """The rows from start to stop."""
        return self.take(torch.arange(rows.start, rows.stop))


def tensors(problem: Problem, reward_scale: float, *, by_head: bool = False) -> Batch:
    """All rows of the problem; `by_head`: one critic group a reward head, else one for their sum.

    In phi(s') the columns that actions move are at their mean (z = 0): nothing that is read at s' may be moved by actions.
    """
    data, columns = problem.data, problem.value_columns
    mean, sd = data.step.mean(), data.step.std() + 1e-6
    reward = data.reward if by_head else data.total_reward[:, None]

    def read_by_critics(rows: slice) -> tuple[np.ndarray, ...]:
        """What V reads at s and at s', and phi(s')."""
        z, next_z, step = problem.z[rows], problem.next_z[rows], data.step[rows, None]
        now, nxt = (np.clip((s - mean) / sd, -3, 3).astype(np.float32) for s in (step, step + 1))
        next_phi = np.concatenate([np.ones((len(z), 1), np.float32), next_z * data.value_mask], axis=1, dtype=np.float32)
        return np.concatenate([z[:, columns], now], axis=1), np.concatenate([next_z[:, columns], nxt], axis=1), next_phi

    seen, next_seen, next_phi = data.arrays.build(len(data), read_by_critics)

    def tensor(value: np.ndarray) -> torch.Tensor:
        # a column that is mapped stays so: it is of this type and contiguous already
        made = np.ascontiguousarray(value, np.float32)
        return torch.from_numpy(made if made.flags.writeable else made.copy())

    return Batch(
        now=(tensor(seen), tensor(problem.phi)),
        next=(tensor(next_seen), tensor(next_phi)),
        z=tensor(problem.z),
        next_z=tensor(problem.next_z),
        u=tensor(problem.u),
        box=(tensor(problem.center), tensor(problem.lower), tensor(problem.upper)),
        next_box=(tensor(problem.next_center), tensor(problem.next_lower), tensor(problem.next_upper)),
        reward=tensor(reward / reward_scale),
        done=tensor(data.terminal),
        signal=tensor(problem.signal),
        weight=tensor(problem.weight),
    )


def act(actor: Actor, z: torch.Tensor, box_now: Box, unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """mu(s) = mu_bp(s) + h g(z) [n, A], and its position u in the box now."""
    center, lower, upper = box_now
    varied = (upper > lower).to(z.dtype)
    action = center + actor(z) * unit * varied
    return action, (action - center - (lower + upper) / 2) / unit * varied
