"""A fixed number of threads: sums are split by thread, so another number would give other last digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

THREADS = 2


@contextmanager
def fixed_threads(n: int = THREADS) -> Iterator[None]:
    """Run with `n` threads in NumPy and torch, and deterministic torch kernels; restores what was before.

    Loops of small matrices run with 1: waiting for a second thread costs them more than it brings.
    """
    import torch

    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(n)
    torch.use_deterministic_algorithms(True)
    # it would write every new tensor twice, for operations that read memory before they write it; none is used here
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with threadpool_limits(limits=n):
            yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled
