"""Counter-based random numbers: a draw is a function of its key and its lane, never of what was drawn before.

So a session's candidates and responses are the same whatever batch it is played in and whatever policy it meets (common
random numbers). The mixer is splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_A = np.uint64(0xBF58476D1CE4E5B9)
_B = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 with good avalanche; works in place on its argument."""
    x ^= x >> np.uint64(30)
    x *= _A
    x ^= x >> np.uint64(27)
    x *= _B
    x ^= x >> np.uint64(31)
    return x


def keys(*parts: int | np.ndarray) -> np.ndarray:
    """uint64 keys from integers (scalars or arrays that broadcast), each part mixed in."""
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for part in parts:
            key = mix(key + _GOLDEN + (np.asarray(part).astype(np.int64).astype(np.uint64)))
    return key


def uniform(key: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """float32 in (0, 1): one draw for each (key, lane) after broadcasting; lane is an integer array."""
    with np.errstate(over="ignore"):
        bits = mix(key + lane.astype(np.uint64) * _GOLDEN)
    return ((bits >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def normal(key: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """float32 standard normal (Box and Muller); uses the lanes 2 lane and 2 lane + 1."""
    radius = np.sqrt(-2 * np.log(uniform(key, 2 * lane)))
    return radius * np.cos(np.float32(2 * np.pi) * uniform(key, 2 * lane + 1))
