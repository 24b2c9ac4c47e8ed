"""Build a day: sealed logs in, a partition of transitions out.

    OUT/spec.json
    OUT/dt=YYYY-MM-DD/transitions.parquet, carry/{requests,feedback}.parquet, build.json
    OUT/pool.json

A partition depends on its own day's logs and on the carry of the calendar day before it, on nothing else, and a build
with the same inputs changes nothing. Where a day is built again and leaves another carry, the next day follows.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mtf.contracts import feedback_schema, requests_schema, transitions_schema
from mtf.errors import InputError, IntegrityError, MtfError
from mtf.fileio import folder_atomic, md5_file, sha256_file
from mtf.logs.days import day_bounds, day_files, list_days, next_day, read_manifest
from mtf.spec import FusionSpec
from mtf.transitions.pool import Build, built_days, pool_md5, read_build, write_pool

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from mtf.transitions.clean import Broken, Kind, Rules
    from mtf.transitions.engines import Engine

__all__ = ["Build", "build_all", "build_day", "pool_md5"]

# rows of one pass over the wide columns, and of a row group: bounds the memory, whatever the day's size
SLICE_ROWS = 200_000
GROUP_ROWS = 65_536
GROUPS_WAITING = 3
STAGES = 5


def build_day(
    logs_dir: Path,
    dt: str,
    out_dir: Path,
    *,
    spec: FusionSpec,
    expectations_dir: Path | None,
    engine: str = "duckdb",
    threads: int = 2,
    progress: bool = False,
) -> Build:
    """Build the transitions of the sessions that closed on `dt`; nothing is done where they are built already.

    expectations_dir: its row rules drop (and count) rows; None = no rules. Later days that are built and follow from a
    carry that changed are built again. One build at a time writes OUT; another one waits.
    Raises NotFoundError (day not sealed), InputError (files that are not in the contract's form), IntegrityError.
    """
    logs_dir, out_dir = Path(logs_dir), Path(out_dir)
    manifest = read_manifest(logs_dir, dt)
    if manifest.spec_version != spec.version:
        raise InputError(
            f"dt = {dt}: spec_version = {manifest.spec_version} in the logs, {spec.version} given; give the logs' spec"
        )
    from mtf.transitions.clean import read_rules

    with _alone(out_dir, spec):
        make = _Maker(logs_dir, out_dir, spec, read_rules(expectations_dir), engine, threads, progress)
        for earlier in _unlogged(logs_dir, out_dir, dt):
            make.day(earlier)
        build = make.day(dt)
        following = next_day(dt)
        while read_build(out_dir, following) is not None and make.is_stale(following):
            make.day(following)
            following = next_day(following)
        for later in _unlogged(logs_dir, out_dir, built_days(out_dir)[-1]):
            make.day(later)
        write_pool(out_dir)
    return build


def build_all(
    logs_dir: Path,
    out_dir: Path,
    *,
    days: Sequence[str] | None = None,
    spec: FusionSpec | None = None,
    expectations_dir: Path | None,
    engine: str = "duckdb",
    threads: int = 2,
    progress: bool = False,
) -> list[Build]:
    """`build_day` for `days` (default: every sealed day), in order. spec: by default LOGS/spec.json."""
    logs_dir = Path(logs_dir)
    days = sorted(days) if days is not None else list_days(logs_dir)
    if not days:
        raise InputError(f"logs: {logs_dir} holds no sealed day; give the folder that `mtf simulate --out` or `mtf seal` wrote")
    spec = spec or FusionSpec.read(logs_dir / "spec.json")
    return [
        build_day(
            logs_dir, dt, out_dir, spec=spec, expectations_dir=expectations_dir, engine=engine, threads=threads, progress=progress
        )
        for dt in days
    ]


class _Maker:
    """The fixed surroundings of the builds of one call."""

    def __init__(
        self,
        logs_dir: Path,
        out_dir: Path,
        spec: FusionSpec,
        rules: Rules,
        engine: str,
        threads: int,
        progress: bool,
    ) -> None:
        self.logs_dir, self.out_dir, self.spec, self.rules = logs_dir, out_dir, spec, rules
        self.engine, self.threads, self.progress = engine, threads, progress
        self.schemas: dict[Kind, pa.Schema] = {"requests": requests_schema(), "feedback": feedback_schema(spec.behaviours)}

    def is_stale(self, dt: str) -> bool:
        """Would the day's transitions be made of other inputs now than they were?"""
        build = read_build(self.out_dir, dt)
        return build is None or build.key != self._key(dt)

    def day(self, dt: str) -> Build:
        """The day's build, made now where it is stale."""
        build = read_build(self.out_dir, dt)
        key = self._key(dt)
        if build is not None and build.key == key:
            return build
        import duckdb

        from mtf.transitions.clean import broken_rows
        from mtf.transitions.engines import open_engine

        with (
            tempfile.TemporaryDirectory(dir=self.out_dir, prefix=".spill.") as spill,
            folder_atomic(self.out_dir / f"dt={dt}", "build.json") as scratch,
            tqdm(total=STAGES, desc=f"transitions {dt}", disable=not self.progress, leave=False) as bar,
        ):
            files = {kind: self._files(dt, kind, Path(spill)) for kind in self.schemas}
            engine = open_engine(self.engine, Path(spill), self.threads)
            try:
                broken = broken_rows(files, self.rules, self.spec, Path(spill), self.threads)
                bar.update()
                build = self._build(engine, files, broken, dt, scratch, bar)
            except (duckdb.Error, pa.ArrowInvalid) as error:
                raise MtfError(
                    f"dt = {dt}: the rows cannot be made into transitions: {error}; run `mtf validate` first"
                ) from error
            finally:
                engine.close()
            build = msgspec.structs.replace(build, key=key)
            (scratch / "build.json").write_bytes(msgspec.json.format(msgspec.json.encode(build), indent=2) + b"\n")
        return build

    def _build(
        self, engine: Engine, files: dict[Kind, list[Path]], broken: dict[Kind, Broken], dt: str, scratch: Path, bar: tqdm
    ) -> Build:
        from mtf.transitions import expression as ex

        dropped = {f"{kind}.{rule}": n for kind, found in broken.items() for rule, n in found.counts.items()}
        requests, copies = self._unique(engine, engine.read("requests", files["requests"], broken["requests"].places))
        feedback = engine.read("feedback", files["feedback"], broken["feedback"].places)
        dropped["requests.duplicate"] = copies
        bar.update()
        seen = ex.impressions(feedback, requests)
        outcomes, copies = self._outcomes(engine, feedback, requests)
        dropped |= {"feedback.duplicate": copies} | self._strays(engine, feedback, seen, outcomes, copies, files)
        bar.update()
        never = requests.anti_join(outcomes, "request_id")
        never_shown = {str(arm): n for (arm,), n in _counts(engine, never, ["arm"]).items()}
        dropped["requests.no_impression"] = sum(never_shown.values())
        shown = requests.semi_join(outcomes, "request_id")
        # in order, so that a slice of the sessions lies together
        steps = engine.keep("steps", ex.steps(shown, self.spec, engine.micros, day_bounds(dt)[1]).order_by("session_id"))
        bar.update()
        carried = self._carry(engine, scratch / "carry", steps, requests, feedback)
        path = scratch / "transitions.parquet"
        rows, sessions = self._transitions(engine, path, steps, requests, outcomes, dt, bar)
        return Build(
            dt=dt,
            rows=rows,
            sessions=sessions,
            carried=carried,
            dropped={reason: n for reason, n in sorted(dropped.items()) if n},
            never_shown=dict(sorted(never_shown.items())),
            md5=md5_file(path),
            engine=self.engine,
            logs_revision=self._revision(dt),
            carry_from=_day_before(dt) if self._carried_files(dt) else None,
            spec_version=self.spec.version,
            key="",
        )

    def _unique(self, engine: Engine, rows: ir.Table) -> tuple[ir.Table, int]:
        """One row a request, and how many copies that leaves out. A request is a fact: its first row stays."""
        from mtf.transitions import expression as ex

        again = engine.keep("requests_again", ex.repeated(rows, ["request_id"]))
        copies = _one(engine, again.agg(n=(again.copies - 1).sum().fill_null(0)))
        if not copies:
            return rows, 0
        first = engine.keep("requests_first", ex.one_of(rows.semi_join(again, "request_id"), ["request_id"], latest=False))
        return rows.anti_join(again, "request_id").union(first), copies

    def _outcomes(self, engine: Engine, feedback: ir.Table, requests: ir.Table) -> tuple[ir.Table, int]:
        """What came of each shown request, and how many copies of impressions that leaves out: the latest row counts."""
        from mtf.transitions import expression as ex

        every = engine.keep("outcomes", ex.outcomes(ex.shown(feedback, requests), self.spec))
        again = every.filter(every.repeated)
        with_copies = _total_shown(engine, again)
        if not with_copies:
            return every, 0
        # where a request shows an item, it shows it at one position
        several = ex.shown(feedback.semi_join(again, "request_id"), requests)
        once = engine.keep("outcomes_again", ex.outcomes(ex.one_of(several, ["request_id", "position"], latest=True), self.spec))
        return every.filter(~every.repeated).union(once), with_copies - _total_shown(engine, once)

    def _strays(
        self,
        engine: Engine,
        feedback: ir.Table,
        seen: ir.Table,
        outcomes: ir.Table,
        copies: int,
        files: dict[Kind, list[Path]],
    ) -> dict[str, int]:
        """Feedback that answers no shown request, by reason."""
        if _one(engine, feedback.count().as_table()) == _total_shown(engine, outcomes) + copies:
            return {}
        answered = _counts(engine, seen, ["known", "shown"])
        unknown = sum(n for (known, _), n in answered.items() if not known)
        every = engine.read("every_request", files["requests"], None).select("request_id").distinct()
        of_dropped = _one(engine, seen.filter(~seen.known).semi_join(every, "request_id").count().as_table())
        return {
            "feedback.not_shown": answered.get((True, False), 0),
            "feedback.request_dropped": of_dropped,
            "feedback.unknown_request": unknown - of_dropped,
        }

    def _carry(self, engine: Engine, folder: Path, steps: ir.Table, requests: ir.Table, feedback: ir.Table) -> int:
        """Write the rows of the sessions that may still go on, as they are in the logs, and return their requests."""
        from mtf.transitions import expression as ex

        still_open = steps.filter(steps.open)
        asked = _between(engine, requests, still_open).semi_join(still_open, "request_id")
        seen = ex.impressions(_between(engine, feedback, still_open), asked)
        shown = seen.filter(seen.shown).drop("known", "shown").order_by(["request_id", "position"])
        folder.mkdir()
        _write(folder / "feedback.parquet", engine.batches(shown), self.schemas["feedback"])
        return _write(folder / "requests.parquet", engine.batches(asked.order_by("request_id")), self.schemas["requests"])

    def _transitions(
        self, engine: Engine, path: Path, steps: ir.Table, requests: ir.Table, outcomes: ir.Table, dt: str, bar: tqdm
    ) -> tuple[int, int]:
        """Write the closed sessions, a slice of the sorted session ids at a time; (rows, sessions)."""
        from mtf.transitions import expression as ex

        closed = steps.filter(~steps.open).drop("open")
        sizes = closed.group_by("session_id").agg(n=closed.count()).order_by("session_id")
        found = list(engine.batches(sizes))
        session_ids = [i for batch in found for i in batch.column("session_id").to_pylist()]
        bounds = _slices(session_ids, np.concatenate([np.empty(0, np.int64), *(batch.column("n").to_numpy() for batch in found)]))
        bar.total += len(bounds)
        bar.refresh()

        def every_batch() -> Iterator[pa.RecordBatch]:
            for first, after in bounds:
                part = closed.filter(closed.session_id >= first)
                part = part if after is None else part.filter(part.session_id < after)
                wide = _between(engine, requests, part)
                # kept, or engines join the widest rows first and carry them through the other joins
                endings = engine.keep("endings", ex.endings(part, wide, outcomes))
                yield from engine.batches(ex.transitions(endings, wide, self.spec, dt))
                bar.update()

        rows = _write(path, every_batch(), transitions_schema())
        bar.update()
        return rows, len(session_ids)

    def _files(self, dt: str, kind: Kind, scratch: Path) -> list[Path]:
        """The day's files of a kind and the carried one, checked against hash and schema; one without rows where none."""
        day = day_files(self.logs_dir, dt, kind) if self._revision(dt) is not None else []
        files = [*day, *(f for f in self._carried_files(dt) if f.name == f"{kind}.parquet")]
        for file in files:
            _check_file(file, self.schemas[kind])
        if not files:
            files = [scratch / f"no_{kind}.parquet"]
            pq.write_table(self.schemas[kind].empty_table(), files[0])
        return files

    def _carried_files(self, dt: str) -> list[Path]:
        """What the calendar day before left; nothing where it is not built, or left nothing."""
        folder = self.out_dir / f"dt={_day_before(dt)}" / "carry"
        before = read_build(self.out_dir, _day_before(dt))
        return sorted(folder.glob("*.parquet")) if before is not None and before.carried else []

    def _revision(self, dt: str) -> int | None:
        return read_manifest(self.logs_dir, dt).revision if dt in list_days(self.logs_dir) else None

    def _key(self, dt: str) -> str:
        """Hash of everything that the day's transitions depend on."""
        revision = self._revision(dt)
        inputs = {
            "dt": dt,
            "logs": [s.sha256 for s in read_manifest(self.logs_dir, dt, revision).segments] if revision else None,
            "carry": [sha256_file(f) for f in self._carried_files(dt)],
            "rules": {kind: [(rule.name, rule.sql) for rule in rules] for kind, rules in self.rules.items()},
            "spec": self.spec.version,
            "code": _code(),
        }
        return hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()


def _unlogged(logs_dir: Path, out_dir: Path, until: str) -> list[str]:
    """Days before `until` without logs and not built yet on which sessions closed that the day before them carried.

    They are built from the carry alone, once a later day is: no log of theirs is to be waited for.
    """
    known = {*built_days(out_dir), *list_days(logs_dir)}
    left = (next_day(day) for day in built_days(out_dir) if (build := read_build(out_dir, day)) and build.carried)
    return [day for day in left if day < until and day not in known]


def _counts(engine: Engine, table: ir.Table, by: Sequence[str]) -> dict[tuple, int]:
    counts = table.group_by(list(by)).agg(n=table.count())
    found: dict[tuple, int] = {}
    for batch in engine.batches(counts):
        for row in batch.to_pylist():
            found[tuple(row[c] for c in by)] = row["n"]
    return found


def _one(engine: Engine, table: ir.Table) -> int:
    return next(int(batch.column(0)[0].as_py()) for batch in engine.batches(table) if len(batch))


def _total_shown(engine: Engine, outcomes: ir.Table) -> int:
    return _one(engine, outcomes.agg(n=outcomes.n_shown.sum().fill_null(0)))


def _between(engine: Engine, table: ir.Table, part: ir.Table) -> ir.Table:
    """The rows of `table` in the range of request_ids that `part` of the steps names.

    A join would find the same rows; but logs are in the order of time, as ids are, so most row groups need not be read.
    """
    ends = part.agg(low=part.request_id.min(), high=part.request_id.max(), next=part.next_request_id.max())
    found = next(row for batch in engine.batches(ends) for row in batch.to_pylist())
    low, high = found["low"] or "", max(found["high"] or "", found["next"] or "")
    return table.filter((table.request_id >= low) & (table.request_id <= high))


def _slices(session_ids: list[str], sizes: np.ndarray) -> list[tuple[str, str | None]]:
    """Ranges [first, after) of sorted session ids with about SLICE_ROWS rows each; whole sessions."""
    if not session_ids:
        return []
    before = np.cumsum(sizes) - sizes
    cuts = np.flatnonzero(np.diff(before // SLICE_ROWS, prepend=-1))
    firsts = [session_ids[i] for i in cuts]
    return list(zip(firsts, [*firsts[1:], None], strict=True))


def _write(path: Path, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> int:
    """Write the batches in row groups of GROUP_ROWS, whatever the sizes in which they come; returns the rows."""
    strings = [f.name for f in schema if pa.types.is_string(f.type)]
    waiting: list[pa.RecordBatch] = []
    rows = held = 0
    with (
        pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=strings) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        # one thread encodes and compresses while the engine goes on; a few groups may wait for it
        writing: deque[Future[None]] = deque()

        def write(table: pa.Table) -> None:
            if len(writing) == GROUPS_WAITING:
                writing.popleft().result()
            writing.append(thread.submit(lambda: writer.write_table(_cast(table, schema), row_group_size=GROUP_ROWS)))

        for batch in batches:
            waiting.append(batch)
            held += len(batch)
            rows += len(batch)
            while held >= GROUP_ROWS:
                table = pa.Table.from_batches(waiting)
                write(table.slice(0, GROUP_ROWS))
                waiting, held = table.slice(GROUP_ROWS).to_batches(), held - GROUP_ROWS
        if held:
            write(pa.Table.from_batches(waiting))
        for group in writing:
            group.result()
    return rows


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    # one chunk a column: the pages that are written must not depend on how the batches were cut
    return table.select(schema.names).cast(schema).combine_chunks()


def _check_file(path: Path, schema: pa.Schema) -> None:
    try:
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"{path}: no readable Parquet file: {error}; restore it, or seal the day again") from error
    for field in schema:
        if field.name not in found.names:
            raise InputError(f"{path}: column `{field.name}` is missing; it holds {', '.join(found.names)}")
        kind = found.field(field.name).type
        if kind != field.type:
            raise InputError(f"{path}: column `{field.name}` is {kind}, needs {field.type}; write it by the contract")


def _code() -> str:
    """Hash of the sources that decide the result."""
    here = Path(__file__).parent
    others = [
        here.parent / "contracts" / "schemas.py",
        here.parent / "quality" / "flatten.py",
        here.parent / "quality" / "rules.py",
    ]
    sources = [here / "expression.py", here / "engines.py", here / "clean.py", Path(__file__), *others]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()


@contextlib.contextmanager
def _alone(out_dir: Path, spec: FusionSpec) -> Iterator[None]:
    """Hold OUT's lock; OUT/spec.json is written, or must agree."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with (out_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = out_dir / "spec.json"
        if not path.exists():
            spec.write(path)
        elif (known := FusionSpec.read(path)).version != spec.version:
            raise InputError(f"spec_version = {spec.version}: {path} is {known.version}; build another spec's logs elsewhere")
        yield


def _day_before(dt: str) -> str:
    return str(datetime.date.fromisoformat(dt) - datetime.timedelta(days=1))
