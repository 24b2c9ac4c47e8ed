"""Sealing: a day of the spool becomes an immutable revision, once the event clock has passed its end by the grace time.

The manifest keeps, for each spool file, the last batch that is in the revision. Sealing again therefore adds what came
since, never twice and never less, also after the spool was pruned; where nothing came it changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mtf.contracts import check_table, feedback_schema, requests_schema
from mtf.errors import InputError, IntegrityError, NotFoundError
from mtf.logs.days import Kind, Manifest, day_bounds, day_files, list_days, read_manifest, to_datetime, write_day
from mtf.logs.spool import SpoolReader, delete_batches, read_id
from mtf.spec import FusionSpec


def seal_day(
    spool_dir: Path, logs_dir: Path, dt: str, spec: FusionSpec, *, surface: str, grace_s: float = 1800, clock_us: int = 0
) -> Manifest:
    """Seal the day `dt` and return its manifest: the stored one where no row came since, else a new revision.

    clock_us: what the event clock is known to say beside the spool's watermark, which stands still while no server runs.
    Raises InputError where the later of the two has not passed the day's end by `grace_s`, or the day has no row;
    IntegrityError where a stored segment or batch is damaged (nothing is written then).
    """
    reader = SpoolReader(spool_dir)
    _, end = day_bounds(dt)
    watermark, due = max(reader.watermark(), clock_us), end + int(grace_s * 1e6)
    sealed = _newest(logs_dir, dt)
    if watermark < due and sealed is None:
        reached = to_datetime(watermark).isoformat() if watermark else "nothing: the spool is empty"
        raise InputError(
            f"dt = {dt}: too early to seal; the event clock has reached {reached}, the day is due at "
            f"{to_datetime(due).isoformat()} (its end and {grace_s:.0f} s of grace): wait, or lower the grace"
        )
    cursor = dict(sealed.spool) if sealed else {}
    rows: dict[Kind, list[pa.Table]] = {"requests": [], "feedback": []}
    schemas = {"requests": requests_schema(), "feedback": feedback_schema(spec.behaviours)}
    for spool_id, batch in reader.batches(cursor, dt):
        rows[batch.kind].append(check_table(batch.rows, schemas[batch.kind], f"spool, {batch.kind} of {dt}"))
        cursor[spool_id] = batch.id
    if sealed is not None:
        kept = {kind: day_files(logs_dir, dt, kind) for kind in rows}  # verified, also where nothing is new
        if not any(rows.values()):
            return sealed
        for kind, files in kept.items():
            rows[kind] += [_read_segment(path, schemas[kind]) for path in files]
    tables = {kind: pa.concat_tables([schemas[kind].empty_table(), *parts]) for kind, parts in rows.items()}
    return write_day(
        logs_dir, dt, tables["requests"], tables["feedback"], spec, surface=surface, watermark_us=watermark, spool=cursor
    )


def prune(spool_dir: Path, before_dt: str, logs_dir: Path) -> dict[str, int]:
    """Delete from the spool the batches of days before `before_dt` that sealed days hold; {dt: batches deleted}.

    What no sealed revision holds stays: rows of unsealed days, and late rows since the last seal. Works beside a running
    server. The freed pages are used again by later rows; the files do not shrink.
    """
    day_bounds(before_dt)
    deleted: dict[str, int] = {}
    for dt in list_days(logs_dir):
        if dt >= before_dt:
            continue
        held = read_manifest(logs_dir, dt).spool
        for path in sorted(Path(spool_dir).glob("*.sqlite")):
            through = held.get(read_id(path) or "")
            if through:
                deleted[dt] = deleted.get(dt, 0) + delete_batches(path, dt, through)
    return deleted


def _newest(logs_dir: Path, dt: str) -> Manifest | None:
    try:
        return read_manifest(logs_dir, dt)
    except NotFoundError:
        return None


def _read_segment(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}; restore the file") from error
    return check_table(table, schema, str(path))
