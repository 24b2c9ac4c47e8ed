"""Requests, feedback and transitions as Arrow schemas.

Times are UTC microseconds; floats are float32 unless said. Lists of a fixed meaning (state [S], action [A]) are plain
lists, which every engine reads, and have the same length in every row. `cand_scores` is one binary value a row: float16,
little-endian, item-major [n_candidates * K]; engines carry it through untouched.
"""

from __future__ import annotations

import functools

import pyarrow as pa

from mtf.errors import InputError

SCHEMA_VERSION = 1

ARMS = ("explore", "canary", "control", "champion", "holdback")

_TS = pa.timestamp("us", tz="UTC")
_FLOATS = pa.list_(pa.field("item", pa.float32()))
_IDS = pa.list_(pa.field("item", pa.int64()))


def _field(name: str, kind: pa.DataType, doc: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


@functools.cache
def requests_schema() -> pa.Schema:
    """One row a request that was answered."""
    return pa.schema(
        [
            _field("request_id", pa.string(), "UUIDv7 in event time"),
            _field("surface", pa.string(), "which feed"),
            _field("user_id", pa.string(), "stable id of the user"),
            _field("ts", _TS, "event time (the caller's only where MTF_CLOCK=simulated)"),
            _field("received_at", _TS, "the server's clock"),
            _field("state", _FLOATS, "[S], as used, after defaults"),
            _field("action", _FLOATS, "[A], executed, normalised to [-1, 1]"),
            _field("center", _FLOATS, "[A], the output of the arm's policy"),
            _field(
                "lower", _FLOATS, "[A], offset of the box below center, <= 0, after the cut at the edge; 0 where not exploring"
            ),
            _field("upper", _FLOATS, "[A], offset of the box above center, >= 0"),
            _field("log_propensity", pa.float64(), "log density of action over the varied dimensions; null where none", True),
            _field("exploring", pa.bool_(), "was the action drawn from a box"),
            _field("policy_sha", pa.string(), "bundle that gave center"),
            _field("policy_version", pa.string(), "its version in the registry"),
            _field("exploration_sha", pa.string(), "box document in force; null where not exploring", True),
            _field("arm", pa.string(), "explore | canary | control | champion | holdback"),
            _field("rollout_id", pa.string(), "the rollout that was running; null where none", True),
            _field("bucket", pa.int32(), "0..9999, of the hash that chose the arm"),
            _field("generation", pa.int64(), "of the deployment document"),
            _field("latency_us", pa.int32(), "time inside the server, microseconds (a batch's share)"),
            _field("item_ids", _IDS, "[n] shown items, in order"),
            _field("scores", _FLOATS, "[n*K] of the shown items, item-major"),
            _field("n_candidates", pa.int32(), "how many candidates were ranked"),
            _field("cand_item_ids", _IDS, "[C] all candidates; null where not logged", True),
            _field("cand_scores", pa.binary(), "[C*K] float16 little-endian, item-major; null where not logged", True),
            _field("fallback", pa.string(), "null, or why the policy was not used", True),
            _field("spec_version", pa.string(), "hash of the FusionSpec"),
            _field("schema_version", pa.int32(), "of this schema"),
        ]
    )


@functools.cache
def feedback_schema(behaviours: tuple[str, ...]) -> pa.Schema:
    """One row an impression. `behaviours` are the spec's; `watch` is the column `watch_s`, the others are 0/1."""
    return pa.schema(
        [
            _field("request_id", pa.string(), "the request that showed it"),
            _field("item_id", pa.int64(), "the shown item"),
            _field("position", pa.int32(), "0 = top"),
            _field("ts", _TS, "event time of the impression's end"),
            _field("received_at", _TS, "the server's clock; of two rows of (request_id, item_id) the later one wins"),
            _field("watch_s", pa.float32(), "seconds watched, >= 0"),
            _field("duration_s", pa.float32(), "the item's length in seconds, > 0; null where unknown", True),
            *(_field(b, pa.int8(), "0 or 1") for b in behaviours if b != "watch"),
        ]
    )


@functools.cache
def transitions_schema() -> pa.Schema:
    """One row a request that was shown, with its successor in the same session."""
    return pa.schema(
        [
            _field("session_id", pa.string(), "request_id of the session's first request"),
            _field("session_start", _TS, "its ts"),
            _field("step", pa.int32(), "0, 1, ... within the session"),
            _field("surface", pa.string(), "which feed"),
            _field("user_id", pa.string(), "stable id of the user"),
            _field("request_id", pa.string(), ""),
            _field("ts", _TS, "event time"),
            _field("dt", pa.string(), "day (UTC) on which the session closed, YYYY-MM-DD"),
            _field("arm", pa.string(), ""),
            _field("rollout_id", pa.string(), "", True),
            _field("exploring", pa.bool_(), ""),
            _field("fallback", pa.string(), "", True),
            _field("n_shown", pa.int32(), "items with feedback"),
            _field("state", _FLOATS, "[S]"),
            _field("action", _FLOATS, "[A]"),
            _field("center", _FLOATS, "[A]"),
            _field("lower", _FLOATS, "[A]"),
            _field("upper", _FLOATS, "[A]"),
            _field("log_propensity", pa.float64(), "", True),
            _field("shown_scores", _FLOATS, "[n*K] item-major"),
            _field("shown_valid", _FLOATS, "[n] 0/1 label of MTF-GAUC"),
            _field("shown_reward", _FLOATS, "[n] total reward an item"),
            _field("behaviour", _FLOATS, "[B] raw sums over shown items, in the spec's order"),
            _field("reward", _FLOATS, "[H] weighted, a head each; the total is their sum"),
            _field("next_state", _FLOATS, "[S]; zeros where terminal"),
            _field("next_center", _FLOATS, "[A]; zeros where terminal"),
            _field("next_lower", _FLOATS, "[A]; zeros where terminal"),
            _field("next_upper", _FLOATS, "[A]; zeros where terminal"),
            _field("cand_scores", pa.binary(), "as in requests", True),
            _field("terminal", pa.bool_(), "the session ended after this request"),
            _field("truncated", pa.bool_(), "cut here with a real next_state: bootstrap, do not end"),
            _field("policy_sha", pa.string(), ""),
            _field("policy_version", pa.string(), ""),
            _field("exploration_sha", pa.string(), "", True),
            _field("spec_version", pa.string(), ""),
        ]
    )


def check_table(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """`table` with the schema's columns, in its order and types.

    Raises InputError naming the column that is missing, has another type, or holds nulls where none may be.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            raise InputError(f"{what}: column `{field.name}` is missing; it holds {', '.join(table.column_names)}")
        column = table.column(field.name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(f"{what}: column `{field.name}` is {column.type}, needs {field.type} ({error})") from None
        if not field.nullable and column.null_count:
            raise InputError(f"{what}: column `{field.name}` holds {column.null_count} nulls; the contract allows none")
        columns.append(column)
    return pa.table(columns, schema=schema)
