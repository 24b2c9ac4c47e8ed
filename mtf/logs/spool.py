"""The spool: where rows are durable before a server acknowledges them, and where readers find them a moment later.

One SQLite file a server process (WAL, synchronous=FULL), so that writers never wait for each other; a server on more
cores is more processes, each with its file. A payload is an Arrow IPC stream of the rows of one kind and one day, so
that sealing a day reads that day only. Appends that wait while a commit runs share the next one (group commit without a
timer): alone an append costs one fsync, under load many share it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from mtf.contracts import ids
from mtf.errors import ConflictError, IntegrityError, MtfError

Kind = Literal["requests", "feedback"]
OnCommit = Callable[[float, int], None]
_Row = tuple[str, str, int, int, int, pa.Buffer]  # kind, dt, n, min_ts, max_ts, payload

BUSY_S = 60.0
COMPRESS_FROM_ROWS = 64
_SCHEMA = """
create table if not exists spool (id text not null, watermark integer not null);
create table if not exists batch (
    id integer primary key autoincrement, kind text not null, dt text not null,
    n integer not null, min_ts integer not null, max_ts integer not null, payload blob not null);
create index if not exists batch_by_day on batch (dt, id);
"""


@dataclass(frozen=True)
class Batch:
    """A stored batch: `id` grows in the order of commits within its file."""

    id: int
    kind: Kind
    rows: pa.Table


@dataclass(frozen=True)
class _Append:
    """What one append brings to the next commit; `mark` advances the watermark."""

    batches: list[_Row]
    mark: int
    done: Future[None]


class Spool:
    """The writing end of one file; thread-safe. Only one process may hold a file.

    on_commit(seconds, appends): called after each commit from the writer's thread, for metrics.
    events_move_clock: do requests advance the watermark? Not where the clock is simulated: callers then play users in any
    order of event time, and only their clock marks say what has passed.
    Raises ConflictError where another process holds the file.
    """

    def __init__(self, path: Path, *, on_commit: OnCommit | None = None, events_move_clock: bool = True) -> None:
        self.path = Path(path)
        self._events_move_clock = events_move_clock
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise ConflictError(f"spool: {self.path} is held by another server; give each process its own file") from None
        self._on_commit = on_commit
        self._queue: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._failed: str | None = None
        self._closed = False
        self._closing = threading.Lock()
        ready: Future[None] = Future()
        self._writer = threading.Thread(target=self._write, args=(ready,), name="spool", daemon=True)
        self._writer.start()
        try:
            ready.result()
        except sqlite3.Error as error:
            self._unlock()
            raise MtfError(f"spool: {self.path}: {error}; free the disk or move the damaged file away") from error

    def append(self, requests: pa.Table | None = None, feedback: pa.Table | None = None) -> None:
        """Store rows; they are on disk when this returns. See `submit`."""
        self.submit(requests, feedback).result()

    def submit(self, requests: pa.Table | None = None, feedback: pa.Table | None = None) -> Future[None]:
        """Queue rows for the next commit; the future ends when they are on disk, or with the error that kept them off it.

        requests go to the day of their `ts`, feedback to the day of its request (its id is a UUIDv7 in event time).
        Submissions become visible to readers in the order of these calls. Raises InputError on an id of another form.
        """
        batches = []
        mark = 0
        if requests is not None and requests.num_rows:
            ts = requests.column("ts").cast(pa.int64()).to_numpy()
            batches += _encode("requests", requests, ts // 86_400_000_000, ts)
            mark = int(ts.max()) if self._events_move_clock else 0
        if feedback is not None and feedback.num_rows:
            day = ids.milliseconds(feedback.column("request_id")) // 86_400_000
            batches += _encode("feedback", feedback, day, feedback.column("ts").cast(pa.int64()).to_numpy())
        return self._submit(batches, mark)

    def mark(self, ts_us: int) -> None:
        """Say that the event clock has reached `ts_us`, also where no request says so (the end of a simulated day)."""
        self._submit([], ts_us).result()

    @property
    def waiting(self) -> int:
        """Appends that no commit has taken up yet."""
        return self._queue.qsize()

    @property
    def error(self) -> str | None:
        """Why the last commit kept nothing, or that nothing commits any more; None where appends are kept."""
        return self._failed if self._writer.is_alive() else "its writer has ended"

    def close(self) -> None:
        """Commit what waits, then let go of the file."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._writer.join()
        self._unlock()

    def _submit(self, batches: list[_Row], mark: int) -> Future[None]:
        done: Future[None] = Future()
        with self._closing:
            if self._closed:
                raise MtfError("spool: closed, the server is stopping; send the rows again to another one")
            if not self._writer.is_alive():  # nobody would ever answer
                raise MtfError(f"spool: {self.path}: its writer has ended; restart the server and send the rows again")
            self._queue.put(_Append(batches, mark, done))
        return done

    def _unlock(self) -> None:
        os.close(self._lock_file)

    def _write(self, ready: Future[None]) -> None:
        try:
            connection = _open_writer(self.path)
        except sqlite3.Error as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        stopping = False
        while not stopping:
            taken = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    taken.append(self._queue.get_nowait())
            appends = [a for a in taken if a is not None]
            stopping = len(appends) < len(taken)
            if appends:
                self._commit(connection, appends)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, appends: list[_Append]) -> None:
        began = time.perf_counter()
        try:
            connection.execute("begin immediate")
            connection.executemany(
                "insert into batch (kind, dt, n, min_ts, max_ts, payload) values (?, ?, ?, ?, ?, ?)",
                [batch for a in appends for batch in a.batches],
            )
            connection.execute("update spool set watermark = max(watermark, ?)", [max(a.mark for a in appends)])
            connection.execute("commit")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("rollback")
            self._failed = str(error)
            for a in _awaited(appends):
                a.done.set_exception(MtfError(f"spool: {self.path}: {error}; nothing of this append was kept, send it again"))
            return
        self._failed = None
        if self._on_commit is not None:
            self._on_commit(time.perf_counter() - began, len(appends))
        for a in _awaited(appends):
            a.done.set_result(None)


def _awaited(appends: list[_Append]) -> list[_Append]:
    """Those whose caller has not given up waiting; a result for the others would be an error."""
    return [a for a in appends if a.done.set_running_or_notify_cancel()]


def open_spool(spool_dir: Path, *, on_commit: OnCommit | None = None, events_move_clock: bool = True) -> Spool:
    """The first file of `spool_dir` that no process holds (`worker-00.sqlite`, ...): a restarted server goes on with its own."""
    for number in range(100):
        try:
            path = Path(spool_dir) / f"worker-{number:02d}.sqlite"
            return Spool(path, on_commit=on_commit, events_move_clock=events_move_clock)
        except ConflictError:
            continue
    raise ConflictError(f"spool: all 100 files of {spool_dir} are held by running servers; stop some")


class SpoolReader:
    """The reading end of all files of a folder: only committed rows, while the writers live, after they died, or before."""

    def __init__(self, spool_dir: Path) -> None:
        self.spool_dir = Path(spool_dir)

    def poll(self, cursor: dict[str, int]) -> tuple[list[pa.Table], list[pa.Table], dict[str, int]]:
        """Requests and feedback committed since `cursor` ({} = from the start), and the cursor to go on from."""
        cursor = dict(cursor)
        rows: dict[Kind, list[pa.Table]] = {"requests": [], "feedback": []}
        for spool_id, batch in self.batches(cursor):
            rows[batch.kind].append(batch.rows)
            cursor[spool_id] = batch.id
        return rows["requests"], rows["feedback"], cursor

    def batches(self, cursor: dict[str, int], dt: str | None = None) -> Iterator[tuple[str, Batch]]:
        """(spool id, batch) committed since `cursor`, of the day `dt` only where given. Raises IntegrityError."""
        where, values = ("and dt = ?", [dt]) if dt is not None else ("", [])
        for path, connection in self._connections():
            spool_id = str(_id(connection, path))
            found = connection.execute(
                f"select id, kind, payload from batch where id > ? {where} order by id", [cursor.get(spool_id, 0), *values]
            )
            try:
                for number, kind, payload in found:
                    yield spool_id, Batch(number, kind, _decode(payload, f"{path}, batch {number}"))
            except sqlite3.DatabaseError as error:
                raise IntegrityError(f"spool: {path} is damaged: {error}; recover it with sqlite3's `.recover`") from error

    def watermark(self) -> int:
        """Latest event time (microseconds) that a request or a clock mark of any file has reached; 0 where there is none."""
        return max((c.execute("select watermark from spool").fetchone()[0] for _, c in self._connections()), default=0)

    def days(self) -> dict[str, int]:
        """Days that have rows here: {dt: rows}."""
        counts: dict[str, int] = {}
        for _, connection in self._connections():
            for dt, n in connection.execute("select dt, sum(n) from batch group by dt"):
                counts[dt] = counts.get(dt, 0) + n
        return dict(sorted(counts.items()))

    def _connections(self) -> Iterator[tuple[Path, sqlite3.Connection]]:
        for path in sorted(self.spool_dir.glob("*.sqlite")):
            with _reading(path) as connection:
                if _id(connection, path) is not None:
                    yield path, connection


