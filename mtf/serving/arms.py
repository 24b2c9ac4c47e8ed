"""Which arm a user is in: sticky buckets, computed from the id and the document's salts alone.

holdback is taken first (its salt never changes), then explore (renewed between rounds), then canary and control split
what remains by the rollout's salt: canary fills the buckets from 0 up, control from the top down, so that ramping moves
users out of `champion` and never back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mtf.rollout.document import BUCKETS, DeploymentDocument


def bucket(salt: str, user_id: str) -> int:
    """0..9999 by SHA-256 of "salt:user_id"."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{user_id}".encode()).digest()[:8], "big") % BUCKETS


def assign(document: DeploymentDocument, user_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Arm names (object [n]) and the bucket (int32 [n]) of the hash that chose each arm."""
    arms, salts = document.arms, document.salts
    rest = 1 - arms.explore
    comparing = document.canary is not None
    canary = round(arms.canary / rest * BUCKETS) if comparing and rest > 0 else 0
    control = round(arms.control / rest * BUCKETS) if comparing and rest > 0 else 0
    explore = round(arms.explore * BUCKETS) if document.exploration is not None else 0
    holdback = round(arms.holdback * BUCKETS)
    names = np.empty(len(user_ids), object)
    buckets = np.empty(len(user_ids), np.int32)
    for i, user in enumerate(user_ids):
        if holdback and (b := bucket(salts.holdback, user)) < holdback:
            names[i] = "holdback"
        elif explore and (b := bucket(salts.explore, user)) < explore:
            names[i] = "explore"
        else:
            b = bucket(salts.rollout, user)
            names[i] = "canary" if b < canary else "control" if b >= BUCKETS - control else "champion"
        buckets[i] = b
    return names, buckets
