"""Exploration: how wide the next box is, dimension by dimension, and why."""

from __future__ import annotations

from mtf.contracts.exploration import ExplorationDocument, read_exploration
from mtf.exploration.refresh import refresh

__all__ = ["ExplorationDocument", "read_exploration", "refresh"]
