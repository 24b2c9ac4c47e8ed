"""exploration.json: the box of one policy, its widths and the evidence that they were chosen on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from mtf.errors import InputError, IntegrityError
from mtf.fileio import write_atomic


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """Why a dimension's width is what it is.

    move: the quantile of |mu_new - mu_bp|; outward: share of states whose new action lies beyond .8 of the old half-width;
    slope, slope_se: of the reward a request, a half-width; rule: keep | widen | shrink | moved | fixed.
    """

    move: float
    outward: float
    slope: float
    slope_se: float
    before: float
    rule: str


class ExplorationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The box of `policy_sha`: half_width [A], normalised.

    budget: share of the reward a request that exploring may cost; expected_loss, loss_se: what it costs by the logs'
    curvature at these widths. evidence: a line a dimension. sha: hash of everything else (empty until written).
    """

    policy_sha: str
    half_width: tuple[float, ...]
    budget: float
    expected_loss: float
    loss_se: float
    evidence: tuple[Dimension, ...]
    reason: str
    sha: str = ""

    def named(self) -> ExplorationDocument:
        """The same with its hash."""
        return msgspec.structs.replace(self, sha=_hash(self))


def write_exploration(document: ExplorationDocument, path: Path) -> ExplorationDocument:
    """Write it, named by its hash, and return that."""
    named = document.named()
    write_atomic(Path(path), msgspec.json.format(msgspec.json.encode(named), indent=2) + b"\n")
    return named


def read_exploration(path: Path) -> ExplorationDocument:
    """Read and verify. Raises InputError for another kind of file, IntegrityError where its hash does not fit."""
    try:
        document = msgspec.json.decode(Path(path).read_bytes(), type=ExplorationDocument)
    except OSError:
        raise InputError(f"exploration: {path} does not exist; `mtf explore refresh --out` writes one") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"exploration: {path} is no exploration.json: {error}") from error
    if document.sha != _hash(document):
        raise IntegrityError(f"exploration: {path} was changed after it was written; write it again")
    return document


def _hash(document: ExplorationDocument) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(document, sha=""), order="sorted")).hexdigest()
