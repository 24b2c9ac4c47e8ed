"""Training frees and asks for the same megabytes every step; by default the C library gives them back to the system between.

Then a step of stacked critics takes 800 to 3,000 new pages: about a tenth of its time goes into page faults.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""
LARGEST_KEPT = 32 << 20
"""Bytes; the most that glibc takes. What is larger is mapped, and given back when it is freed."""


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees until it ends; False where the C library cannot be told (it is not glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, value) == 1 for option, value in ((M_MMAP_THRESHOLD, LARGEST_KEPT), (M_TRIM_THRESHOLD, (1 << 31) - 1))
    )
