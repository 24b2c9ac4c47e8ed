"""Judge a day's transitions after they were built: rows by transitions.json, sessions and the day by sessions.json.

Nothing is set aside here: the rows were clean before they were built, so a broken one is a defect of the build, and the
day's transitions may not be published.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mtf.errors import IntegrityError, NotFoundError
from mtf.fileio import folder_atomic, md5_file
from mtf.quality import docs
from mtf.quality.checks import Judged, over_all_rows, run_suites
from mtf.quality.flatten import create_transitions_view
from mtf.quality.history import HISTORY_DAYS
from mtf.quality.metrics import Figures
from mtf.quality.rules import Rule, clean_predicates, count_broken, page_frame, suite_path
from mtf.quality.summary import render
from mtf.quality.verdict import Verdict, status_of
from mtf.spec import FusionSpec

MEMORY_LIMIT = "800MB"
NARROW = ("step", "terminal", "truncated", "exploring")
DAY = ("transitions", "sessions", "users", "mean_session_length", "mean_reward", "share_explored", "share_truncated")
CHAIN = ("broken_steps", "early_ends", "unended_sessions", "chain_breaks")
FIGURES = (*DAY, *CHAIN, "repeated_requests", "mixed_sessions", "unaccounted_requests")


def validate_transitions(
    path: Path,
    out_dir: Path,
    *,
    dt: str,
    revision: int,
    spec: FusionSpec,
    expectations_dir: Path,
    unaccounted: int | None = None,
    docs_dir: Path | None = None,
    threads: int = 2,
) -> Verdict:
    """The verdict on a day's transitions.parquet; the stored one where the same file was judged by the same rules.

    revision: of the logs that it was built from. unaccounted: requests of those logs that are neither in it, nor carried over,
    nor dropped for a known reason; None where that is not known.
    Writes OUT/dt=DT/transitions/{verdict.json, summary.html} and the pages of the site (default OUT/site).
    Raises InputError (a suite that is wrong), IntegrityError (a file that is no Parquet).
    """
    import duckdb

    folder = Path(out_dir) / f"dt={dt}" / "transitions"
    docs_dir = Path(docs_dir) if docs_dir else Path(out_dir) / "site"
    rules = clean_predicates(expectations_dir, "transitions")
    key = _key(path, expectations_dir, spec, unaccounted)
    try:
        stored = read_transitions_verdict(out_dir, dt)
        if stored.key == key:
            return stored
    except NotFoundError:
        pass
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".validate.") as spill,
        folder_atomic(folder, "verdict.json") as scratch,
    ):
        settings: dict[str, Any] = {"threads": threads, "memory_limit": MEMORY_LIMIT, "temp_directory": spill}
        with duckdb.connect(config=settings) as con:
            con.execute("SET TimeZone = 'UTC'")
            try:
                frame, bad, figures = _look(con, path, dt, spec, rules)
            except duckdb.Error as error:
                raise IntegrityError(f"{path}: no transitions that can be read: {error}; build the day again") from error
        figures["unaccounted_requests"] = None if unaccounted is None else float(unaccounted)
        built = Path(spill) / "site"
        verdict = _judge(frame, rules, bad, figures, out_dir, expectations_dir, built, dt, revision, spec, key)
        (scratch / "verdict.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=2) + b"\n")
        (scratch / "summary.html").write_text(render(verdict, docs.links(verdict, docs_dir, folder)))
        page = docs_dir / docs.summary_path(verdict)
        docs.add(docs_dir, built, verdict, render(verdict, docs.links(verdict, docs_dir, page.parent)))
    return verdict


def read_transitions_verdict(out_dir: Path, dt: str) -> Verdict:
    """The stored verdict on the transitions of `dt`. Raises NotFoundError, IntegrityError."""
    path = Path(out_dir) / f"dt={dt}" / "transitions" / "verdict.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except FileNotFoundError:
        raise NotFoundError(f"dt = {dt}: {out_dir} holds no verdict on its transitions; run `mtf transitions build`") from None
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is damaged: {error}; delete it and run `mtf transitions build` again") from error


def _look(con: Any, path: Path, dt: str, spec: FusionSpec, rules: list[Rule]) -> tuple[Any, dict[str, tuple[int, int]], Figures]:
    """(frame for Great Expectations, {rule: (bad, of)}, figures)."""
    create_transitions_view(con, path, spec, dt)
    ruled = list(dict.fromkeys(r.column for r in rules))
    con.execute(
        f"""CREATE TEMP TABLE t AS SELECT file_row, {", ".join(f'{c} AS "{c}"' for c in {*ruled, *NARROW})},
        hash(session_id) AS session, hash(user_id) AS person, hash(request_id) AS request,
        hash(user_id, policy_sha, arm, spec_version) AS kind, list_sum(reward) AS total,
        hash(state, center, lower, upper) AS here, hash(next_state, next_center, next_lower, next_upper) AS there
        FROM transitions_flat"""
    )
    bad = count_broken(con, "transitions", rules, "t")
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    figures |= zip(DAY, con.execute(_DAY).fetchone(), strict=True)
    figures |= zip(CHAIN, con.execute(_CHAIN).fetchone(), strict=True)
    figures["repeated_requests"] = con.execute("SELECT count(*) - count(DISTINCT request) FROM t").fetchone()[0]
    figures["mixed_sessions"] = con.execute(_MIXED).fetchone()[0]
    frame = page_frame(con, "transitions", ruled, "t", int(figures["transitions"]))
    return frame, bad, {name: None if value is None else float(value) for name, value in figures.items()}


_DAY = """
SELECT count(*), count(DISTINCT session), count(DISTINCT person), count(*) / nullif(count(DISTINCT session), 0), avg(total),
       avg(exploring::INT), avg(truncated::INT) FROM t
