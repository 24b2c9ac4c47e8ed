"""The two terms that keep the actor in the box (arXiv 2404.17589): phi in the critics' target, d in the actor's loss.

Both grow with the excess, how far an action lies outside the box, in each dimension relative to `beta W_d`, W the box's
width. Dimensions of zero width do not vary and are left out.
"""

from __future__ import annotations

import torch


def relative_excess(
    action: torch.Tensor, center: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, beta: float
) -> torch.Tensor:
    """`excess_d / (beta W_d)` [n, A]: 0 inside the box [centre + lower, centre + upper]."""
    width = upper - lower
    over = torch.relu(action - (center + upper)) + torch.relu(center + lower - action)
    return torch.where(width > 0, over / (beta * torch.where(width > 0, width, 1.0)), 0.0)


def phi(excess: torch.Tensor) -> torch.Tensor:
    """`exp(-sum_d excess_d / (beta W_d))` [n]: the share of a next value that counts; 1 inside the box."""
    return torch.exp(-excess.sum(-1))


def distance(excess: torch.Tensor, *, continuous: bool = False) -> torch.Tensor:
    """d [n]: sum over dimensions outside the box of `exp(excess_d / (beta W_d))`; 0 inside.

    It jumps from 0 to 1 at the bound; continuous: `exp(.) - 1`, which does not.
    """
    value = torch.exp(excess) - (1.0 if continuous else 0.0)
    return torch.where(excess > 0, value, 0.0).sum(-1)
