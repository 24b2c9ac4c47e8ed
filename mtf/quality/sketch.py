"""A day in a few hundred numbers a feature, kept beside its verdict, so that later days need no old logs to compare with.

The unit is a user: the first request of the day says what came in (state, scores) and what was done (action, propensity),
the first session what came of it (rewards). What actions move is kept by policy and box, so that it is only ever compared
with days on which the same policy explored the same box: a promotion or another box is no drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtf.errors import IntegrityError
from mtf.spec import FusionSpec

if TYPE_CHECKING:
    import duckdb

Kind = Literal["state", "scores", "actions", "propensities", "rewards"]
KINDS: tuple[Kind, ...] = ("state", "scores", "actions", "propensities", "rewards")
Key = tuple[str, str, str]

FILE = "sketch.parquet"
# users of a day that are looked at; the mean of 50,000 is known to half a percent of a standard deviation
USERS = 50_000
FEWEST = 50
POINTS = 201
_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("name", pa.string()),
        ("group", pa.string()),
        ("n", pa.int64()),
        ("mean", pa.float64()),
        ("sd", pa.float64()),
        ("quantiles", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Entry:
    """n users' values of one feature: mean, standard deviation, and 201 quantiles from the smallest to the largest.

    group: "" where every day may be compared with every other, else the policy, or policy and box, that it belongs to.
    """

    kind: str
    name: str
    group: str
    n: int
    mean: float
    sd: float
    quantiles: np.ndarray

    @property
    def key(self) -> Key:
        """What makes entries of two days comparable."""
        return self.kind, self.name, self.group

    def share_up_to(self, edges: np.ndarray) -> np.ndarray:
        """P(value <= edge) for each edge, read off the quantiles; exact to half a percent, also where many values are equal."""
        q = self.quantiles
        below = np.searchsorted(q, edges, side="right")
        low, high = q[np.clip(below - 1, 0, POINTS - 1)], q[np.clip(below, 0, POINTS - 1)]
        part = np.where(high > low, (edges - low) / np.where(high > low, high - low, 1), 0)
        return np.where(below == 0, 0.0, np.where(below == POINTS, 1.0, (below - 1 + part) / (POINTS - 1)))


def entry(kind: Kind, name: str, group: str, values: np.ndarray) -> Entry:
    """The entry of values [n]."""
    values = np.asarray(values, np.float64)
    # as the file keeps them: a value that many users share must be the same number on both sides of a comparison
    quantiles = np.quantile(values, np.linspace(0, 1, POINTS)).astype(np.float32).astype(np.float64)
    return Entry(kind, name, group, len(values), float(values.mean()), float(values.std()), quantiles)


def take(con: duckdb.DuckDBPyConnection, spec: FusionSpec, users: int) -> list[Entry]:
    """The day's entries, from the temp tables of `mtf.quality.validate` (good rows only). users: the day's users."""
    every = max(1, -(-users // USERS))
    con.execute(_FIRST_SESSIONS.format(gap=int(spec.session_gap_s * 1e6), every=every))
    rows = con.sql(_FIRST_REQUESTS).to_arrow_table()
    sums = con.execute(_session_sums(spec)).fetchnumpy()
    return [e for e in _entries(rows, {k: np.asarray(v, np.float64) for k, v in sums.items()}, spec) if e.n >= FEWEST]


def write(path: Path, entries: list[Entry]) -> None:
    """Write a day's entries as Parquet."""
    columns = {f.name: [getattr(e, f.name) for e in entries] for f in _SCHEMA}
    pq.write_table(pa.table(columns, schema=_SCHEMA), path, compression="zstd")


def read(path: Path) -> dict[Key, Entry]:
    """A day's entries by key; none where the day was judged before there were sketches, or could not be read."""
    if not path.exists():
        return {}
    try:
        rows = pq.read_table(path, schema=_SCHEMA).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"{path} is damaged: {error}; run `mtf validate` on its day again") from error
    entries = [Entry(**row | {"quantiles": np.array(row["quantiles"], np.float64)}) for row in rows]
    return {e.key: e for e in entries}


_FIRST_SESSIONS = """
CREATE OR REPLACE TEMP TABLE first_sessions AS
WITH breaks AS (SELECT user_id, ts_us, request_id, request_hash, file, file_row,
                       coalesce(ts_us - lag(ts_us) OVER w > {gap}, true)::INT AS new
                FROM requests_good WHERE hash(user_id) % {every} = 0
                WINDOW w AS (PARTITION BY user_id ORDER BY ts_us, request_id)),
     numbered AS (SELECT *, sum(new) OVER (PARTITION BY user_id ORDER BY ts_us, request_id) AS session,
                         row_number() OVER (PARTITION BY user_id ORDER BY ts_us, request_id) AS number FROM breaks)
SELECT user_id, request_hash, file, file_row, number = 1 AS first FROM numbered WHERE session = 1
"""
_FIRST_REQUESTS = """
SELECT r.user_id, r.policy_sha, CASE WHEN r.exploring THEN r.exploration_sha END AS box, r.exploring, r.state, r.action, r.center,
       r.lower, r.upper, r.log_propensity, r.scores
FROM requests_raw r JOIN first_sessions s ON r.file = s.file AND r.file_row = s.file_row WHERE s.first ORDER BY r.user_id
"""


