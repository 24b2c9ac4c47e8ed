"""Logs and transitions as scalar columns: the one SQL view a table that expectations and quarantine look through.

A rule of `expectations/` speaks of a scalar (`action_min`, `box_excess`, `shown_there`); this module says how each is
computed from the lists of a row, by DuckDB, over the Parquet files. NaN becomes null in a derived number (a NaN would
compare as the largest value), and is reported by the `*_finite` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtf.contracts import feedback_schema, requests_schema, transitions_schema
from mtf.errors import InputError
from mtf.spec import FusionSpec

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Table = Literal["requests", "feedback"]
Ruled = Literal["requests", "feedback", "transitions"]
Kind = Literal["text", "int", "float", "bool"]

# the columns that a row-level rule may name; the list is the contract between expectations/ and this module
COLUMNS: dict[Ruled, dict[str, Kind]] = {
    "requests": {
        "request_id": "text",
        "surface": "text",
        "user_id": "text",
        "arm": "text",
        "policy_sha": "text",
        "spec_version": "text",
        "fallback": "text",
        "exploring": "bool",
        "bucket": "int",
        "generation": "int",
        "latency_us": "int",
        "n_candidates": "int",
        "schema_version": "int",
        # derived
        "required_nulls": "int",  # columns that hold null and must not
        "copy": "int",  # 0 = the first row of its request_id by (received_at, content), 1, 2, ... = repeats
        "id_skew_s": "float",  # |time in the UUIDv7 - ts|
        "wrong_widths": "int",  # list columns whose length is not the spec's
        "n_items": "int",  # shown items
        "spec_agrees": "bool",  # surface and spec_version are the spec's
        "state_finite": "bool",
        "action_finite": "bool",
        "box_finite": "bool",  # center, lower, upper
        "scores_finite": "bool",
        "scores_min": "float",
        "action_min": "float",
        "action_max": "float",
        "center_min": "float",
        "center_max": "float",
        "lower_max": "float",
        "upper_min": "float",
        "box_excess": "float",  # the furthest that any dimension of action lies outside its own box; <= 0 inside
        "box_width": "float",  # sum of upper - lower
        "propensity_logged_where_explored": "bool",
        "log_propensity_error": "float",  # |logged - density of the row's box|; null where none is logged
        "unexplored_offset": "float",  # max |action - center| and box width of a row that does not explore; null else
        "candidate_bytes_off": "int",  # |length of cand_scores - 2 K n_candidates|; null where not logged
    },
    "feedback": {
        "request_id": "text",
        "item_id": "int",
        "position": "int",
        "watch_s": "float",
        "duration_s": "float",
        # derived
        "required_nulls": "int",
        "watch_finite": "bool",
        "duration_finite": "bool",  # or null: unknown
        "flags_min": "int",  # over the 0/1 behaviours
        "flags_max": "int",
        "known_request": "bool",
        "shown_there": "bool",  # the request did show this item at this position; null where the request is unknown
    },
    "transitions": {
        "step": "int",
        "n_shown": "int",
        "terminal": "bool",
        "truncated": "bool",
        "exploring": "bool",
        "arm": "text",
        # derived
        "required_nulls": "int",
        "spec_agrees": "bool",
        "day_agrees": "bool",  # dt is the partition's
        "wrong_widths": "int",
        "ends_once": "bool",  # not both terminal and truncated
        "after_start": "bool",  # ts is not before session_start
        "state_finite": "bool",
        "action_finite": "bool",
        "box_finite": "bool",
        "scores_finite": "bool",
        "scores_min": "float",
        "next_finite": "bool",  # next_state, next_center, next_lower, next_upper
        "next_at_end": "float",  # the largest |value| of those where terminal; null else
        "action_min": "float",
        "action_max": "float",
        "center_min": "float",
        "center_max": "float",
        "lower_max": "float",
        "upper_min": "float",
        "box_excess": "float",
        "box_width": "float",
        "propensity_logged_where_explored": "bool",
        "log_propensity_error": "float",
        "unexplored_offset": "float",
        "reward_finite": "bool",
        "reward_min": "float",
        "behaviour_min": "float",
        "reward_mismatch": "float",  # |sum of heads - sum over the shown items|, as a share of it where it is above 1
        "candidate_bytes_off": "int",  # bytes of cand_scores beyond whole candidates; null where not logged
    },
}


def create_views(con: duckdb.DuckDBPyConnection, *, requests: Sequence[Path], feedback: Sequence[Path], spec: FusionSpec) -> None:
    """Create the views `requests_flat` and `feedback_flat` on `con`: the files' own columns, `file`, `file_row` and COLUMNS.

    Lazy: a query pays for the columns that it names. The files must have the contract's columns (`mtf.quality.files`).
    Raises InputError where a table has no file at all.
    """
    for name, files in (("requests", requests), ("feedback", feedback)):
        if not files:
            raise InputError(f"{name}: no file; a sealed day has at least one, if need be without rows")
    con.execute(f"CREATE OR REPLACE TEMP VIEW requests_raw AS {_scan(requests)}")
    con.execute(f"CREATE OR REPLACE TEMP VIEW feedback_raw AS {_scan(feedback)}")
    con.execute(_COPIES)
    con.execute(f"CREATE OR REPLACE TEMP VIEW requests_flat AS {_requests_sql(spec)}")
    con.execute(f"CREATE OR REPLACE TEMP VIEW feedback_flat AS {_feedback_sql(spec)}")


def create_transitions_view(con: duckdb.DuckDBPyConnection, path: Path, spec: FusionSpec, dt: str) -> None:
    """Create the view `transitions_flat` on `con` over a day's transitions: its own columns, `file`, `file_row` and COLUMNS."""
    con.execute(f"CREATE OR REPLACE TEMP VIEW transitions_raw AS {_scan([path])}")
    con.execute(f"CREATE OR REPLACE TEMP VIEW transitions_flat AS {_transitions_sql(spec, dt)}")


