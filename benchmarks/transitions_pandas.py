"""Transitions by pandas and NumPy: the definition of mtf/transitions/expression.py once more, vectorised, in memory.

Keys and windows are pandas (merge by index, sort, groupby, shift); columns of fixed width are NumPy matrices that are taken
by row number. No Python runs per row, per group or per user.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtf.contracts import transitions_schema
from mtf.logs.days import day_bounds
from mtf.spec import FusionSpec

MICRO = 1_000_000
SAME = ("surface", "rollout_id", "fallback", "log_propensity", "exploring", "policy_version", "exploration_sha", "spec_version")
NEXT = ("state", "center", "lower", "upper")


def transitions(requests: Sequence[Path], feedback: Sequence[Path], spec: FusionSpec, dt: str) -> pa.Table:
    """The closed sessions of the files' rows, in the transitions contract, sorted by (session_id, step).

    Every request shows `spec.n_shown` items; rows break no rule.
    """
    asked = _first_of_each_request(pq.read_table(list(map(str, requests))))
    seen = _latest_of_each_item(pq.read_table(list(map(str, feedback))), spec)
    seen = _shown(seen, asked, spec)
    outcomes = _outcomes(seen, spec)
    steps = _steps(asked, np.flatnonzero(np.bincount(seen["row"], minlength=asked.num_rows)), spec, day_bounds(dt)[1])
    return _rows(asked, steps, outcomes, spec, dt)


def write(table: pa.Table, path: Path) -> None:
    """As the build writes its partition: zstd, row groups of the same size, dictionaries for text."""
    text = [f.name for f in table.schema if pa.types.is_string(f.type)]
    pq.write_table(table, path, compression="zstd", use_dictionary=text, row_group_size=65_536)


def _first_of_each_request(asked: pa.Table) -> pa.Table:
    ids = asked.column("request_id").to_pandas()
    if not ids.duplicated().any():
        return asked
    received = asked.column("received_at").to_pandas()
    order = pd.DataFrame({"id": ids, "at": received}).sort_values(["id", "at"], kind="stable")
    return asked.take(np.sort(order.index.to_numpy()[~order["id"].duplicated().to_numpy()]))


def _latest_of_each_item(table: pa.Table, spec: FusionSpec) -> pd.DataFrame:
    flags = [b for b in spec.behaviours if b != "watch"]
    seen = table.select(["request_id", "item_id", "position", "received_at", "watch_s", *flags]).to_pandas()
    seen["request"] = pd.factorize(seen.pop("request_id"))[0]
    seen["first"] = np.arange(len(seen))
    again = seen.duplicated(["request", "item_id"], keep=False)
    last = seen[again].sort_values(["request", "item_id", "received_at"], kind="stable")
    last = last.drop_duplicates(["request", "item_id"], keep="last")
    kept = pd.concat([seen[~again], last]).sort_values("first")
    kept["request_id"] = table.column("request_id").take(pa.array(kept["first"].to_numpy())).to_pandas().to_numpy()
    return kept


def _shown(seen: pd.DataFrame, asked: pa.Table, spec: FusionSpec) -> pd.DataFrame:
    """The feedback that answers a request, with the `row` of that request."""
    row = pd.Index(asked.column("request_id").to_pandas()).get_indexer(seen["request_id"])
    items = _matrix(asked, "item_ids", spec.n_shown)
    position = seen["position"].to_numpy()
    there = (row >= 0) & (position >= 0) & (position < spec.n_shown)
    there[there] = items[row[there], position[there]] == seen["item_id"].to_numpy()[there]
    return seen.assign(row=row)[there]


def _outcomes(seen: pd.DataFrame, spec: FusionSpec) -> pd.DataFrame:
    """One row an impression, by (row, position), with its fixed-point reward heads and behaviours."""
    values = {b: seen["watch_s" if b == "watch" else b].astype("float64") for b in spec.behaviours}
    paid = values | {"watch": values["watch"].clip(upper=spec.watch_cap_s)}
    out = {"row": seen["row"], "position": seen["position"]}
    out["valid"] = (seen["valid"] if "valid" in spec.behaviours else seen["watch_s"] > 10).astype("float32")
    for h, head in enumerate(spec.reward_heads):
        terms = [paid[b] * w for b, w in sorted(head.weights.items())]
        out[f"reward_{h}"] = _micro(sum(terms[1:], start=terms[0]))
    out |= {f"behaviour_{i}": _micro(values[b]) for i, b in enumerate(spec.behaviours)}
    return pd.DataFrame(out).sort_values(["row", "position"])


def _steps(asked: pa.Table, shown: np.ndarray, spec: FusionSpec, end_us: int) -> pd.DataFrame:
    """The steps of the closed sessions, by (session_id, step): `row` and `next_row` (-1 where terminal) of `asked`."""
    narrow = asked.select(["request_id", "user_id", "ts", "policy_sha", "arm"]).take(pa.array(shown)).to_pandas()
    narrow["row"] = shown
    narrow["at"] = asked.column("ts").cast(pa.int64()).to_numpy()[shown]
    for name in ("user_id", "policy_sha", "arm"):
        narrow[name] = pd.factorize(narrow[name])[0]
    narrow = narrow.sort_values(["user_id", "at", "request_id"], ignore_index=True)
    gap = round(spec.session_gap_s * MICRO)
    before = narrow.groupby("user_id")[["at", "policy_sha", "arm"]].shift(fill_value=-1)
    visit_starts = (before["at"] < 0) | (narrow["at"] - before["at"] > gap)
    changed = (narrow[["policy_sha", "arm"]] != before[["policy_sha", "arm"]]).any(axis=1)
    narrow["visit"], narrow["part"] = visit_starts.cumsum(), (visit_starts | changed).cumsum()
    parts = narrow.groupby("part")
    narrow["session_id"] = narrow["request_id"].where(~narrow["part"].duplicated()).ffill()
    narrow["session_start"] = parts["ts"].transform("first")
    narrow["step"] = parts.cumcount().astype("int32")
    narrow["next_row"] = narrow.groupby("visit")["row"].shift(-1, fill_value=-1)
    narrow["truncated"] = (narrow["next_row"] >= 0) & (narrow["part"] != narrow["part"].shift(-1))
    closed = narrow.groupby("visit")["at"].transform("max") + gap < end_us
    return narrow[closed].sort_values(["session_id", "step"], ignore_index=True)


def _rows(asked: pa.Table, steps: pd.DataFrame, outcomes: pd.DataFrame, spec: FusionSpec, dt: str) -> pa.Table:
    row, after = steps["row"].to_numpy(), steps["next_row"].to_numpy()
    n_shown = np.bincount(outcomes["row"], minlength=asked.num_rows)
    first = np.cumsum(n_shown) - n_shown
    # impressions of the rows in their new order
    place = np.repeat(first[row] - np.cumsum(n_shown[row]) + n_shown[row], n_shown[row]) + np.arange(n_shown[row].sum())
    sums = {c: np.add.reduceat(outcomes[c].to_numpy()[place], np.cumsum(n_shown[row]) - n_shown[row]) for c in _sums(spec)}
    heads = [outcomes[f"reward_{h}"] for h in range(spec.n_heads)]
    total = sum(heads[1:], start=heads[0]).to_numpy()
    k = spec.n_objectives
    scores = _matrix(asked, "scores", spec.n_shown * k).reshape(-1, spec.n_shown, k)
    owner, position = np.repeat(row, n_shown[row]), outcomes["position"].to_numpy()[place]
    narrow = asked.select(["request_id", "user_id", "ts", "arm", "policy_sha", "cand_scores", *SAME]).take(pa.array(row))
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: narrow.column(name) for name in narrow.column_names}
    columns |= {
        "session_id": pa.array(steps["session_id"]),
        "session_start": pa.array(steps["session_start"]),
        "step": pa.array(steps["step"]),
        "dt": pa.array(np.full(len(row), dt)),
        "n_shown": pa.array(n_shown[row].astype(np.int32)),
        "shown_scores": _lists(scores[owner, position], n_shown[row] * k),
        "shown_valid": _lists(outcomes["valid"].to_numpy()[place], n_shown[row]),
        "shown_reward": _lists(_units(total[place]), n_shown[row]),
        "behaviour": _lists(np.stack([_units(sums[f"behaviour_{i}"]) for i in range(len(spec.behaviours))], axis=1)),
        "reward": _lists(np.stack([_units(sums[f"reward_{h}"]) for h in range(spec.n_heads)], axis=1)),
        "terminal": pa.array(after < 0),
        "truncated": pa.array(steps["truncated"]),
    }
    for name in ("action", *NEXT):
        width = spec.state_width if name == "state" else spec.action_width
        matrix = _matrix(asked, name, width)
        columns[name] = _lists(matrix[row])
        if name in NEXT:
            columns[f"next_{name}"] = _lists(np.where(after[:, None] < 0, np.float32(0), matrix[after]))
    schema = transitions_schema()
    return pa.table([_one_chunk(columns[f.name]).cast(f.type) for f in schema], schema=schema)


def _sums(spec: FusionSpec) -> list[str]:
    return [*(f"reward_{h}" for h in range(spec.n_heads)), *(f"behaviour_{i}" for i in range(len(spec.behaviours)))]


def _micro(value: pd.Series) -> pd.Series:
    # halves go away from 0, as in SQL; np.round would take them to the even neighbour
    scaled = value * MICRO
    return (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype("int64")


def _units(micro: np.ndarray) -> np.ndarray:
    return (micro / MICRO).astype(np.float32)


def _matrix(table: pa.Table, name: str, width: int) -> np.ndarray:
    return table.column(name).combine_chunks().flatten().to_numpy().reshape(-1, width)


def _lists(values: np.ndarray, lengths: np.ndarray | None = None) -> pa.Array:
    if lengths is None:
        lengths = np.full(len(values), values.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