def _session_sums(spec: FusionSpec) -> str:
    """SQL: a row a user, in the order of user_id: requests and impressions of the first session, and its sums a behaviour."""
    flags = [b for b in spec.behaviours if b != "watch"]
    latest = ", ".join(["max(watch_s) AS watch", *(f'max("{b}") AS "{b}"' for b in flags)])
    sums = ", ".join(f'sum(f."{b}") AS "{b}"' for b in spec.behaviours)
    return f"""
WITH seen AS (SELECT request_hash, item_id, {latest} FROM feedback_good
              SEMI JOIN first_sessions USING (request_hash) GROUP BY request_hash, item_id)
SELECT count(DISTINCT s.request_hash) AS requests, count(f.item_id) AS impressions,
       sum(least(f.watch, {float(spec.watch_cap_s)})) AS paid_watch, {sums}
FROM first_sessions s LEFT JOIN seen f USING (request_hash) GROUP BY s.user_id ORDER BY s.user_id"""


def _entries(rows: pa.Table, sums: dict[str, np.ndarray], spec: FusionSpec) -> Iterator[Entry]:
    if rows.num_rows == 0:
        return
    policy = np.array([f"policy {sha[:12]}" for sha in rows["policy_sha"].to_pylist()], object)
    box = np.array([f"box {b[:12]}" if b else "no box" for b in rows["box"].to_pylist()], object)
    both = policy + ", " + box
    explored = rows["exploring"].to_numpy(zero_copy_only=False).astype(bool)
    state, action, center, lower, upper = (_matrix(rows, c) for c in ("state", "action", "center", "lower", "upper"))
    everybody = np.full(len(policy), "", object)

    for i, feature in enumerate(spec.features):
        group = policy if feature.moved_by_action else everybody
        yield from _by_group("scores" if feature.source == "scores" else "state", feature.name, group, state[:, i])
    if not any(f.source == "scores" for f in spec.features):
        # of the shown items, which the ranking chose: comparable under one policy and box only
        scores = rows["scores"].combine_chunks()
        top = np.array([np.mean(np.reshape(s, (-1, spec.n_objectives)), axis=0) for s in scores.to_numpy(zero_copy_only=False)])
        for k, objective in enumerate(spec.objectives):
            yield from _by_group("scores", f"shown {objective}", both, top[:, k])
    width = upper - lower
    x = (2 * (action - center) - lower - upper) / np.where(width > 0, width, 1)
    for d, label in enumerate(dimensions(spec)):
        varied = explored & (width[:, d] > 0)
        yield from _by_group("actions", f"position {label}", everybody[varied], x[varied, d])
        yield from _by_group("actions", f"center {label}", policy, center[:, d])
    density = rows["log_propensity"].to_numpy(zero_copy_only=False)[explored]
    yield from _by_group("propensities", "log_propensity", both[explored], density)

    shown = sums["impressions"] > 0
    for name, values in _outcomes(sums, spec).items():
        yield from _by_group("rewards", name, both[shown], values[shown])


def dimensions(spec: FusionSpec) -> list[str]:
    """Names of the action's dimensions."""
    return [f"{kind} {objective}" for kind in ("power", "bias") for objective in spec.objectives]


def _outcomes(sums: dict[str, np.ndarray], spec: FusionSpec) -> dict[str, np.ndarray]:
    """Per first session: reward, a head each and in all; behaviours an impression; requests."""
    paid = sums | {"watch": sums["paid_watch"]}
    heads = {f"reward {h.name}": sum((w * paid[b] for b, w in h.weights.items()), np.zeros(1)) for h in spec.reward_heads}
    total = {"reward": np.sum([np.broadcast_to(v, paid["watch"].shape) for v in heads.values()], axis=0)}
    each = {f"{b} an impression": sums[b] / np.maximum(sums["impressions"], 1) for b in spec.behaviours}
    heads = {name: np.broadcast_to(v, paid["watch"].shape) for name, v in heads.items()}
    return total | heads | each | {"requests a session": sums["requests"]}


def _by_group(kind: Kind, name: str, group: np.ndarray, values: np.ndarray) -> Iterator[Entry]:
    for label in dict.fromkeys(group.tolist()):
        mine = values[group == label].astype(np.float64)
        mine = mine[np.isfinite(mine)]
        if len(mine):
            yield entry(kind, name, label, mine)


def _matrix(rows: pa.Table, column: str) -> np.ndarray:
    values = rows[column].combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1).astype(np.float64)
