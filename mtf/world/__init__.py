"""A simulated recommender with a known truth: a test bed, never a source of claims about real users."""

from mtf.world.params import WorldParams
from mtf.world.world import World

__all__ = ["World", "WorldParams"]
