"""Cells of the study as its runs write them, with what the report reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.study import cell_of


def _cell(
    learner: str = "slate_replay",
    lifts: tuple[float, ...] = (0.05,),
    *,
    seed: int = 1,
    se: float = 0.006,
    world: str = "personalised",
    exploration: str = "D3",
    users: int = 20_000,
    code: str | None = None,
    pooled: bool = True,
    sessions: int = 10_000,
) -> dict[str, Any]:
    """A round for each of `lifts`, all with standard error `se`; without `code` a cell of the older form."""
    rounds = [
        {
            "round": number,
            "lift": lift,
            "se": se,
            "discounted": lift / 2,
            "discounted_se": se / 2,
            "metrics": {"valid": 0.02, "duration": -0.01},
            "gauc": {"start": 0.5, "value": 0.55},
            "learned": {"flat": None},
            "sessions": sessions,
            "warnings": [],
        }
        for number, lift in enumerate(lifts, 1)
    ]
    made = {} if code is None else {"code": code}
    return {**cell_of(world, learner, exploration, seed, users, pooled=pooled), **made, "rounds": rounds}


@pytest.fixture
def cell() -> Callable[..., dict[str, Any]]:
    return _cell
