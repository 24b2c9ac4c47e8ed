"""A fixed number of threads: sums are split by thread, so another number would give other last digits.

One: a second gains a tenth on an idle machine, and BLAS threads that wait for one another by spinning took 4.5 times as
long as soon as something else ran (10,000 sessions, two cores).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

THREADS = 1


@contextmanager
def fixed_threads(n: int = THREADS) -> Iterator[None]:
    """Run with `n` threads in NumPy and torch, and deterministic torch kernels; restores what was before."""
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
