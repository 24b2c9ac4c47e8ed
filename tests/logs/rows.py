"""Rows of the contract for the tests of the spool and of sealed days."""

import numpy as np
import pyarrow as pa

from mtf.contracts import feedback_schema
from mtf.logs.days import day_bounds
from mtf.policy import bootstrap_policy
from mtf.rollout.document import Arms, DeploymentDocument, Exploration, PolicyRef, Salts
from mtf.serving.engine import Engine, RankBatch
from tests.conftest import small_spec

SPEC = small_spec()
DT = "2026-01-01"
START, END = day_bounds(DT)


def engine():
    policy = bootstrap_policy(SPEC)
    ref = PolicyRef(sha=policy.sha, version="bootstrap", uri="")
    document = DeploymentDocument(
        surface="feed",
        generation=1,
        at="",
        spec_version=SPEC.version,
        champion=ref,
        bootstrap=ref,
        exploration=Exploration(sha="box", half_width=(0.2,) * 4),
        arms=Arms(explore=0.5),
        salts=Salts(explore="e", rollout="r", holdback="h"),
    )
    return Engine(SPEC, document, {policy.sha: policy})


def requests(n=5, start=START, seed=0, step_us=1000):
    """n requests, `step_us` apart, the first at `start`."""
    rng = np.random.default_rng(seed)
    batch = RankBatch(
        [f"u{i}" for i in range(n)],
        start + step_us * np.arange(n),
        rng.random((n, 2)),
        rng.integers(0, 1_000_000, (n, 8)),
        rng.random((n, 8, 2), dtype=np.float32),
    )
    return engine().decide(batch, rng, start).rows


def feedback(asked, delay_us=0):
    """One row for the top item of each request."""
    n = asked.num_rows
    times = pa.array(asked.column("ts").cast(pa.int64()).to_numpy() + delay_us).cast(pa.timestamp("us", tz="UTC"))
    columns = {
        "request_id": asked.column("request_id"),
        "item_id": pa.array([items[0] for items in asked.column("item_ids").to_pylist()]),
        "position": pa.array(np.zeros(n, np.int32)),
        "ts": times,
        "received_at": times,
        "watch_s": pa.array(np.ones(n, np.float32)),
        "duration_s": pa.array([None] * n, pa.float32()),
    }
    schema = feedback_schema(SPEC.behaviours)
    flags = {f.name: pa.array(np.ones(n, np.int8)) for f in schema if f.name not in columns}
    return pa.table([(columns | flags)[f.name] for f in schema], schema=schema)
