"""The deployment document: what a surface serves now. Servers read it; only the rollout controller writes it.

Each generation is one object, `deploy/<surface>/<generation>.json`, put create-only: of two writers one wins and the
other sees a ConflictError (compare-and-swap on the generation). The newest generation is the truth.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

BUCKETS = 10_000

Phase = Literal["idle", "running", "frozen"]
Outcome = Literal["promoted", "rolled_back", "aborted", "superseded"]


class PolicyRef(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle: its hash, its version in the registry ("bootstrap" for the start), and where its files are."""

    sha: str
    version: str
    uri: str


class Exploration(msgspec.Struct, frozen=True, kw_only=True):
    """The box in force: hash of exploration.json and the half-width [A] in the normalised space."""

    sha: str
    half_width: tuple[float, ...]


class Arms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traffic shares. explore is assigned first, canary and control split the rest equally, holdback is permanent."""

    explore: float = 0.0
    canary: float = 0.0
    control: float = 0.0
    holdback: float = 0.0


class Salts(msgspec.Struct, frozen=True, kw_only=True):
    """Salts of the sticky buckets; explore and rollout are renewed, holdback never."""

    explore: str
    rollout: str
    holdback: str


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout in progress, or the last one with its outcome."""

    id: str
    phase: Phase
    started_ts: str
    outcome: Outcome | None = None
    reason: str = ""
    statistics: dict[str, object] = {}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the document's history. intent: the id of the intent that it carried out, "" where the controller decided."""

    generation: int
    at: str
    what: str
    reason: str
    intent: str = ""


class DeploymentDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of a surface's deployment."""

    surface: str
    generation: int
    at: str
    spec_version: str
    champion: PolicyRef
    bootstrap: PolicyRef
    canary: PolicyRef | None = None
    previous: PolicyRef | None = None
    exploration: Exploration | None = None
    arms: Arms = Arms()
    salts: Salts
    rollout: Rollout | None = None
    history: tuple[Change, ...] = ()


def encode(document: DeploymentDocument) -> bytes:
    """Readable JSON."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode(data: bytes) -> DeploymentDocument:
    """The inverse of `encode`."""
    return msgspec.json.decode(data, type=DeploymentDocument)


def half_width(document: DeploymentDocument) -> np.ndarray | None:
    """The box's half-width float32 [A], or None where nothing is explored."""
    if document.exploration is None:
        return None
    return np.array(document.exploration.half_width, np.float32)
