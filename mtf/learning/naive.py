"""The usual form, as a comparator: IntegratedRL-MTF with MLP critics Q(s, a) on state and action together.

Quiet failure: losses converge, actions stay in the box and go where noise points, for in the box the action's signal is
small and an MLP spends itself on the state (docs/method.md). It gets a third of
what users differ in (docs/study.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mtf.learning.integrated_rl import IntegratedRLConfig, learn, require

__all__ = ["NaiveConfig", "learn", "require"]


@dataclass(frozen=True, kw_only=True)
class NaiveConfig(IntegratedRLConfig):
    """As `integrated_rl`, with the joint critic; no evidence limits its step but the gate's."""

    name: ClassVar[str] = "naive"

    critic_hidden: tuple[int, ...] = (64, 64)
    form: Literal["advantage", "joint"] = "joint"
