"""UnifiedRL (arXiv 2404.17589, v6): IntegratedRL with one group of critics for each reward head.

Each group learns its own head's reward; the actor weighs the groups' means and spreads (equation in `integrated_rl`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mtf.learning.integrated_rl import IntegratedRLConfig, learn, require

__all__ = ["UnifiedRLConfig", "learn", "require"]


@dataclass(frozen=True, kw_only=True)
class UnifiedRLConfig(IntegratedRLConfig):
    """As `integrated_rl`, with groups of critics by reward head."""

    name: ClassVar[str] = "unified_rl"

    groups: Literal["total", "heads"] = "heads"