# ids that occur more than once are few: only their rows are read whole and put in order
_COPIES = """
CREATE OR REPLACE TEMP TABLE request_copies AS
WITH again AS (SELECT request_id FROM requests_raw GROUP BY request_id HAVING count(*) > 1),
     rows AS (SELECT r.file, r.file_row, r.request_id, r.received_at,
                     md5(CAST(COLUMNS_OF(r) AS VARCHAR)) AS content
              FROM requests_raw r SEMI JOIN again USING (request_id))
SELECT file, file_row,
       row_number() OVER (PARTITION BY request_id ORDER BY received_at, content, file, file_row) - 1 AS copy
FROM rows
""".replace("COLUMNS_OF(r)", "row(" + ", ".join(f"r.{f.name}" for f in requests_schema()) + ")")


def _scan(files: Sequence[Path]) -> str:
    names = ", ".join("'" + str(f).replace("'", "''") + "'" for f in files)
    return (
        "SELECT * EXCLUDE (filename, file_row_number), filename AS file, file_row_number AS file_row "
        f"FROM read_parquet([{names}], filename = true, file_row_number = true, hive_partitioning = false)"
    )


def _requests_sql(spec: FusionSpec) -> str:
    k = spec.n_objectives
    widths = {"state": spec.state_width} | dict.fromkeys(("action", "center", "lower", "upper"), spec.action_width)
    wrong = [f"coalesce(len({c}) <> {w}, true)" for c, w in widths.items()]
    wrong.append(f"coalesce(len(scores) <> len(item_ids) * {k}, true)")
    columns = {
        "required_nulls": _null_count(requests_schema()),
        "copy": "coalesce(c.copy, 0)",
        "id_skew_s": f"abs({_ID_MS} - epoch_ms(ts)) / 1000.0",
        "wrong_widths": " + ".join(f"CAST({w} AS INTEGER)" for w in wrong),
        "n_items": "len(item_ids)",
        "spec_agrees": f"coalesce(surface = {_text(spec.surface)} AND spec_version = {_text(spec.version)}, false)",
        "scores_finite": _finite("scores"),
        "scores_min": _number("list_min(scores)"),
        **_action_columns(spec),
        "candidate_bytes_off": f"abs(octet_length(cand_scores) - 2 * {k} * n_candidates)",
    }
    derived = ",\n  ".join(f"{sql} AS {name}" for name, sql in columns.items())
    return (
        f"SELECT r.*,\n  {derived}\nFROM requests_raw r LEFT JOIN request_copies c ON r.file = c.file AND r.file_row = c.file_row"
    )


def _action_columns(spec: FusionSpec) -> dict[str, str]:
    """What requests and transitions share: state, action and box."""
    a = range(1, spec.action_width + 1)
    # float32 like the server's own cut, so that an action on the edge of its box is exactly inside
    excess = ", ".join(f"action[{d}] - (center[{d}] + upper[{d}]), (center[{d}] + lower[{d}]) - action[{d}]" for d in a)
    width = [f"(CAST(upper[{d}] AS DOUBLE) - lower[{d}])" for d in a]
    log_density = " - ".join(["0", *(f"CASE WHEN {w} > 0 THEN ln({w}) ELSE 0 END" for w in width)])
    offset = ", ".join(f"abs(action[{d}] - center[{d}]), upper[{d}] - lower[{d}]" for d in a)
    return {
        "state_finite": _finite("state"),
        "action_finite": _finite("action"),
        "box_finite": " AND ".join(_finite(c) for c in ("center", "lower", "upper")),
        "action_min": _number("list_min(action)"),
        "action_max": _number("list_max(action)"),
        "center_min": _number("list_min(center)"),
        "center_max": _number("list_max(center)"),
        "lower_max": _number("list_max(lower)"),
        "upper_min": _number("list_min(upper)"),
        "box_excess": _number(f"greatest({excess})"),
        "box_width": _number(" + ".join(width)),
        "propensity_logged_where_explored": "coalesce((log_propensity IS NOT NULL) = exploring, false)",
        "log_propensity_error": _number(f"abs(log_propensity - ({log_density}))"),
        "unexplored_offset": f"CASE WHEN NOT exploring THEN {_number(f'greatest({offset})')} END",
    }


