"""The day's figures: what `expectations/day.json` judges and what the summary page shows.

All of them are over good rows, those that no row-level rule sets aside, except the shares of the rows set aside. A
figure that cannot be measured (nothing was explored, no feedback) is null, and the expectation about it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtf.logs.days import Manifest, day_bounds
from mtf.spec import FusionSpec

if TYPE_CHECKING:
    import duckdb

    from mtf.policy import Policy

Figures = dict[str, float | None]

# requests whose logged center is recomputed from the policy
CENTER_SAMPLE = 2000
SESSION_BINS = 15
HOUR_US = 3_600_000_000
# variance of x, and of x squared, for x uniform on [-1, 1]
VAR_X = 1 / 3
VAR_XX = 1 / 5 - 1 / 9


def names(spec: FusionSpec) -> list[str]:
    """Every figure that `day_figures` gives."""
    rates = [f"rate_{b}" for b in spec.behaviours if b != "watch"]
    return [
        *("requests", "feedback", "users", "sessions", "mean_session_length", "share_quarantined_requests"),
        *("days_since_last", "quiet_start_h", "quiet_end_h"),
        *("share_quarantined_feedback", "share_outside_day", "share_repeated_feedback", "share_late", "share_unanswered"),
        *("unanswered_arm_z", "share_fallback", "share_explored", "position_mean_z", "position_square_z"),
        *("policy_center_error", "mean_watch_s", *rates),
    ]


def scalar_columns(spec: FusionSpec) -> dict[str, str]:
    """SQL over `requests_flat` that the figures need beside the rules' columns: {name: sql}."""
    columns = {"user_id": "user_id", "arm": "arm", "exploring": "exploring", "fallback": "fallback", "ts_us": "epoch_us(ts)"}
    columns["request_id"] = "request_id"
    columns["request_hash"] = "hash(request_id)"
    for d in range(1, spec.action_width + 1):
        width = f"(upper[{d}] - lower[{d}])"
        columns[f"x_{d}"] = (
            f"CASE WHEN exploring AND {width} > 0 THEN (2 * (action[{d}] - center[{d}]) - lower[{d}] - upper[{d}]) / {width} END"
        )
    return columns


def day_figures(
    con: duckdb.DuckDBPyConnection,
    manifest: Manifest,
    spec: FusionSpec,
    quarantined: Mapping[str, int],
    policies: Mapping[str, Policy] | None,
    last_dt: str | None,
) -> tuple[Figures, dict[str, object]]:
    """(figures, profile) from the temp tables `requests_good` and `feedback_good` (see `mtf.quality.validate`).

    quarantined: rows set aside, a table. policies: bundles by hash, to recompute centers; None leaves that figure null.
    last_dt: the sealed day before this one.
    """
    figures: Figures = dict.fromkeys(names(spec))
    start, end = day_bounds(manifest.dt)
    (n, users, outside, fallback, explored, first, last) = _row(
        con,
        f"""SELECT count(*), count(DISTINCT user_id), avg((ts_us < {start} OR ts_us >= {end})::INT),
                   avg((fallback IS NOT NULL)::INT), avg(exploring::INT), min(ts_us), max(ts_us) FROM requests_good""",
    )
    rates = [b for b in spec.behaviours if b != "watch"]
    (m, repeated, watch, *rate) = _row(
        con,
        "SELECT count(*), 1 - count(DISTINCT (request_hash, item_id)) / count(*), avg(watch_s)"
        + "".join(f', avg("{b}")' for b in rates)
        + " FROM feedback_good",
    )
    lengths = con.execute(_SESSIONS.format(gap=int(spec.session_gap_s * 1e6))).fetchall()
    sessions = sum(c for _, c in lengths)
    figures |= {"requests": n, "feedback": m, "users": users, "sessions": sessions}
    figures |= {"share_outside_day": outside, "share_fallback": fallback, "share_explored": explored}
    figures |= {"share_repeated_feedback": repeated if m else None, "mean_watch_s": watch}
    figures |= {f"rate_{b}": r for b, r in zip(rates, rate, strict=True)}
    figures["mean_session_length"] = n / sessions if sessions else None
    if n:
        figures |= {"quiet_start_h": (first - start) / HOUR_US, "quiet_end_h": (end - last) / HOUR_US}
    if last_dt is not None:
        figures["days_since_last"] = (start - day_bounds(last_dt)[0]) / (24 * HOUR_US)
    for table in ("requests", "feedback"):
        rows = manifest.rows(table)  # type: ignore[arg-type]
        figures[f"share_quarantined_{table}"] = quarantined[table] / rows if rows else None
    total = manifest.rows("requests") + manifest.rows("feedback")
    figures["share_late"] = manifest.late_rows / total if total else None
    arms = con.execute(_ARMS).fetchall() if m else []
    if arms:
        figures["share_unanswered"] = sum(u for _, _, u in arms) / n
        figures["unanswered_arm_z"] = _furthest_arm([(c, u) for _, c, u in arms])
    positions = _positions(con, spec)
    if positions:
        figures["position_mean_z"] = max(abs(p["mean_z"]) for p in positions)
        figures["position_square_z"] = max(abs(p["square_z"]) for p in positions)
    if policies:
        figures["policy_center_error"] = _center_error(con, policies)
    hours = con.execute(
        f"SELECT (ts_us - {start}) // {HOUR_US} AS h, count(*) FROM requests_good GROUP BY h ORDER BY h"
    ).fetchall()
    profile: dict[str, object] = {
        "positions": positions,
        "arms": [{"arm": a, "requests": c, "unanswered": u} for a, c, u in arms],
        "hours": [[int(h), c] for h, c in hours if 0 <= h < 24],
        "session_lengths": _binned(lengths),
    }
    return {name: None if value is None else float(value) for name, value in figures.items()}, profile


