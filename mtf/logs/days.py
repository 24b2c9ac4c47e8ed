"""Sealed days: immutable revisions of a day's requests and feedback, as Parquet with a manifest.

    LOGS/spec.json
    LOGS/dt=YYYY-MM-DD/r<k>/requests-NNN.parquet, feedback-NNN.parquet, manifest.json

A revision becomes visible by the rename of its whole folder; the newest revision of a day is the day. The same rows
give the same bytes whatever their order of arrival, so that writing a day again changes nothing.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtf.contracts import SCHEMA_VERSION, check_table, feedback_schema, requests_schema
from mtf.errors import ConflictError, InputError, IntegrityError, NotFoundError
from mtf.fileio import sha256_file
from mtf.spec import FusionSpec

Kind = Literal["requests", "feedback"]

SEGMENT_ROWS = 1_000_000
ROW_GROUP_ROWS = 100_000
SORT_KEYS: dict[Kind, tuple[str, ...]] = {
    "requests": ("ts", "request_id"),
    "feedback": ("request_id", "item_id", "received_at"),
}


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A Parquet file of a revision; `path` is relative to the revision's folder."""

    kind: Kind
    path: str
    sha256: str
    rows: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a revision of a day holds.

    watermark: event time (UTC) that had been reached when the day was sealed. late_rows: rows that the revision before
    this one did not hold. spool: of each spool file (by its id) the last batch that is in; {} where no spool was read.
    Duplicate rows are kept: they are resolved where transitions are built.
    """

    surface: str
    dt: str
    revision: int
    segments: tuple[Segment, ...]
    watermark: datetime.datetime
    late_rows: int
    sealed_at: datetime.datetime
    spec_version: str
    spool: dict[str, int] = {}
    schema_version: int = SCHEMA_VERSION

    def rows(self, kind: Kind) -> int:
        """Rows of the day's requests or feedback."""
        return sum(s.rows for s in self.segments if s.kind == kind)


def write_day(
    logs_dir: Path,
    dt: str,
    requests: pa.Table,
    feedback: pa.Table,
    spec: FusionSpec,
    *,
    surface: str = "feed",
    watermark_us: int | None = None,
    spool: dict[str, int] | None = None,
) -> Manifest:
    """Write a day and return its manifest; the same rows as the newest revision's return that one, unchanged.

    requests, feedback: the contracts' columns, any order of rows. watermark_us: event time reached, by default the
    newest event of the rows. spool: what the manifest keeps of the spool's batches.
    Raises InputError on a wrong column, a request of another day, no row at all, or another spec.
    """
    start, end = day_bounds(dt)
    requests = check_table(requests, requests_schema(), f"requests of {dt}")
    feedback = check_table(feedback, feedback_schema(spec.behaviours), f"feedback of {dt}")
    if requests.num_rows == 0 and feedback.num_rows == 0:
        raise InputError(f"dt = {dt}: no row of this day; nothing was sealed (did traffic run on that day of the event clock?)")
    ts = requests.column("ts").cast(pa.int64()).to_numpy()
    if len(ts) and not (start <= ts.min() and ts.max() < end):
        wrong = ts[(ts < start) | (ts >= end)][0]
        raise InputError(f"requests of {dt}: ts = {to_datetime(int(wrong)).isoformat()} is another day; split the rows by day")
    _agree_on_spec(Path(logs_dir), spec)
    if watermark_us is None:
        newest_feedback = pc.max(feedback.column("ts")).cast(pa.int64()).as_py()
        watermark_us = max(int(ts.max(initial=start)), newest_feedback or start)
    day = _day_dir(logs_dir, dt)
    day.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=day, prefix=".r."))
    try:
        segments = (*_write_segments(scratch, "requests", requests), *_write_segments(scratch, "feedback", feedback))
        revision = max(_revisions(day), default=0)
        late = 0
        if revision:
            newest = read_manifest(logs_dir, dt, revision)
            if newest.segments == segments:
                return newest
            late = max(sum(s.rows for s in segments) - sum(s.rows for s in newest.segments), 0)
        manifest = Manifest(
            surface=surface,
            dt=dt,
            revision=revision + 1,
            segments=segments,
            watermark=to_datetime(watermark_us),
            late_rows=late,
            sealed_at=datetime.datetime.now(datetime.UTC),
            spec_version=spec.version,
            spool=spool or {},
        )
        (scratch / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        _publish(scratch, day / f"r{manifest.revision}")
        return manifest
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def list_days(logs_dir: Path) -> list[str]:
    """The sealed days, sorted."""
    names = [p.name.removeprefix("dt=") for p in Path(logs_dir).glob("dt=*") if _revisions(p)]
    return sorted(names)


def read_manifest(logs_dir: Path, dt: str, revision: int | None = None) -> Manifest:
    """The manifest of a day's newest revision, or of `revision`. Raises NotFoundError or IntegrityError."""
    day = _day_dir(logs_dir, dt)
    newest = max(_revisions(day), default=0)
    if not newest:
        sealed = ", ".join(list_days(logs_dir)) or "none"
        raise NotFoundError(f"dt = {dt}: {logs_dir} holds no such sealed day (sealed: {sealed})")
    path = day / f"r{revision or newest}" / "manifest.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise NotFoundError(f"dt = {dt}: no revision {revision}; the newest is {newest}") from None
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is damaged: {error}; seal the day again or restore the file") from error


def day_files(logs_dir: Path, dt: str, kind: Kind, *, verify: bool = True, revision: int | None = None) -> list[Path]:
    """The Parquet files of a day's newest revision (or of `revision`), in order.

    verify: compare each file with the manifest's SHA-256 first. Raises NotFoundError, IntegrityError.
    """
    manifest = read_manifest(logs_dir, dt, revision)
    folder = _day_dir(logs_dir, dt) / f"r{manifest.revision}"
    files = []
    for segment in manifest.segments:
        if segment.kind != kind:
            continue
        path = folder / segment.path
        if verify:
            found = sha256_file(path) if path.exists() else "missing"
            if found != segment.sha256:
                raise IntegrityError(
                    f"{path}: sha256 {found}, the manifest says {segment.sha256}; "
                    "the file was changed after the day was sealed: restore it, or delete the day and seal it again"
                )
        files.append(path)
    return files


def next_day(dt: str) -> str:
    """The calendar day after `dt`."""
    return str(datetime.date.fromisoformat(dt) + datetime.timedelta(days=1))


def day_bounds(dt: str) -> tuple[int, int]:
    """First microsecond of the UTC day `dt`, and the first after it. Raises InputError where it is no day."""
    try:
        day = datetime.datetime.strptime(dt, "%Y-%m-%d").replace(tzinfo=datetime.UTC)
        if f"{day:%Y-%m-%d}" != dt:  # 2026-3-2 would sort after 2026-11-01
            raise ValueError(dt)
    except ValueError:
        raise InputError(f"dt = {dt!r}: not a day; write it as YYYY-MM-DD") from None
    start = int(day.timestamp()) * 1_000_000
    return start, start + 86_400_000_000


def to_datetime(us: int) -> datetime.datetime:
    """Microseconds since 1970 as an aware UTC datetime."""
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=us)


