"""All days together: the pool that training reads, named by one hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from mtf.errors import IntegrityError, NotFoundError
from mtf.fileio import write_atomic


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """build.json: one day's transitions and what became of every row of its logs.

    rows, sessions: transitions and sessions of the day. carried: shown requests of sessions that may still go on, left to
    the next day. dropped: rows that went no further, by reason (`requests.` and `feedback.` before the name of a rule or
    of a reason of ours). never_shown: requests without any impression, by arm. md5: of transitions.parquet.
    logs_revision: the sealed revision that was read, None where only a carry was. carry_from: the day whose carry was
    read. key: hash of everything that the result depends on.
    """

    dt: str
    rows: int
    sessions: int
    carried: int
    dropped: dict[str, int]
    never_shown: dict[str, int]
    md5: str
    engine: str
    logs_revision: int | None
    carry_from: str | None
    spec_version: str
    key: str


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """pool.json. md5: over the sorted (day, md5 of its transitions)."""

    md5: str
    rows: int
    days: dict[str, str]


def read_build(out_dir: Path, dt: str) -> Build | None:
    """A day's build.json; None where the day is not built."""
    path = Path(out_dir) / f"dt={dt}" / "build.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Build)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is damaged: {error}; delete its folder and build the day again") from error


def built_days(out_dir: Path) -> list[str]:
    """The days with transitions, sorted."""
    return sorted(p.parent.name.removeprefix("dt=") for p in Path(out_dir).glob("dt=*/build.json"))


def read_pool(out_dir: Path) -> Pool:
    """The pool of the days that are built. Raises NotFoundError where none is."""
    builds = [build for dt in built_days(out_dir) if (build := read_build(out_dir, dt)) is not None]
    if not builds:
        raise NotFoundError(f"transitions: {out_dir} holds no built day; run `mtf transitions build --logs DIR --out {out_dir}`")
    lines = "".join(f"{b.dt} {b.md5}\n" for b in builds)
    md5 = hashlib.md5(lines.encode(), usedforsecurity=False).hexdigest()
    return Pool(md5=md5, rows=sum(b.rows for b in builds), days={b.dt: b.md5 for b in builds})


def write_pool(out_dir: Path) -> Pool:
    """Write pool.json for the days that are built."""
    pool = read_pool(out_dir)
    write_atomic(Path(out_dir) / "pool.json", msgspec.json.format(msgspec.json.encode(pool), indent=2) + b"\n")
    return pool


def pool_md5(out_dir: Path) -> str:
    """The pool's hash: it changes exactly when some day's transitions do."""
    return read_pool(out_dir).md5
