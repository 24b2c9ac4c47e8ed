"""Real rows for the tests of quality: decided by the engine, answered, and spoilt on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from mtf.contracts import feedback_schema
from mtf.contracts.ids import uuid7
from mtf.logs.days import day_bounds, write_day
from mtf.rollout.document import Arms, DeploymentDocument, Exploration, PolicyRef, Salts
from mtf.serving.engine import Engine, RankBatch
from tests.conftest import random_policy, small_spec

SPEC = small_spec()
DT = "2026-01-01"
START, END = day_bounds(DT)
POLICY = random_policy(spec=SPEC)
EXPECTATIONS = Path(__file__).parents[2] / "expectations"


def day(users: int = 60, per_session: int = 4, seed: int = 0, dt: str = DT, shifted: float = 0.0) -> tuple[pa.Table, pa.Table]:
    """(requests, feedback): one session a user, three candidates shown of eight, every shown item answered.

    shifted: added to the feature `activity`, uniform on [0, 1] without it.
    """
    rng = np.random.default_rng(seed)
    ref = PolicyRef(sha=POLICY.sha, version="1", uri="")
    document = DeploymentDocument(
        surface="feed",
        generation=1,
        at="",
        spec_version=SPEC.version,
        champion=ref,
        bootstrap=ref,
        exploration=Exploration(sha="box", half_width=(0.2, 0.2, 0.2, 0.0)),
        arms=Arms(explore=0.8),
        salts=Salts(explore="e", rollout="r", holdback="h"),
    )
    n = users * per_session
    ts = (
        day_bounds(dt)[0]
        + np.repeat(rng.integers(0, 70_000, users) * 1_000_000, per_session)
        + np.tile(np.arange(per_session), users) * 60_000_000
    )
    batch = RankBatch(
        [f"u{i}" for i in np.repeat(np.arange(users), per_session)],
        ts,
        rng.random((n, 2)) + np.array([shifted, 0]),
        np.stack([rng.permutation(1000)[:8] for _ in range(n)]),
        rng.random((n, 8, 2), dtype=np.float32),
    )
    requests = Engine(SPEC, document, {POLICY.sha: POLICY}).decide(batch, rng, ts + 500).rows
    return requests, answers(requests, rng)


def answers(requests: pa.Table, rng: np.random.Generator) -> pa.Table:
    """A feedback row for every shown item."""
    shown = SPEC.n_shown
    n = requests.num_rows * shown
    at = pa.array(np.repeat(requests["ts"].cast(pa.int64()).to_numpy(), shown) + 30_000_000).cast(pa.timestamp("us", tz="UTC"))
    columns = {
        "request_id": pa.array(np.repeat(np.array(requests["request_id"].to_pylist(), object), shown), pa.string()),
        "item_id": requests["item_ids"].combine_chunks().flatten(),
        "position": pa.array(np.tile(np.arange(shown, dtype=np.int32), requests.num_rows)),
        "ts": at,
        "received_at": at,
        "watch_s": pa.array(rng.exponential(20, n).astype(np.float32)),
        "duration_s": pa.array(rng.exponential(40, n).astype(np.float32) + 1),
        "click": pa.array((rng.random(n) < 0.4).astype(np.int8)),
        "valid": pa.array((rng.random(n) < 0.4).astype(np.int8)),
    }
    schema = feedback_schema(SPEC.behaviours)
    return pa.table([columns[f.name] for f in schema], schema=schema)


def put(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    """`table` with one value changed."""
    values = table[column].to_pylist()
    values[row] = value
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def unknown_id() -> str:
    """An id of the day that no request has."""
    return uuid7(np.array([START + 1]), np.random.default_rng(99))[0]


def logs_of(folder: Path, requests: pa.Table, feedback: pa.Table, dt: str = DT) -> Path:
    """A LOGS folder with that day."""
    write_day(folder, dt, requests, feedback, SPEC)
    return folder


def suites(folder: Path) -> Path:
    """A copy of the repository's expectations, to edit."""
    return Path(shutil.copytree(EXPECTATIONS, folder))
