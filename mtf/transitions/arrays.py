"""Where wide columns lie: in memory, or in files that are mapped into it, for data that memory does not hold.

A mapped page is read when it is touched and given back when memory is short. The values are the same either way.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mtf.errors import InputError

CHUNK = 65_536


class Arrays:
    """Makes wide columns; `folder` is where mapped ones lie (on a disk, not in a memory file system), None keeps them in memory.

    Files have no name: they are gone with the process, however it ends, or with the last array that reads them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> np.ndarray:
        """An array of zeros. Raises InputError where the disk has no room for it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.folder is None or size == 0:
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                # room now: a mapped page that finds none later ends the process
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise InputError(f"{self.folder}: no room for a column of {size / 2**30:.1f} GiB ({error}); free some") from error
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))

    def build(self, n: int, make: Callable[[slice], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Columns of n rows, made from `make(rows)`, some thousand rows at a time."""
        found: list[np.ndarray] = []
        for rows in chunks(n) or [slice(0, 0)]:
            parts = make(rows)
            if not found:
                found = [self.zeros((n, *part.shape[1:]), part.dtype) for part in parts]
            for column, part in zip(found, parts, strict=True):
                column[rows] = part
        return tuple(found)


def chunks(n: int, size: int = CHUNK) -> list[slice]:
    """The rows of 0..n, `size` at a time."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