_SESSIONS = """
WITH breaks AS (SELECT user_id, ts_us, request_id,
                       coalesce(ts_us - lag(ts_us) OVER w > {gap}, true)::INT AS new
                FROM requests_good WINDOW w AS (PARTITION BY user_id ORDER BY ts_us, request_id)),
     numbered AS (SELECT user_id, sum(new) OVER (PARTITION BY user_id ORDER BY ts_us, request_id) AS session FROM breaks),
     sizes AS (SELECT count(*) AS length FROM numbered GROUP BY user_id, session)
SELECT length, count(*) FROM sizes GROUP BY length ORDER BY length
"""
_ARMS = """
SELECT arm, count(*), count(*) FILTER (WHERE request_hash NOT IN (SELECT request_hash FROM feedback_good))
FROM requests_good GROUP BY arm ORDER BY arm
"""


def _positions(con: duckdb.DuckDBPyConnection, spec: FusionSpec) -> list[dict[str, Any]]:
    """Mean of x and of x squared a varied dimension, with how many standard errors they are off 0 and 1/3."""
    parts = [f"count(x_{d}), avg(x_{d}::DOUBLE), avg(x_{d}::DOUBLE ** 2)" for d in range(1, spec.action_width + 1)]
    found = _row(con, f"SELECT {', '.join(parts)} FROM requests_good")
    labels = [f"{kind} {objective}" for kind in ("power", "bias") for objective in spec.objectives]
    out = []
    for d, label in enumerate(labels):
        n, mean, square = found[3 * d : 3 * d + 3]
        if n:
            z = {"mean_z": mean * np.sqrt(n / VAR_X), "square_z": (square - VAR_X) * np.sqrt(n / VAR_XX)}
            out.append({"dimension": label, "n": n, "mean": mean, "square": square} | {k: float(v) for k, v in z.items()})
    return out


def _furthest_arm(arms: Sequence[tuple[int, int]]) -> float | None:
    """Largest |z| of an arm's share of unanswered requests against that of all the others together."""
    n, u = sum(c for c, _ in arms), sum(x for _, x in arms)
    if len(arms) < 2:
        return None
    pooled = u / n
    out = 0.0
    for count, unanswered in arms:
        variance = pooled * (1 - pooled) * (1 / count + 1 / (n - count))
        if variance > 0:
            out = max(out, abs(unanswered / count - (u - unanswered) / (n - count)) / variance**0.5)
    return out


def _center_error(con: duckdb.DuckDBPyConnection, policies: Mapping[str, Policy]) -> float | None:
    """Largest |logged center - policy(logged state)| over a fixed sample of the requests of the given policies."""
    rows = con.execute(
        f"""SELECT f.policy_sha, f.state, f.center FROM requests_raw f
            SEMI JOIN (SELECT file, file_row FROM requests_good ORDER BY request_hash LIMIT {CENTER_SAMPLE}) s
            ON f.file = s.file AND f.file_row = s.file_row"""
    ).fetchall()
    worst = None
    for sha, policy in policies.items():
        mine = [(state, center) for found, state, center in rows if found == sha]
        if mine:
            states, centers = (np.array(column, np.float32) for column in zip(*mine, strict=True))
            worst = max(worst or 0.0, float(np.abs(policy.act(states) - centers).max()))
    return worst


def _binned(lengths: Sequence[tuple[int, int]]) -> list[list[object]]:
    """[label, sessions] by number of requests; what is longer than the last bin goes into it."""
    counts = [0] * SESSION_BINS
    for length, count in lengths:
        counts[min(length, SESSION_BINS) - 1] += count
    return [[str(i + 1) if i + 1 < SESSION_BINS else f"{SESSION_BINS}+", c] for i, c in enumerate(counts)]


def _row(con: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row = con.execute(sql).fetchone()
    assert row is not None
    return row
