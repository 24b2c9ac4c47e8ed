"""Data-parallel training under torchrun: each process takes its part of every batch, gradients are averaged.

Without torchrun there is one process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Is this the process that speaks for all? True also before they have joined and after they have left."""
    return os.environ.get("RANK", "0") == "0"


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of `value` over the processes."""
    if size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / size()


def drawn(draw: Callable[..., torch.Tensor], *shape: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    """`draw(*shape)`, shape [.., rows, width], this process's part of the noise of a batch of `batch` rows in all.

    All processes draw all of it and take the rows that `trainer.draw` gives them, so that a row has the noise that it has in one
    process, and the generators, which begin alike, stay alike.
    """
    if size() == 1:
        return draw(*shape, generator=generator)
    *before, _, width = shape
    return draw(*before, batch, width, generator=generator)[..., rank() :: size(), :]


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started (gloo: rows and parameters are on the CPU), and leave them again."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
