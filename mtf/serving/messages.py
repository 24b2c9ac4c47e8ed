"""What callers send and get: JSON structs and Arrow batches, checked here and nowhere else.

Every refusal is an InputError that names the field, the value and the way out; the server answers it with status 400.
`simulated` says that the caller keeps the clock: then every row needs its `ts`, else none may have one.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa

from mtf.contracts import check_table, feedback_schema, ids
from mtf.errors import InputError
from mtf.serving.engine import Decisions, RankBatch
from mtf.spec import FusionSpec

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Time = Annotated[datetime.datetime, msgspec.Meta(tz=True)]

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_YEAR_10000_US = 253_402_300_800_000_000
_TS = pa.timestamp("us", tz="UTC")


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item and its score for each objective of the spec."""

    id: Int64
    scores: dict[str, float]


class RankRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request. features: caller and history features by name; one that is absent or null takes its default."""

    user_id: Name
    items: list[Candidate]
    features: dict[str, float | None] = {}
    ts: Time | None = None


class RankAnswer(msgspec.Struct, frozen=True):
    """items: the ids to show, best first. fallback: null, or why the policy's inputs had to be replaced."""

    request_id: str
    arm: str
    policy_version: str
    policy_sha: str
    items: list[int]
    fallback: str | None


class Impression(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user did with a shown item. behaviours: 0 or 1 by name; those not named are 0."""

    request_id: str
    item_id: Int64
    position: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    watch_s: float
    duration_s: float | None = None
    behaviours: dict[str, Annotated[int, msgspec.Meta(ge=0, le=1)]] = {}
    ts: Time | None = None


class Accepted(msgspec.Struct, frozen=True):
    """Rows that are durable."""

    accepted: int


class ClockMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The event clock has reached `ts`."""

    ts: Time


def rank_batch(spec: FusionSpec, request: RankRequest, *, simulated: bool, now_us: int) -> RankBatch:
    """A JSON request as a batch of one."""
    given_names = [f.name for f in spec.given_features]
    for name in request.features:
        if name not in given_names:
            raise InputError(f"features.{name}: not a feature that a caller sends; use {', '.join(given_names) or 'none'}")
    given = np.array([[_number(request.features.get(name)) for name in given_names]], np.float32)
    if len(request.items) < spec.n_shown:
        raise InputError(f"items: {len(request.items)} candidates; send at least the {spec.n_shown} that are shown")
    scores = np.empty((1, len(request.items), spec.n_objectives), np.float32)
    for i, item in enumerate(request.items):
        if item.scores.keys() != set(spec.objectives):
            raise InputError(f"items[{i}].scores: has {', '.join(item.scores) or 'none'}; send {', '.join(spec.objectives)}")
        scores[0, i] = [item.scores[name] for name in spec.objectives]
    item_ids = np.array([[item.id for item in request.items]], np.int64)
    ts = np.array([_event_time(request.ts, simulated, now_us)], np.int64)
    return RankBatch([request.user_id], ts, given, item_ids, scores)


def rank_batch_arrow(spec: FusionSpec, body: bytes, *, simulated: bool, now_us: int) -> RankBatch:
    """An Arrow IPC stream as a batch; the arrays are views of `body`.

    Columns: user_id string; ts timestamp[us, UTC] (simulated only); given fixed_size_list<float32>[F];
    item_ids fixed_size_list<int64>[C]; scores fixed_size_list<float32>[C * K], item-major; optional n_candidates int32.
    """
    table = _read(body)
    known = {"user_id", "ts", "given", "item_ids", "scores", "n_candidates"}
    _only(table, known)
    if table.num_rows == 0:
        raise InputError("batch: 0 rows; send at least one request")
    item_ids = _matrix(table, "item_ids", pa.int64())
    n, c = item_ids.shape
    if c < spec.n_shown:
        raise InputError(f"item_ids: {c} candidates a row; send at least the {spec.n_shown} that are shown")
    scores = _matrix(table, "scores", pa.float32(), c * spec.n_objectives).reshape(n, c, spec.n_objectives)
    given = _matrix(table, "given", pa.float32(), len(spec.given_features))
    users = _column(table, "user_id", pa.string()).to_pylist()
    if "" in users:
        raise InputError(f"user_id: row {users.index('')} is empty; send a stable id")
    counts = None
    if "n_candidates" in table.column_names:
        counts = _column(table, "n_candidates", pa.int32()).to_numpy()
        if (wrong := np.flatnonzero((counts < spec.n_shown) | (counts > c))).size:
            raise InputError(f"n_candidates: row {wrong[0]} is {counts[wrong[0]]}; keep it in [{spec.n_shown}, {c}]")
    return RankBatch(users, _event_times(table, simulated, now_us), given, item_ids, scores, counts)


def rank_answer(decisions: Decisions) -> RankAnswer:
    """The JSON answer to a batch of one."""
    names = ("request_id", "arm", "policy_version", "policy_sha", "item_ids", "fallback")
    return RankAnswer(*(decisions.rows.column(name)[0].as_py() for name in names))


def rank_answer_arrow(decisions: Decisions) -> bytes:
    """request_id string, shown fixed_size_list<int32>[n_shown]: indices into each request's candidates."""
    shown = decisions.shown.astype(np.int32)
    columns = [pa.array(decisions.request_ids), pa.FixedSizeListArray.from_arrays(shown.reshape(-1), shown.shape[1])]
    return _write(pa.table(columns, names=["request_id", "shown"]))


def feedback_table(spec: FusionSpec, events: Sequence[Impression], *, simulated: bool, now_us: int) -> pa.Table:
    """JSON events as rows of the contract, received now, a microsecond apart: of an item that comes twice the last one counts."""
    flags = [b for b in spec.behaviours if b != "watch"]
    for i, event in enumerate(events):
        for name in event.behaviours:
            if name not in flags:
                raise InputError(f"[{i}].behaviours.{name}: not a behaviour of this surface; use {', '.join(flags)}")
    times = [_event_time(event.ts, simulated, now_us) for event in events]
    columns: dict[str, Any] = {
        "request_id": [e.request_id for e in events],
        "item_id": [e.item_id for e in events],
        "position": [e.position for e in events],
        "ts": times,
        "received_at": list(range(now_us, now_us + len(events))),
        "watch_s": [e.watch_s for e in events],
        "duration_s": [e.duration_s for e in events],
        **{name: [e.behaviours.get(name, 0) for e in events] for name in flags},
    }
    schema = feedback_schema(spec.behaviours)
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    ids.milliseconds(table.column("request_id"))
    return table


def feedback_table_arrow(spec: FusionSpec, body: bytes, *, simulated: bool, now_us: int) -> pa.Table:
    """An Arrow IPC stream as rows of the contract, received now, a microsecond apart (see `feedback_table`).

    It holds neither `received_at` nor, unless simulated, `ts`.
    """
    table = _read(body)
    schema = feedback_schema(spec.behaviours)
    _only(table, set(schema.names) - {"received_at"})
    if "ts" in table.column_names:
        _column(table, "ts", _TS)
    times = pa.array(_event_times(table, simulated, now_us)).cast(_TS)
    received = pa.array(now_us + np.arange(table.num_rows)).cast(_TS)
    for name, column in (("ts", times), ("received_at", received)):
        table = table.drop_columns(name) if name in table.column_names else table
        table = table.append_column(name, column)
    table = check_table(table, schema, "feedback")
    ids.milliseconds(table.column("request_id"))
    return table


def microseconds(time: datetime.datetime) -> int:
    """An aware datetime as microseconds since 1970. Raises InputError before 1970."""
    us = (time - _EPOCH) // datetime.timedelta(microseconds=1)
    if us < 0:
        raise InputError(f"ts = {time.isoformat()}: before 1970; send the event's time")
    return us


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _event_time(ts: datetime.datetime | None, simulated: bool, now_us: int) -> int:
    _clock_rule(ts is not None, simulated)
    return now_us if ts is None else microseconds(ts)


def _event_times(table: pa.Table, simulated: bool, now_us: int) -> np.ndarray:
    _clock_rule("ts" in table.column_names, simulated)
    if not simulated:
        return np.full(table.num_rows, now_us, np.int64)
    ts = _column(table, "ts", _TS).cast(pa.int64()).to_numpy()
    if (wrong := np.flatnonzero((ts < 0) | (ts >= _YEAR_10000_US))).size:
        raise InputError(f"ts: row {wrong[0]} is {ts[wrong[0]]} us since 1970; keep it between the years 1970 and 9999")
    return ts


def _clock_rule(sent: bool, simulated: bool) -> None:
    if sent and not simulated:
        raise InputError("ts: this server keeps its own clock; leave ts out, or start the server with MTF_CLOCK=simulated")
    if simulated and not sent:
        raise InputError("ts: missing; this server runs with MTF_CLOCK=simulated, so each row has to bring its time")


def _read(body: bytes) -> pa.Table:
    try:
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(f"body: not an Arrow IPC stream ({error}); write it with pyarrow.ipc.new_stream") from None
    return table.combine_chunks()


def _write(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _only(table: pa.Table, known: set[str]) -> None:
    for name in table.column_names:
        if name not in known:
            raise InputError(f"column `{name}` is not known here; send {', '.join(sorted(known))}")


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    if table.column_names.count(name) != 1:
        raise InputError(f"column `{name}` is missing; the batch holds {', '.join(table.column_names) or 'none'}")
    column = table.column(name)
    if column.type != kind:
        raise InputError(f"column `{name}` is {column.type}; send {kind}")
    if column.null_count:
        raise InputError(f"column `{name}` holds {column.null_count} nulls; send a value in every row")
    return column.combine_chunks()


def _matrix(table: pa.Table, name: str, kind: pa.DataType, width: int | None = None) -> np.ndarray:
    """A fixed-size list column as [n, width]; `width` None takes the column's own."""
    found = table.schema.field(name).type if table.column_names.count(name) == 1 else None
    if width is None and found is not None and pa.types.is_fixed_size_list(found):
        width = found.list_size
    wanted = pa.list_(kind, width) if width is not None else pa.list_(kind)
    values = _column(table, name, wanted).flatten()
    if values.null_count:
        raise InputError(f"column `{name}` holds {values.null_count} nulls inside its lists; send NaN where a number is unknown")
    return values.to_numpy().reshape(table.num_rows, width)
