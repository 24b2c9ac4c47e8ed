"""Spark makes the same transitions as DuckDB, to the byte, and the same accounts of what it left out."""

from __future__ import annotations

import datetime
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from mtf.contracts import feedback_schema, requests_schema
from mtf.contracts.ids import uuid7
from mtf.logs.days import day_bounds, write_day
from mtf.transitions.build import Build, build_day
from tests.quality.rows import EXPECTATIONS, SPEC, day, put

pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed: infra/setup.sh dev,spark"),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17 or later on the PATH"),
]
DT, NEXT = "2026-01-01", "2026-01-02"


def late_in_the_day(requests: pa.Table, feedback: pa.Table, users: int) -> tuple[pa.Table, pa.Table]:
    """The rows with the sessions of the first users moved to 23:40, so that they are still open at midnight."""
    ts = requests["ts"].cast(pa.int64()).to_numpy().copy()
    moved = np.isin(requests["user_id"].to_pylist(), [f"u{i}" for i in range(users)])
    ts[moved] = day_bounds(DT)[1] - 1_200_000_000 + (ts[moved] % 60_000_000) + np.arange(moved.sum()) * 1000
    ids = uuid7(ts, np.random.default_rng(5))
    new = dict(zip(requests["request_id"].to_pylist(), ids, strict=True))
    schema = requests_schema()
    for name, values in {"request_id": pa.array(ids), "ts": pa.array(ts).cast(schema.field("ts").type)}.items():
        requests = requests.set_column(schema.get_field_index(name), schema.field(name), values)
    answered = pa.array([new[i] for i in feedback["request_id"].to_pylist()])
    return requests, feedback.set_column(0, feedback.schema.field(0), answered)


def later(rows: pa.Table, seconds: int, watch_s: float) -> pa.Table:
    """The feedback rows as they come once more: later, and with another watch time."""
    schema = feedback_schema(SPEC.behaviours)
    received = [at + datetime.timedelta(seconds=seconds) for at in rows["received_at"].to_pylist()]
    changed = {"received_at": pa.array(received, schema.field("received_at").type)}
    changed["watch_s"] = pa.array(np.full(len(rows), watch_s, np.float32))
    for name, values in changed.items():
        rows = rows.set_column(schema.get_field_index(name), schema.field(name), values)
    return rows


def accounts(build: Build) -> dict[str, Any]:
    return {k: v for k, v in msgspec.to_builtins(build).items() if k not in ("engine", "key")}


def test_spark_and_duckdb_agree_on_a_day_with_everything_in_it(tmp_path: Path) -> None:
    requests, feedback = late_in_the_day(*day(users=24), users=4)
    requests = put(requests, "action", 40, [9.0] * SPEC.action_width)  # broken: outside the space and its box
    requests = pa.concat_tables([requests, requests.slice(50, 1)])  # a copy
    feedback = pa.concat_tables([feedback.slice(30), later(feedback.slice(100, 40), 60, 33.0)])  # ten are never shown
    feedback = put(feedback, "watch_s", 200, -1.0)  # broken
    write_day(tmp_path / "logs", DT, requests, feedback, SPEC)
    write_day(tmp_path / "logs", NEXT, *day(users=6, seed=2, dt=NEXT), SPEC)
    # late rows: the day's second revision is what is built
    feedback = pa.concat_tables([feedback, later(feedback.slice(120, 5), 600, 5.0)])
    assert write_day(tmp_path / "logs", DT, requests, feedback, SPEC).late_rows == 5

    built = {}
    for engine in ("duckdb", "spark"):
        out = tmp_path / engine
        days = [
            build_day(tmp_path / "logs", dt, out, spec=SPEC, expectations_dir=EXPECTATIONS, engine=engine) for dt in (DT, NEXT)
        ]
        files = [out / f"dt={DT}" / "carry" / f"{kind}.parquet" for kind in ("requests", "feedback")]
        files += [out / f"dt={dt}" / "transitions.parquet" for dt in (DT, NEXT)]
        assert not list(out.glob(".*spill*")), "what was spilled stayed"
        built[engine] = [accounts(b) for b in days], [f.read_bytes() for f in files]
    (first, second), _ = built["duckdb"]
    assert (first["carried"], second["rows"]) == (6, 6 * 4 + 6)
    assert first["dropped"] == {
        "feedback.duplicate": 42,
        "feedback.request_dropped": 6,
        "feedback.watch_range": 1,
        "requests.action_high": 1,
        "requests.duplicate_request": 1,
        "requests.no_impression": 10,
    }
    assert built["spark"][0] == built["duckdb"][0]
    assert built["spark"][1] == built["duckdb"][1]