def _transitions_sql(spec: FusionSpec, dt: str) -> str:
    k = spec.n_objectives
    nexts = ("next_state", "next_center", "next_lower", "next_upper")
    widths = {
        "state": spec.state_width,
        "next_state": spec.state_width,
        "reward": spec.n_heads,
        "behaviour": len(spec.behaviours),
    }
    widths |= dict.fromkeys(("action", "center", "lower", "upper", *nexts[1:]), spec.action_width)
    wrong = [f"coalesce(len({c}) <> {w}, true)" for c, w in widths.items()]
    wrong += [f"coalesce(len({c}) <> n_shown, true)" for c in ("shown_valid", "shown_reward")]
    wrong.append(f"coalesce(len(shown_scores) <> n_shown * {k}, true)")
    at_end = ", ".join(f"list_max({c}), -list_min({c})" for c in nexts)
    columns = {
        "required_nulls": _null_count(transitions_schema()),
        "spec_agrees": f"coalesce(surface = {_text(spec.surface)} AND spec_version = {_text(spec.version)}, false)",
        "day_agrees": f"coalesce(dt = {_text(dt)}, false)",
        "wrong_widths": " + ".join(f"CAST({w} AS INTEGER)" for w in wrong),
        "ends_once": "NOT (terminal AND truncated)",
        "after_start": "ts >= session_start",
        "scores_finite": _finite("shown_scores"),
        "scores_min": _number("list_min(shown_scores)"),
        "next_finite": " AND ".join(_finite(c) for c in nexts),
        "next_at_end": f"CASE WHEN terminal THEN {_number(f'greatest({at_end})')} END",
        "reward_finite": f"{_finite('reward')} AND {_finite('shown_reward')}",
        "reward_min": _number("list_min(reward)"),
        "behaviour_min": _number("list_min(behaviour)"),
        "reward_mismatch": _number(
            "abs(list_sum(reward) - list_sum(shown_reward)) / greatest(1.0, CAST(abs(list_sum(reward)) AS DOUBLE))"
        ),
        "candidate_bytes_off": f"octet_length(cand_scores) % {2 * k}",
        **_action_columns(spec),
    }
    derived = ",\n  ".join(f"{sql} AS {name}" for name, sql in columns.items())
    return f"SELECT r.*,\n  {derived}\nFROM transitions_raw r"


def _feedback_sql(spec: FusionSpec) -> str:
    flags = ", ".join(f'f."{b}"' for b in spec.behaviours if b != "watch")
    item = "q.item_ids[CAST(f.position AS BIGINT) + 1]"  # the largest position and 1 are no int32
    columns = {
        "required_nulls": _null_count(feedback_schema(spec.behaviours), "f."),
        "watch_finite": "coalesce(isfinite(f.watch_s), false)",
        "duration_finite": "coalesce(isfinite(f.duration_s), true)",
        # one column at least, or least() has no argument
        "flags_min": f"least({flags})" if flags else "0",
        "flags_max": f"greatest({flags})" if flags else "0",
        "known_request": "q.request_id IS NOT NULL",
        "shown_there": f"CASE WHEN q.request_id IS NOT NULL THEN coalesce({item} = f.item_id, false) END",
    }
    derived = ",\n  ".join(f"{sql} AS {name}" for name, sql in columns.items())
    return f"""SELECT f.*,
  {derived}
FROM feedback_raw f
LEFT JOIN (SELECT r.request_id, r.item_ids FROM requests_raw r
           ANTI JOIN (SELECT * FROM request_copies WHERE copy > 0) c ON r.file = c.file AND r.file_row = c.file_row) q
ON f.request_id = q.request_id"""


# milliseconds since 1970 of a UUIDv7; null where the text is no such id
_ID_MS = "TRY_CAST('0x' || substr(request_id, 1, 8) || substr(request_id, 10, 4) AS BIGINT)"


def _null_count(schema: pa.Schema, prefix: str = "") -> str:
    return " + ".join(f'CAST({prefix}"{f.name}" IS NULL AS INTEGER)' for f in schema if not f.nullable)


def _finite(column: str) -> str:
    """Every element is there and finite: a sum is NaN or infinite as soon as one of its terms is."""
    return f"coalesce(isfinite(list_sum({column})) AND list_count({column}) = len({column}), len({column}) = 0, false)"


def _number(sql: str) -> str:
    return f"CASE WHEN isfinite({sql}) THEN {sql} WHEN isinf({sql}) THEN {sql} END"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
