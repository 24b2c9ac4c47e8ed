"""Transitions in memory as files in the schema of docs/transitions.md: only what anybody's log would hold."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mtf.spec import FusionSpec
from mtf.transitions.table import TransitionSet

LISTS = ("state", "action", "center", "lower", "upper", "reward", "next_state")


def to_table(data: TransitionSet) -> pa.Table:
    """The needed columns and `truncated`; sessions are called s000001, users as they are with a u before."""
    columns: dict[str, pa.Array] = {
        "session_id": pa.array([f"s{i:06d}" for i in data.session]),
        "step": pa.array(data.step, pa.int32()),
        "user_id": pa.array([f"u{data.user_ids[i]}" for i in data.user]),
        "terminal": pa.array(data.terminal),
        "truncated": pa.array(data.truncated),
    }
    for name in LISTS:
        columns[name] = pa.array(getattr(data, name).tolist(), pa.list_(pa.float32()))
    return pa.table(columns)


def write_transitions(folder: Path, data: TransitionSet, spec: FusionSpec | None = None) -> Path:
    """A folder with one file, and the spec beside it where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(data), folder / "part.parquet")
    if spec is not None:
        spec.write(folder / "spec.json")
    return folder
