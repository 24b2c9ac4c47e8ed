"""Imported rows as the contract's tables: what the log does not hold is filled, propensities and states are completed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mtf.contracts import SCHEMA_VERSION, feedback_schema, requests_schema
from mtf.errors import InputError
from mtf.features import build_state
from mtf.spec import FusionSpec


def requests_table(rows: pa.Table, spec: FusionSpec, computed: Sequence[int]) -> pa.Table:
    """The contract's requests of the table `request`. computed: state columns that follow from the candidates' scores."""
    n = rows.num_rows
    explored = rows["explored"].to_numpy(zero_copy_only=False).astype(bool)
    action = _matrix(rows["action"], spec.action_width, "action")
    center, lower, upper = action.copy(), np.zeros_like(action), np.zeros_like(action)
    for matrix, name in ((center, "center"), (lower, "lower"), (upper, "upper")):
        told = rows[name].is_valid()
        matrix[told.to_numpy()] = _matrix(rows.filter(told)[name], spec.action_width, name)
    width = upper.astype(np.float64) - lower
    density = -np.where(width > 0, np.log(np.where(width > 0, width, 1)), 0).sum(axis=1)
    logged = rows["log_propensity"].to_numpy(zero_copy_only=False).astype(np.float64)
    propensity = np.where(np.isnan(logged), density, logged)
    ts, received = rows["ts_us"].to_numpy(), rows["received_us"].to_numpy(zero_copy_only=False).astype(np.float64)
    received = np.where(np.isnan(received), ts, received).astype(np.int64)
    cand_scores, counts = _candidate_scores(rows["cand_scores"])
    shown = np.array([len(items) for items in rows["item_ids"].to_pylist()], np.int32)
    columns = {
        "request_id": rows["request_id"],
        "surface": _repeat(spec.surface, n),
        "user_id": rows["user_id"],
        "ts": _time(ts),
        "received_at": _time(received),
        "state": _lists(_state(rows, spec, counts, computed)),
        "action": _lists(action),
        "center": _lists(center),
        "lower": _lists(lower),
        "upper": _lists(upper),
        "log_propensity": pa.array(propensity, mask=~explored),
        "exploring": pa.array(explored),
        "policy_sha": rows["policy_sha"].fill_null("imported"),
        "policy_version": rows["policy_version"].fill_null("imported"),
        "exploration_sha": pa.array(["imported" if e else None for e in explored], pa.string()),
        "arm": _arms(rows["arm"], explored),
        "rollout_id": pa.nulls(n, pa.string()),
        "bucket": pa.array(np.zeros(n, np.int32)),
        "generation": pa.array(np.zeros(n, np.int64)),
        "latency_us": pa.array(np.zeros(n, np.int32)),
        "item_ids": rows["item_ids"],
        "scores": rows["scores"],
        "n_candidates": pa.array(np.where(counts > 0, counts // spec.n_objectives, shown).astype(np.int32)),
        "cand_item_ids": rows["cand_item_ids"],
        "cand_scores": cand_scores,
        "fallback": pa.nulls(n, pa.string()),
        "spec_version": _repeat(spec.version, n),
        "schema_version": pa.array(np.full(n, SCHEMA_VERSION, np.int32)),
    }
    schema = requests_schema()
    return pa.table([_column(columns[f.name], f.type) for f in schema], schema=schema)


def feedback_table(rows: pa.Table, spec: FusionSpec) -> pa.Table:
    """The contract's feedback of the table `answer`; where the log has no time it is the request's, and what was watched."""
    watch = rows["watch_s"].to_numpy(zero_copy_only=False).astype(np.float64)
    seen = rows["seen_us"].to_numpy(zero_copy_only=False).astype(np.float64)
    ended = rows["day_us"].to_numpy() + np.nan_to_num(np.clip(watch, 0, 86_400) * 1e6).astype(np.int64)
    ts = np.where(np.isnan(seen), ended, seen).astype(np.int64)
    got = rows["got_us"].to_numpy(zero_copy_only=False).astype(np.float64)
    columns = {name: rows[name] for name in rows.column_names}
    columns |= {"ts": _time(ts), "received_at": _time(np.where(np.isnan(got), ts, got).astype(np.int64))}
    schema = feedback_schema(spec.behaviours)
    return pa.table([_column(columns[f.name], f.type) for f in schema], schema=schema)


def _state(rows: pa.Table, spec: FusionSpec, counts: np.ndarray, computed: Sequence[int]) -> np.ndarray:
    """float32 [n, S]; the `computed` columns as the server computes them, where candidates are logged."""
    state = _matrix(rows["state"], spec.state_width, "state")
    logged = np.flatnonzero(counts)
    if len(logged) and computed:
        k = spec.n_objectives
        scores = np.zeros((len(logged), counts.max() // k, k), np.float32)
        for i, values in enumerate(rows["cand_scores"].take(pa.array(logged)).to_pylist()):
            scores[i, : len(values) // k] = np.reshape(values[: len(values) // k * k], (-1, k))
        given = np.zeros((len(logged), len(spec.given_features)), np.float32)
        whole = build_state(spec, given, scores, counts[logged] // k)
        state[np.ix_(logged, np.array(computed))] = whole[:, computed]
    return state


def _candidate_scores(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """(float16 bytes a row, null where not logged; numbers a row)."""
    rows = column.to_pylist()
    data = [None if row is None else np.array(row, "<f2").tobytes() for row in rows]
    return pa.array(data, pa.binary()), np.array([0 if row is None else len(row) for row in rows], np.int64)


def _matrix(column: pa.ChunkedArray, width: int, name: str) -> np.ndarray:
    lists = column.combine_chunks()
    lengths = np.unique(np.diff(lists.offsets.to_numpy()))
    if lists.null_count or (len(lengths) and list(lengths) != [width]):
        raise InputError(
            f"exposures.columns.{name}: has lists of lengths {lengths.tolist()}, or nulls; the spec needs {width} each"
        )
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)


def _arms(column: pa.ChunkedArray, explored: np.ndarray) -> pa.Array:
    default = np.where(explored, "explore", "champion")
    return pa.array([d if a is None else a for a, d in zip(column.to_pylist(), default.tolist(), strict=True)], pa.string())


def _lists(matrix: np.ndarray) -> pa.Array:
    n, width = matrix.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1), pa.float32()))


def _column(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    values = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    return values.cast(kind)


def _time(us: np.ndarray) -> pa.Array:
    return pa.array(us, pa.timestamp("us", tz="UTC"))


def _repeat(value: str, n: int) -> pa.Array:
    return pa.array([value] * n, pa.string())
