"""exploration.json: the box of one policy, its widths and the evidence that they were chosen on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from mtf.errors import InputError, IntegrityError
from mtf.fileio import require_writable, write_atomic


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """Why a dimension's width is what it is.

    move: the quantile of |mu_new - mu_bp|; outward: share of states whose new action lies beyond .8 of the old half-width;
    slope, slope_se: of the reward a request, a half-width; rule: keep | widen | uphill | shrink | moved | floor | cap | fixed.
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


def require_place(path: Path) -> None:
    """Raises InputError where nothing can be written at `path`, or where something else lies there."""
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name the file, e.g. {path / 'exploration.json'}")
    if path.exists():
        try:
            msgspec.json.decode(path.read_bytes(), type=ExplorationDocument)
        except msgspec.MsgspecError:
            raise InputError(f"--out {path} is there, is no exploration.json and would be lost; name another file") from None
    require_writable(path)


def read_exploration(path: Path) -> ExplorationDocument:
    """Read and verify. Raises InputError for another kind of file, IntegrityError where its hash does not fit."""
    try:
        document = msgspec.json.decode(Path(path).read_bytes(), type=ExplorationDocument)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"exploration: {path} {what}; give the file that `mtf explore refresh --out` wrote") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"exploration: {path} is no exploration.json: {error}") from error
    if document.sha != _hash(document):
        raise IntegrityError(f"exploration: {path} was changed after it was written; write it again")
    for place, width in enumerate(document.half_width):
        if not 0 <= width <= 1:
            raise InputError(f"exploration: {path}: half_width[{place}] is {width:g}; normalised half-widths are from 0 to 1")
    return document


def _hash(document: ExplorationDocument) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(document, sha=""), order="sorted")).hexdigest()
