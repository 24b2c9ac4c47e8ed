"""What was set aside: counts by day, and a replay under today's rules, or of rows that were mended.

A sealed revision is never changed, so a quarantine holds copies, named by what they are (request_id, item_id, received_at).
A row is let go by a rule that was mended, by a later revision that brought what it referred to (feedback whose request was
late), or by its own values being mended: then the day gets a new revision in which the mended row stands in the place of
the broken one. The earlier revision, with its quarantine, stays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtf.contracts import check_table, feedback_schema, requests_schema
from mtf.errors import ConflictError, InputError, NotFoundError
from mtf.logs.days import Manifest, day_files, read_manifest, write_day
from mtf.quality.files import TABLES
from mtf.quality.flatten import Table
from mtf.quality.validate import validate_day
from mtf.quality.verdict import Verdict, judged_days, read_verdict
from mtf.spec import FusionSpec

KEYS: dict[Table, tuple[str, ...]] = {
    "requests": ("request_id", "received_at"),
    "feedback": ("request_id", "item_id", "received_at"),
}


class Pile(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a day's newest verdict that are set aside. rules: {rule: rows}, a row may break several. path: the rows."""

    dt: str
    revision: int
    table: Table
    rows: int
    rules: dict[str, int]
    path: Path


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """released: rows that pass now; kept: that still do not; added: that are set aside anew. By table."""

    released: dict[str, int]
    kept: dict[str, int]
    added: dict[str, int]
    verdict: Verdict


def list_piles(out_dir: Path, dt: str | None = None) -> list[Pile]:
    """What is set aside, by day and table, without the tables that are clean. Raises NotFoundError where nothing was judged."""
    days = [dt] if dt else judged_days(out_dir)
    if not days:
        raise NotFoundError(f"quarantine: {out_dir} holds no verdict; run `mtf validate --out {out_dir}` first")
    piles = []
    for day in days:
        verdict = read_verdict(out_dir, day)
        for table in TABLES:
            rows = verdict.counts[f"quarantined_{table}"]
            if rows:
                path = _path(out_dir, verdict, table)
                rules = verdict.quarantined[table]
                piles.append(Pile(dt=day, revision=verdict.revision, table=table, rows=rows, rules=rules, path=path))
    return piles


def replay_day(
    logs_dir: Path,
    dt: str,
    out_dir: Path,
    *,
    spec: FusionSpec,
    expectations_dir: Path,
    docs_dir: Path | None = None,
    progress: bool = False,
) -> Replay:
    """Validate `dt` again and say what became of the rows that were set aside. Raises NotFoundError where none was judged."""
    before = _ids(out_dir, read_verdict(out_dir, dt))
    verdict = validate_day(
        logs_dir, dt, out_dir, spec=spec, expectations_dir=expectations_dir, docs_dir=docs_dir, progress=progress
    )
    if verdict.status == "critical" and not verdict.metrics:
        # the day cannot be read: nothing was looked at, so nothing is let go
        after: dict[Table, Counter[tuple[Any, ...]]] = before
    else:
        after = _ids(out_dir, verdict)
    return Replay(
        released={t: (before[t] - after[t]).total() for t in TABLES},
        kept={t: (before[t] & after[t]).total() for t in TABLES},
        added={t: (after[t] - before[t]).total() for t in TABLES},
        verdict=verdict,
    )