"""
_CHAIN = """
WITH ordered AS (SELECT *, row_number() OVER w - 1 AS number, lead(here) OVER w AS following,
                        lead(file_row) OVER w IS NULL AS last
                 FROM t WINDOW w AS (PARTITION BY session ORDER BY step, file_row))
SELECT count(*) FILTER (step <> number), count(*) FILTER (NOT last AND (terminal OR truncated)),
       count(*) FILTER (last AND NOT (terminal OR truncated)), count(*) FILTER (NOT last AND there <> following)
FROM ordered
"""
_MIXED = "SELECT count(*) FROM (SELECT session FROM t GROUP BY session HAVING min(kind) <> max(kind))"


def _judge(
    frame: Any,
    rules: Sequence[Rule],
    bad: Mapping[str, tuple[int, int]],
    figures: Figures,
    out_dir: Path,
    expectations_dir: Path,
    pages_dir: Path,
    dt: str,
    revision: int,
    spec: FusionSpec,
    key: str,
) -> Verdict:
    import pandas as pd

    measured = {name: value for name, value in figures.items() if value is not None}
    absent = {name: "nothing to measure it on" for name in figures if name not in measured}
    frames: dict[str, Any] = {"transitions": frame} if len(frame) else {}
    frames["sessions"] = pd.DataFrame([measured])
    history = [v.metrics for v in _earlier(out_dir, dt)]
    judged = Judged(spec.surface, dt, revision, history, FIGURES, absent)
    checks, skipped = run_suites(frames, expectations_dir, judged, pages_dir)
    checks = [over_all_rows(c, rules, bad) if c.suite == "transitions" else c for c in checks]
    failed = [c for c in checks if not c.success]
    return Verdict(
        subject="transitions",
        key=key,
        surface=spec.surface,
        dt=dt,
        revision=revision,
        status=status_of(checks),
        reasons=[c.sentence for severity in ("critical", "warning") for c in failed if c.severity == severity],
        counts={"transitions": int(figures["transitions"] or 0), "sessions": int(figures["sessions"] or 0)},
        metrics=figures,
        checks=checks,
        skipped=skipped,
    )


def _earlier(out_dir: Path, dt: str) -> list[Verdict]:
    """The verdicts on the transitions of earlier days, oldest first."""
    days = sorted(p.parent.parent.name.removeprefix("dt=") for p in Path(out_dir).glob("dt=*/transitions/verdict.json"))
    found = [read_transitions_verdict(out_dir, d) for d in days if d < dt]
    return [v for v in found if v.status != "critical"][-HISTORY_DAYS:]


def _key(path: Path, expectations_dir: Path, spec: FusionSpec, unaccounted: int | None) -> str:
    suites = [suite_path(expectations_dir, name).read_bytes() for name in docs.SUITES["transitions"]]
    parts = [md5_file(path).encode(), spec.version.encode(), str(unaccounted).encode(), *suites]
    return hashlib.sha256(b"\0".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()
