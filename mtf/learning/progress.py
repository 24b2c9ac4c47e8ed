"""A progress bar on stderr that costs nothing where nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Progress:
    """Named stages with a bar each; `seconds` keeps how long each took."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and sys.stderr.isatty()
        self.seconds: dict[str, float] = {}
        self._bar: Any = None
        self._since = time.perf_counter()

    def over(self, items: Sequence[T], name: str) -> Iterator[T]:
        """Iterate with a bar."""
        bar: Any = items
        if self.enabled:
            from tqdm import tqdm

            self._bar = bar = tqdm(items, desc=name, file=sys.stderr, leave=False, mininterval=0.2)
        yield from bar
        self.done(name)

    def show(self, values: Mapping[str, float]) -> None:
        """Put numbers behind the bar that runs."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)

    def done(self, name: str) -> None:
        """A stage ended: its time is what passed since the last one."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._since, 3)
        self._since = now