def _day_dir(logs_dir: Path, dt: str) -> Path:
    day_bounds(dt)
    return Path(logs_dir) / f"dt={dt}"


def _revisions(day: Path) -> list[int]:
    found = [re.fullmatch(r"r(\d+)", p.parent.name) for p in day.glob("r*/manifest.json")]
    return [int(m[1]) for m in found if m]


def _agree_on_spec(logs_dir: Path, spec: FusionSpec) -> None:
    path = logs_dir / "spec.json"
    if not path.exists():
        spec.write(path)
        return
    known = FusionSpec.read(path)
    if known.version != spec.version:
        raise InputError(
            f"spec_version = {spec.version}: {path} is {known.version}; keep the logs of another spec in another folder"
        )


def _write_segments(folder: Path, kind: Kind, table: pa.Table) -> list[Segment]:
    order = _total_order(table, SORT_KEYS[kind])
    segments = []
    # an empty table too becomes a file: a reader then finds its columns
    for number, start in enumerate(range(0, max(table.num_rows, 1), SEGMENT_ROWS)):
        path = folder / f"{kind}-{number:03d}.parquet"
        rows = table.take(order.slice(start, SEGMENT_ROWS)).combine_chunks()
        pq.write_table(rows, path, compression="zstd", row_group_size=ROW_GROUP_ROWS)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        segments.append(Segment(kind=kind, path=path.name, sha256=sha256_file(path), rows=rows.num_rows))
    return segments


def _total_order(table: pa.Table, keys: tuple[str, ...]) -> pa.Array:
    """Indices that sort the rows by `keys`; rows with equal keys are ordered by their content, not by their arrival."""
    order = pc.sort_indices(table, sort_keys=[(k, "ascending") for k in keys])
    if table.num_rows < 2:
        return order
    same = np.ones(table.num_rows - 1, bool)
    for key in keys:
        column = table.column(key).take(order)
        same &= pc.equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
    if not same.any():
        return order
    indices = order.to_numpy().copy()
    for start in np.flatnonzero(same & ~np.concatenate([[False], same[:-1]])):
        end = start + 1
        while end <= len(same) and same[end - 1]:
            end += 1
        group = indices[start:end]
        content = [repr(row) for row in table.take(pa.array(group)).to_pylist()]
        indices[start:end] = group[np.argsort(np.array(content), kind="stable")]
    return pa.array(indices)


def _publish(scratch: Path, revision: Path) -> None:
    os.chmod(scratch, 0o755)
    try:
        os.rename(scratch, revision)
    except OSError as error:
        raise ConflictError(f"{revision} appeared meanwhile: another process seals this day; run it again") from error
    handle = os.open(revision.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
