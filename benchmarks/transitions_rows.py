"""Random sealed days in the shape of real ones, of any size: sessions of about 14 requests, one in ten thousand of them cut
by a change of arm, one request in a hundred never shown, one impression in a hundred reported twice.

Days are written directly, a segment at a time, so that a large one fits in memory.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtf.contracts import SCHEMA_VERSION, feedback_schema, requests_schema
from mtf.fileio import folder_atomic, sha256_file
from mtf.logs.days import SEGMENT_ROWS, Kind, Manifest, Segment, day_bounds, to_datetime
from mtf.spec import Feature, FusionSpec, RewardHead

CANDIDATES = 40
PAUSE_US = 40_000_000
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)

FULL = FusionSpec(
    objectives=("click", "valid", "watch", "like", "interact"),
    power_low=(0.0,) * 5,
    power_high=(2.0,) * 5,
    bias_low=(0.01,) * 5,
    bias_high=(1.0,) * 5,
    start=(0.0,) * 10,
    behaviours=("watch", "click", "valid", "like", "interact"),
    reward_heads=(
        RewardHead(name="consumption", weights={"valid": 0.5, "watch": 0.008}),
        RewardHead(name="interaction", weights={"like": 8.0, "interact": 5.0}),
    ),
    features=tuple(Feature(name=f"f{i}", source="caller") for i in range(20)),
)
NARROW = FusionSpec(
    objectives=("watch",),
    power_low=(0.0,),
    power_high=(2.0,),
    bias_low=(0.01,),
    bias_high=(1.0,),
    start=(0.0,) * 2,
    n_shown=1,
    behaviours=("watch", "valid"),
    reward_heads=(RewardHead(name="consumption", weights={"valid": 0.5, "watch": 0.008}),),
    features=tuple(Feature(name=f"f{i}", source="caller") for i in range(2)),
)
SPECS = {"full": FULL, "narrow": NARROW}


def write_random_day(logs_dir: Path, dt: str, n_requests: int, spec: FusionSpec, *, logged: float, seed: int) -> int:
    """Seal a random day of about `n_requests` requests; returns how many. logged: the share that logs its candidates."""
    rng = np.random.default_rng([seed, *dt.encode()])
    if not (logs_dir / "spec.json").exists():
        spec.write(logs_dir / "spec.json")
    ts, user, exploring = _sessions(rng, dt, n_requests)
    ids = _ids(rng, ts)
    segments: list[Segment] = []
    with folder_atomic(logs_dir / f"dt={dt}" / "r1") as folder:
        for number, start in enumerate(range(0, len(ts), SEGMENT_ROWS)):
            part = slice(start, start + SEGMENT_ROWS)
            items = rng.integers(1, 1 << 40, (len(ts[part]), CANDIDATES))
            requests = _requests(spec, rng, ids[part], ts[part], user[part], exploring[part], items, logged)
            segments.append(_write(folder, "requests", number, requests))
            feedback = _feedback(spec, rng, ids[part], ts[part], items[:, : spec.n_shown])
            segments.append(_write(folder, "feedback", number, feedback))
        manifest = Manifest(
            surface=spec.surface,
            dt=dt,
            revision=1,
            segments=tuple(sorted(segments, key=lambda s: s.path)),
            watermark=to_datetime(day_bounds(dt)[1]),
            late_rows=0,
            sealed_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            spec_version=spec.version,
        )
        (folder / "manifest.json").write_bytes(manifest_json(manifest))
    return len(ts)


def manifest_json(manifest: Manifest) -> bytes:
    """The manifest as its file holds it."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _sessions(rng: np.random.Generator, dt: str, n_requests: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ts int64, user int64, exploring bool, [n] each, by ts. Two sessions a user."""
    start, end = day_bounds(dt)
    lengths = rng.geometric(1 / 14, max(n_requests // 14, 1))
    session = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    pause = rng.exponential(PAUSE_US, len(session)).astype(np.int64)
    pause[first] = 0
    elapsed = np.cumsum(pause)
    ts = rng.integers(start, end, len(lengths))[session] + elapsed - elapsed[first][session]
    explores = (session % 10 > 0) ^ (rng.random(len(session)) < 1e-4)
    order = np.argsort(ts, kind="stable")
    order = order[ts[order] < end]
    return ts[order], session[order] // 2, explores[order]


def _ids(rng: np.random.Generator, ts: np.ndarray) -> np.ndarray:
    """UUIDv7 of sorted times, sorted, as bytes S36 [n]."""
    raw = rng.integers(0, 256, (len(ts), 16), dtype=np.uint8)
    raw[:, :6] = (ts // 1000).astype(">u8").view(np.uint8).reshape(-1, 8)[:, 2:]
    raw[:, 6] = raw[:, 6] & 0x0F | 0x70
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    text = np.full((len(ts), 36), ord("-"), np.uint8)
    places = [i for i in range(36) if i not in (8, 13, 18, 23)]
    text[:, places] = np.stack([HEX[raw >> 4], HEX[raw & 15]], axis=-1).reshape(-1, 32)
    return np.sort(text.view("S36")[:, 0])


def _requests(
    spec: FusionSpec,
    rng: np.random.Generator,
    ids: np.ndarray,
    ts: np.ndarray,
    user: np.ndarray,
    exploring: np.ndarray,
    items: np.ndarray,
    logged: float,
) -> pa.Table:
    n, k, shown, actions = len(ids), spec.n_objectives, spec.n_shown, spec.action_width
    half = np.where(exploring[:, None], np.float32(0.2), np.float32(0)).repeat(actions, 1)
    center = np.zeros((n, actions), np.float32)
    logs = rng.random(n) < logged
    candidates = rng.random((int(logs.sum()), items.shape[1] * k), dtype=np.float32).astype("<f2")
    scores = rng.random((n, shown * k), dtype=np.float32)
    times = pa.array(ts, pa.timestamp("us", tz="UTC"))

    def same(value: object, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), n)

    def either(yes: str, no: str | None) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array((~exploring).astype(np.int8)), pa.array([yes, no])).cast(pa.string())

    columns = {
        "request_id": _text(ids),
        "surface": same(spec.surface, pa.string()),
        "user_id": _text(np.char.add(b"u", np.char.zfill(user.astype("S9"), 9))),
        "ts": times,
        "received_at": times,
        "state": _lists(rng.standard_normal((n, spec.state_width), dtype=np.float32)),
        "action": _lists(center + half * rng.uniform(-1, 1, (n, actions)).astype(np.float32)),
        "center": _lists(center),
        "lower": _lists(-half),
        "upper": _lists(half),
        "log_propensity": pa.array(np.full(n, -actions * np.log(0.4)), mask=~exploring),
        "exploring": pa.array(exploring),
        "policy_sha": same("0" * 64, pa.string()),
        "policy_version": same("1", pa.string()),
        "exploration_sha": either("1" * 64, None),
        "arm": either("explore", "champion"),
        "rollout_id": same(None, pa.string()),
        "bucket": same(0, pa.int32()),
        "generation": same(1, pa.int64()),
        "latency_us": same(300, pa.int32()),
        "item_ids": _lists(items[:, :shown]),
        "scores": _lists(scores),
        "n_candidates": same(items.shape[1], pa.int32()),
        "cand_item_ids": _some(logs, _lists(items[logs])),
        "cand_scores": _some(logs, _blobs(candidates)),
        "fallback": same(None, pa.string()),
        "spec_version": same(spec.version, pa.string()),
        "schema_version": same(SCHEMA_VERSION, pa.int32()),
    }
    schema = requests_schema()
    return pa.table([columns[f.name] for f in schema], schema=schema)


def _feedback(spec: FusionSpec, rng: np.random.Generator, ids: np.ndarray, ts: np.ndarray, items: np.ndarray) -> pa.Table:
    seen = np.flatnonzero(rng.random(len(ids)) > 0.01)
    times = 1 + (rng.random((len(seen), spec.n_shown)) < 0.01)  # a copy follows its original, with a later received_at
    place = np.repeat(np.arange(times.size), times.reshape(-1))
    copy = np.diff(place, prepend=-1) == 0
    row, position = seen[place // spec.n_shown], place % spec.n_shown
    m = len(row)
    when = ts[row] + 1_000_000 * (position + 1)
    received = when + rng.integers(0, 1_000_000, m) + 1_000_000 * copy
    columns = {
        "request_id": _text(ids[row]),
        "item_id": pa.array(items[row, position]),
        "position": pa.array(position, pa.int32()),
        "ts": pa.array(when, pa.timestamp("us", tz="UTC")),
        "received_at": pa.array(received, pa.timestamp("us", tz="UTC")),
        "watch_s": pa.array(rng.exponential(10, m).astype(np.float32)),
        "duration_s": pa.array(rng.uniform(5, 60, m).astype(np.float32)),
    }
    for behaviour in spec.behaviours:
        if behaviour != "watch":
            columns[behaviour] = pa.array((rng.random(m) < 0.2).astype(np.int8))
    schema = feedback_schema(spec.behaviours)
    return pa.table([columns[f.name] for f in schema], schema=schema)


def _write(folder: Path, kind: Kind, number: int, table: pa.Table) -> Segment:
    path = folder / f"{kind}-{number:03d}.parquet"
    pq.write_table(table, path, compression="zstd", row_group_size=100_000)
    return Segment(kind=kind, path=path.name, sha256=sha256_file(path), rows=table.num_rows)


def _text(values: np.ndarray) -> pa.Array:
    """Fixed-width bytes S<w> as strings."""
    width = values.dtype.itemsize
    offsets = pa.py_buffer(np.arange(len(values) + 1, dtype=np.int32) * width)
    return pa.StringArray.from_buffers(len(values), offsets, pa.py_buffer(np.ascontiguousarray(values)))


def _lists(matrix: np.ndarray) -> pa.Array:
    kind = pa.float32() if matrix.dtype.kind == "f" else pa.int64()
    offsets = pa.array(np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1])
    values = pa.array(np.ascontiguousarray(matrix).reshape(-1), kind)
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(pa.field("item", kind)))


def _blobs(matrix: np.ndarray) -> pa.Array:
    width = matrix.shape[1] * matrix.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(matrix), [None, pa.py_buffer(matrix)]).cast(pa.binary())


def _some(where: np.ndarray, values: pa.Array) -> pa.Array:
    """`values` in the rows `where`, null elsewhere."""
    return values.take(pa.array(np.cumsum(where) - 1, mask=~where))
