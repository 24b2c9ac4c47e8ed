"""Which rows of the logs break a row rule of the expectations: the same rows that validation sets aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from mtf.quality.flatten import create_views
from mtf.quality.rules import Rule, clean_predicates, mark_broken
from mtf.spec import FusionSpec
from mtf.transitions.engines import MEMORY

Kind = Literal["requests", "feedback"]
KINDS: tuple[Kind, ...] = ("requests", "feedback")
Rules = dict[Kind, list[Rule]]


@dataclass(frozen=True)
class Broken:
    """counts: rows by the first rule that they break; places: a Parquet file of (file, file_row), None where no row does."""

    counts: dict[str, int]
    places: Path | None


def read_rules(expectations_dir: Path | None) -> Rules:
    """The row rules of each table; none where there is no folder of expectations."""
    if expectations_dir is None:
        return {"requests": [], "feedback": []}
    return {kind: clean_predicates(expectations_dir, kind) for kind in KINDS}


def broken_rows(files: dict[Kind, list[Path]], rules: Rules, spec: FusionSpec, scratch: Path, threads: int) -> dict[Kind, Broken]:
    """Apply the rules to the files of each table; writes the places of broken rows to `scratch`."""
    found: dict[Kind, Broken] = {kind: Broken({}, None) for kind in KINDS}
    if not any(rules.values()):
        return found
    config = {"threads": threads, "memory_limit": MEMORY, "temp_directory": str(scratch / "rules")}
    with duckdb.connect(config=config) as con:
        create_views(con, requests=files["requests"], feedback=files["feedback"], spec=spec)
        for kind in KINDS:
            if rules[kind]:
                mark_broken(con, kind, rules[kind])
                found[kind] = _places(con, kind, scratch)
    return found


def _places(con: duckdb.DuckDBPyConnection, kind: Kind, scratch: Path) -> Broken:
    rows: Sequence[tuple[str, int]] = con.execute(
        f"SELECT broken[1], count(*) FROM {kind}_broken GROUP BY 1 ORDER BY 1"
    ).fetchall()
    if not rows:
        return Broken({}, None)
    path = scratch / f"{kind}_broken.parquet"
    con.execute(
        f"COPY (SELECT file, file_row FROM {kind}_broken) TO '{str(path).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)"
    )
    return Broken(dict(rows), path)