def read_id(path: Path) -> str | None:
    """The id that a file got when it was made; None where it is still being made."""
    with _reading(path) as connection:
        return _id(connection, path)


def delete_batches(path: Path, dt: str, through: int) -> int:
    """Delete a day's batches up to the id `through` from a file, a few at a time so that its server never waits long."""
    deleted = 0
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as connection:
        while True:
            found = connection.execute(
                "delete from batch where id in (select id from batch where dt = ? and id <= ? order by id limit 50)",
                [dt, through],
            ).rowcount
            deleted += found
            if found == 0:
                return deleted


def _open_writer(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    connection.execute("pragma page_size = 16384")
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("pragma wal_autocheckpoint = 2000")
    connection.execute("begin immediate")
    for statement in _SCHEMA.strip().split(";\n"):
        connection.execute(statement)
    connection.execute("insert into spool select ?, 0 where not exists (select 1 from spool)", [uuid.uuid4().hex])
    connection.execute("commit")
    return connection


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        yield connection
    finally:
        connection.close()


def _id(connection: sqlite3.Connection, path: Path) -> str | None:
    try:
        made = connection.execute("select count(*) from sqlite_master where name = 'spool'").fetchone()[0]
        found = connection.execute("select id from spool").fetchone() if made else None
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"spool: {path} cannot be read: {error}; recover it with sqlite3's `.recover`") from error
    return None if found is None else str(found[0])


def _encode(kind: Kind, rows: pa.Table, day: np.ndarray, ts: np.ndarray) -> list[_Row]:
    parts: list[_Row] = []
    for number in np.unique(day):
        mine = day == number
        part = rows if mine.all() else rows.filter(pa.array(mine))
        sink = pa.BufferOutputStream()
        # lz4 takes a third off a batch of 512 for 1.5 ms; on a few rows it only costs. One thread: a pool is slower here
        compression = "lz4" if part.num_rows >= COMPRESS_FROM_ROWS else None
        with pa.ipc.new_stream(
            sink, part.schema, options=pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
        ) as stream:
            stream.write_table(part)
        stamps = ts[mine]
        dt = str(np.datetime64(int(number), "D"))
        parts.append((kind, dt, part.num_rows, int(stamps.min()), int(stamps.max()), sink.getvalue()))
    return parts


def _decode(payload: bytes, where: str) -> pa.Table:
    try:
        return pa.ipc.open_stream(payload).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"spool: {where} is damaged: {error}") from error