def mend_day(logs_dir: Path, dt: str, out_dir: Path, mended: Path, *, spec: FusionSpec) -> Manifest:
    """Put the rows of `mended` in the place of the set-aside rows that they were; the day's newest manifest.

    mended: Parquet with some rows of a pile and all of its columns, their values mended; file, file_row and revision say which
    they are. Doing it again changes nothing. Raises InputError (no such pile or row, a column of the contract is wrong),
    ConflictError (a row is in the day neither as it was nor as it is now).
    """
    rows, table = _read_mended(mended)
    revisions = sorted(set(rows["revision"].to_pylist()))
    if len(revisions) != 1:
        raise InputError(f"mended: {mended} holds rows of revisions {revisions}; mend rows of one pile")
    schema = requests_schema() if table == "requests" else feedback_schema(spec.behaviours)
    after = check_table(rows, schema, f"mended: {mended}")
    pile = pq.read_table(_path(out_dir, read_verdict(out_dir, dt, revisions[0]), table))
    places = [_places(t) for t in (pile, rows)]
    unknown = [place for place in places[1] if place not in places[0]]
    if unknown:
        raise InputError(f"mended: {mended}: {unknown[0]} was not set aside in revision {revisions[0]} of {dt}")
    before = pile.take(pa.array([places[0].index(place) for place in places[1]]))

    manifest = read_manifest(logs_dir, dt)
    day = {kind: _whole(logs_dir, dt, kind, manifest.revision) for kind in TABLES}
    there = _find(day[table], schema, {*before["request_id"].to_pylist(), *after["request_id"].to_pylist()})
    gone, come = [], []
    pairs = zip(places[1], _contents(before, schema), _contents(after, schema), strict=True)
    for i, (place, was, is_now) in enumerate(pairs):
        if there[was]:
            gone.append(there[was].pop())
            come.append(i)
        elif not there[is_now]:
            raise ConflictError(f"{dt}: {place} is not in revision {manifest.revision} any more; list the piles again")
    if not gone:
        return manifest
    kept = np.ones(day[table].num_rows, bool)
    kept[gone] = False
    day[table] = pa.concat_tables([day[table].filter(pa.array(kept)), after.take(pa.array(come))])
    return write_day(
        logs_dir,
        dt,
        day["requests"],
        day["feedback"],
        spec,
        surface=manifest.surface,
        watermark_us=round(manifest.watermark.timestamp() * 1e6),
        spool=manifest.spool,
    )


def _read_mended(path: Path) -> tuple[pa.Table, Table]:
    try:
        rows = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"mended: {path} is not readable as Parquet: {error}") from None
    missing = {"file", "file_row", "revision", "request_id"} - set(rows.column_names)
    if missing:
        raise InputError(f"mended: {path} has no column {min(missing)!r}; give rows of a pile (`mtf quarantine list`), mended")
    return rows, "feedback" if "item_id" in rows.column_names else "requests"


def _places(pile: pa.Table) -> list[str]:
    """What a set-aside row is called: its place in the sealed revision."""
    return [f"row {row} of {file}" for file, row in zip(pile["file"].to_pylist(), pile["file_row"].to_pylist(), strict=True)]


def _whole(logs_dir: Path, dt: str, kind: Table, revision: int) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in day_files(logs_dir, dt, kind, revision=revision)])


def _contents(rows: pa.Table, schema: pa.Schema) -> list[str]:
    """Each row's values as text; two NaN are the same."""
    return [repr([row[name] for name in schema.names]) for row in rows.select(schema.names).cast(schema).to_pylist()]


def _find(rows: pa.Table, schema: pa.Schema, request_ids: set[str]) -> dict[str, list[int]]:
    """{content: indices} of the rows that carry one of the ids."""
    indices = np.flatnonzero(pc.is_in(rows["request_id"], pa.array(sorted(request_ids))).to_numpy(zero_copy_only=False))
    found: dict[str, list[int]] = defaultdict(list)
    for index, content in zip(indices, _contents(rows.take(pa.array(indices)), schema), strict=True):
        found[content].append(int(index))
    return found


def _path(out_dir: Path, verdict: Verdict, table: Table) -> Path:
    return Path(out_dir) / f"dt={verdict.dt}" / f"r{verdict.revision}" / "quarantine" / f"{table}.parquet"


def _ids(out_dir: Path, verdict: Verdict) -> dict[Table, Counter[tuple[Any, ...]]]:
    found: dict[Table, Counter[tuple[Any, ...]]] = {}
    for table in TABLES:
        path = _path(out_dir, verdict, table)
        columns = pq.read_table(path, columns=list(KEYS[table])) if path.exists() else None
        found[table] = Counter(zip(*(c.to_pylist() for c in columns.columns), strict=True) if columns is not None else ())
    return found
