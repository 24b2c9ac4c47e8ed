"""The row-level rules of `expectations/`, compiled into DuckDB predicates over the flat views.

A suite is Great Expectations' own JSON. In `requests.json`, `feedback.json` and `transitions.json` every expectation is about
one row and one scalar column (`mtf.quality.flatten.COLUMNS`) and carries `meta`: {"level": "row", "rule": <name>, "reason":
<words>}. The same object is checked by Great Expectations for the Data Docs and compiled here for the quarantine, so an edited
threshold moves both. As in Great Expectations, a null passes every rule but `not_be_null`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtf.errors import InputError
from mtf.quality.flatten import COLUMNS, Kind, Ruled

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

Severity = Literal["critical", "warning"]
Level = Literal["row", "table"]
LEVELS: dict[str, Level] = {
    "files": "table",
    "requests": "row",
    "feedback": "row",
    "day": "table",
    "drift": "row",
    "transitions": "row",
    "sessions": "table",
}

# rows of a table that Great Expectations is shown, so that its frame stays below 1.5 GB (requests hold texts); verdict and
# quarantine always count all of them
PAGE_ROWS: dict[Ruled, int] = {"requests": 2_000_000, "feedback": 5_000_000, "transitions": 2_000_000}


@dataclass(frozen=True)
class Rule:
    """A rule about one row. sql: predicate over the flat view, TRUE for a good row, never null.

    mostly: the share of rows that must be good, else the day gets the verdict `severity`.
    """

    name: str
    column: str
    sql: str
    reason: str
    severity: Severity
    mostly: float


def clean_predicates(expectations_dir: Path, table: Ruled) -> list[Rule]:
    """The rules of `expectations_dir/<table>.json`, in their order. A row is good where all of them are TRUE.

    Raises InputError naming the file and the expectation that cannot be compiled.
    """
    where = suite_path(expectations_dir, table)
    rules = [_compile(e, table, f"{where}, expectation {i}") for i, e in enumerate(read_suite(expectations_dir, table))]
    names = [r.name for r in rules]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: two rules are named `{name}`; give each `meta.rule` once")
    return rules


def broken_sql(rules: list[Rule]) -> str:
    """SQL: the names of the rules that a row of a flat view breaks, VARCHAR[]; empty for a good row."""
    if not rules:
        return "CAST([] AS VARCHAR[])"
    cases = ", ".join(f"CASE WHEN NOT {r.sql} THEN '{r.name}' END" for r in rules)
    return f"list_filter([{cases}], lambda name: name IS NOT NULL)"


def good_sql(rules: list[Rule]) -> str:
    """SQL: TRUE for a row of a flat view that breaks no rule."""
    return " AND ".join(r.sql for r in rules) or "TRUE"


def mark_broken(con: duckdb.DuckDBPyConnection, table: Ruled, rules: list[Rule], source: str | None = None) -> None:
    """Create the temp table `<table>_broken` (file, file_row, broken VARCHAR[]) on a connection that has the flat views.

    source: a relation with the rules' columns, `file` and `file_row`; by default the flat view.
    """
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {table}_broken AS SELECT file, file_row, {broken_sql(rules)} AS broken "
        f"FROM {source or f'{table}_flat'} WHERE NOT ({good_sql(rules)})"
    )


def count_broken(con: duckdb.DuckDBPyConnection, table: Ruled, rules: list[Rule], source: str) -> dict[str, tuple[int, int]]:
    """{rule: (rows of `source` that break it, rows that have a value)}; for `not null` every row has one."""
    if not rules:
        return {}
    parts = []
    for r in rules:
        nan = f" AND NOT isnan({r.column})" if COLUMNS[table][r.column] == "float" else ""
        every = f"count(*) FILTER ({r.column} IS NOT NULL{nan} OR NOT {r.sql})"
        parts.append(f"count(*) FILTER (NOT {r.sql}), {every}")
    found = con.execute(f"SELECT {', '.join(parts)} FROM {source}").fetchall()[0]
    return {r.name: (found[2 * i], found[2 * i + 1]) for i, r in enumerate(rules)}


def page_frame(con: duckdb.DuckDBPyConnection, table: Ruled, columns: Sequence[str], source: str, rows: int) -> pd.DataFrame:
    """What Great Expectations is shown of the `rows` rows of `source`: all of them, or every n-th of a very large table."""
    # it compares float64 and int64 as arrays, every other width value by value in Python
    wide = {"int": "BIGINT", "float": "DOUBLE"}
    kinds = {c: wide.get(COLUMNS[table][c]) for c in columns}
    chosen = ", ".join(f"CAST({c} AS {kind}) AS {c}" if kind else c for c, kind in kinds.items())
    every = max(1, -(-rows // PAGE_ROWS[table]))
    return con.execute(f"SELECT {chosen} FROM {source} WHERE file_row % {every} = 0").df()


def read_suite(expectations_dir: Path, name: str) -> list[dict[str, Any]]:
    """The expectations of a suite file, checked for the keys that every one needs. Raises InputError."""
    path = suite_path(expectations_dir, name)
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"expectations: {path} does not exist; it holds the rules about {name}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"expectations: {path} is not JSON: {error}") from None
    expectations: list[dict[str, Any]] = document.get("expectations", [])
    for i, expectation in enumerate(expectations):
        where, meta = f"{path}, expectation {i}", expectation.get("meta", {})
        if meta.get("level") != LEVELS[name]:
            raise InputError(f'{where}: meta.level = {meta.get("level")!r}; in this file it must be "{LEVELS[name]}"')
        if not re.fullmatch(r"[a-z0-9_]+", str(meta.get("rule", ""))):
            raise InputError(f"{where}: meta.rule = {meta.get('rule')!r}; name the rule in a-z, 0-9 and _")
        if not meta.get("reason"):
            raise InputError(f"{where}: meta.reason is missing; say in words what is wrong with what fails")
        if expectation.get("severity") not in ("critical", "warning"):
            raise InputError(f"{where}: severity = {expectation.get('severity')!r}; use critical (stops) or warning (is shown)")
    return expectations


def suite_path(expectations_dir: Path, name: str) -> Path:
    """Where a suite lies."""
    return Path(expectations_dir) / f"{name}.json"


def _compile(expectation: dict[str, Any], table: Ruled, where: str) -> Rule:
    kind, kwargs = expectation["type"], dict(expectation["kwargs"])
    column, mostly = kwargs.pop("column", None), float(kwargs.pop("mostly", 1.0))
    if column not in COLUMNS[table]:
        raise InputError(f"{where}: column = {column!r}; {table} has {', '.join(COLUMNS[table])}")
    if kind not in _PREDICATES:
        raise InputError(f"{where}: type = {kind!r} is not a rule about one row; use one of {', '.join(_PREDICATES)}")
    try:
        test = _PREDICATES[kind](column, kwargs)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: {kind} of {column}: {error}; see the row-level expectations beside it") from None
    if kwargs:
        raise InputError(f"{where}: {kind} of {column}: does not take {', '.join(kwargs)}; remove it")
    meta = expectation["meta"]
    if kind != "expect_column_values_to_not_be_null":
        test = f"coalesce({_missing(column, COLUMNS[table][column])} OR {test}, false)"
    return Rule(meta["rule"], column, f"({test})", meta["reason"], expectation["severity"], mostly)


def _missing(column: str, kind: Kind) -> str:
    # pandas, hence Great Expectations, takes NaN for a missing value
    return f"{column} IS NULL OR isnan({column})" if kind == "float" else f"{column} IS NULL"


def _between(column: str, kwargs: dict[str, Any]) -> str:
    low, high = kwargs.pop("min_value", None), kwargs.pop("max_value", None)
    above, below = (">" if kwargs.pop("strict_min", False) else ">="), ("<" if kwargs.pop("strict_max", False) else "<=")
    if low is None and high is None:
        raise ValueError("needs min_value, max_value or both")
    ends = [f"{column} {above} {_literal(low)}"] if low is not None else []
    ends += [f"{column} {below} {_literal(high)}"] if high is not None else []
    return "(" + " AND ".join(ends) + ")"


def _in_set(column: str, kwargs: dict[str, Any]) -> str:
    return f"{column} IN ({', '.join(_literal(v) for v in kwargs.pop('value_set'))})"


def _not_in_set(column: str, kwargs: dict[str, Any]) -> str:
    return f"{column} NOT IN ({', '.join(_literal(v) for v in kwargs.pop('value_set'))})"


def _match(column: str, kwargs: dict[str, Any]) -> str:
    # anywhere in the text, as Great Expectations does on pandas
    return f"regexp_matches({column}, {_literal(kwargs.pop('regex'))})"


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, float):
        # a bare 0.00001 is a DECIMAL, and a FLOAT column would be compared after rounding it to float32
        return f"CAST({value!r} AS DOUBLE)"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise ValueError(f"{value!r} is not a number, a text or true/false")


_PREDICATES = {
    "expect_column_values_to_not_be_null": lambda column, _: f"{column} IS NOT NULL",
    "expect_column_values_to_be_between": _between,
    "expect_column_values_to_be_in_set": _in_set,
    "expect_column_values_to_not_be_in_set": _not_in_set,
    "expect_column_values_to_match_regex": _match,
}
