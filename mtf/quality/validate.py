"""Validate a sealed day: files, rows, figures; a verdict, a quarantine, pages. Never changes the logs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from tqdm import tqdm

from mtf.errors import InputError
from mtf.fileio import folder_atomic
from mtf.logs.days import Manifest, list_days, read_manifest
from mtf.quality import docs, sketch
from mtf.quality.checks import Judged, over_all_rows, run_suites
from mtf.quality.drift import Drift, judge, read_limits
from mtf.quality.files import TABLES, FileReport, inspect_files
from mtf.quality.flatten import Table, create_views
from mtf.quality.history import HISTORY_DAYS, earlier
from mtf.quality.metrics import day_figures, names, scalar_columns
from mtf.quality.rules import Rule, clean_predicates, count_broken, good_sql, mark_broken, page_frame, read_suite
from mtf.quality.summary import render
from mtf.quality.verdict import Check, Verdict, status_of
from mtf.spec import FusionSpec

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from mtf.policy import Policy

MEMORY_LIMIT = "800MB"
TREND_DAYS = 14
TREND = (
    *("requests", "share_quarantined_requests", "share_quarantined_feedback", "share_late"),
    *("mean_session_length", "mean_watch_s", "share_explored"),
)
STAGES = ("files", "requests", "feedback", "figures", "expectations", "pages")


def validate_day(
    logs_dir: Path,
    dt: str,
    out_dir: Path,
    *,
    spec: FusionSpec,
    expectations_dir: Path,
    docs_dir: Path | None = None,
    policies: Mapping[str, Policy] | None = None,
    threads: int = 2,
    progress: bool = False,
) -> Verdict:
    """Judge the newest revision of a sealed day; a day that cannot be read gets the verdict `critical`, not an error.

    Writes OUT/dt=DT/r<k>/{verdict.json, summary.html, sketch.parquet, quarantine/{requests,feedback}.parquet} and the pages of
    the site. Thresholds from history, and drift, compare with the earlier days that OUT holds.
    docs_dir: the site of all days (default OUT/site). policies: bundles by hash, to recompute logged centers from.
    Raises NotFoundError (no such day), IntegrityError (its manifest is damaged), InputError (a suite that is wrong).
    """
    import duckdb

    logs_dir, out_dir = Path(logs_dir), Path(out_dir)
    docs_dir = Path(docs_dir) if docs_dir else out_dir / "site"
    manifest = read_manifest(logs_dir, dt)
    rules = {table: clean_predicates(expectations_dir, table) for table in TABLES}
    limits = read_limits(expectations_dir)
    past = earlier(out_dir, dt, HISTORY_DAYS)
    out_dir.mkdir(parents=True, exist_ok=True)
    folder = out_dir / f"dt={dt}" / f"r{manifest.revision}"
    bar = tqdm(total=len(STAGES), desc=f"validate {dt}", disable=not progress, leave=False)
    with (
        bar,
        tempfile.TemporaryDirectory(dir=out_dir, prefix=".validate.") as spill,
        folder_atomic(folder, "verdict.json") as scratch,
    ):
        report = inspect_files(logs_dir, dt, manifest, spec)
        bar.update()
        day, drift = None, Drift()
        last_dt = max((d for d in list_days(logs_dir) if d < dt), default=None)
        if report.readable:
            settings: dict[str, Any] = {"threads": threads, "memory_limit": MEMORY_LIMIT, "temp_directory": spill}
            with duckdb.connect(config=settings) as con:
                con.execute("SET TimeZone = 'UTC'")
                try:
                    day = _Day(con, manifest, report, spec, rules, policies, last_dt, scratch / "quarantine", bar)
                except (duckdb.IOException, duckdb.InvalidInputException, duckdb.DataError) as error:
                    _unreadable(report, error)
                    shutil.rmtree(scratch / "quarantine", ignore_errors=True)
        if day is not None:
            sketch.write(scratch / sketch.FILE, day.sketch)
            sketches = [sketch.read(out_dir / f"dt={v.dt}" / f"r{v.revision}" / sketch.FILE) for v in past]
            drift = judge({e.key: e for e in day.sketch}, sketches, [v.drift for v in past], limits)
        built = Path(spill) / "site"
        verdict = _judge(manifest, report, day, drift, past, rules, spec, expectations_dir, built)
        bar.update()
        (scratch / "verdict.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=2) + b"\n")
        (scratch / "summary.html").write_text(render(verdict, docs.links(verdict, docs_dir, folder)))
        page = docs_dir / docs.summary_path(verdict)
        docs.add(docs_dir, built, verdict, render(verdict, docs.links(verdict, docs_dir, page.parent)))
        bar.update()
    return verdict


class _Day:
    """What the rows of a readable day say: rule counts, frames for Great Expectations, figures, the sketch."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        manifest: Manifest,
        report: FileReport,
        spec: FusionSpec,
        rules: Mapping[Table, list[Rule]],
        policies: Mapping[str, Policy] | None,
        last_dt: str | None,
        quarantine: Path,
        bar: tqdm,
    ) -> None:
        create_views(con, requests=report.paths["requests"], feedback=report.paths["feedback"], spec=spec)
        self.frames: dict[str, Any] = {}
        self.bad: dict[Table, dict[str, tuple[int, int]]] = {}
        self.quarantined: dict[str, int] = {}
        quarantine.mkdir(parents=True)
        flags = [b for b in spec.behaviours if b != "watch"]
        wanted: dict[Table, dict[str, str]] = {
            "requests": scalar_columns(spec),
            "feedback": {"request_hash": "hash(request_id)"} | {c: f'"{c}"' for c in ("item_id", "watch_s", *flags)},
        }
        for table in TABLES:
            ruled = list(dict.fromkeys(r.column for r in rules[table]))
            columns = {c: c for c in ruled} | wanted[table]
            chosen = ", ".join(f'{sql} AS "{name}"' for name, sql in columns.items())
            con.execute(f"CREATE TEMP TABLE {table}_scalar AS SELECT file, file_row, {chosen} FROM {table}_flat")
            self.bad[table] = count_broken(con, table, rules[table], f"{table}_scalar")
            mark_broken(con, table, rules[table], f"{table}_scalar")
            self.quarantined[table] = con.execute(f"SELECT count(*) FROM {table}_broken").fetchall()[0][0]
            _write_quarantine(con, table, quarantine / f"{table}.parquet", manifest.revision)
            self.frames[table] = page_frame(con, table, ruled, f"{table}_scalar", manifest.rows(table))
            con.execute(f"CREATE TEMP VIEW {table}_good AS SELECT * FROM {table}_scalar WHERE {good_sql(rules[table])}")
            bar.update()
        self.figures, self.profile = day_figures(con, manifest, spec, self.quarantined, policies, last_dt)
        self.sketch = sketch.take(con, spec, int(self.figures["users"] or 0))
        bar.update()


def _judge(
    manifest: Manifest,
    report: FileReport,
    day: _Day | None,
    drift: Drift,
    past: Sequence[Verdict],
    rules: Mapping[Table, list[Rule]],
    spec: FusionSpec,
    expectations_dir: Path,
    pages_dir: Path,
) -> Verdict:
    import pandas as pd

    frames: dict[str, Any] = {"files": pd.DataFrame([report.counts])}
    absent = {f"rate_{b}": f"surface {manifest.surface} reports no `{b}`" for b in _unknown_rates(expectations_dir, spec)}
    counts: dict[str, int] = {table: manifest.rows(table) for table in TABLES}
    if day is not None:
        measured = {name: value for name, value in day.figures.items() if value is not None}
        absent |= {name: "nothing to measure it on" for name in day.figures if name not in measured} | drift.absent
        # an empty table has no row to break a rule, and pandas no type to compare
        frames |= {table: frame for table, frame in day.frames.items() if len(frame)}
        frames["day"] = pd.DataFrame([measured])
        frames["drift"] = _drift_frame(drift)
        counts |= {f"quarantined_{table}": rows for table, rows in day.quarantined.items()}
        counts["late"] = manifest.late_rows
    else:
        counts |= {f"quarantined_{table}": 0 for table in TABLES}
    history = [v.metrics for v in past]
    judged = Judged(manifest.surface, manifest.dt, manifest.revision, history, names(spec), absent)
    checks, skipped = run_suites(frames, expectations_dir, judged, pages_dir)
    if day is not None:
        checks = [over_all_rows(c, rules[c.suite], day.bad[c.suite]) if c.suite in TABLES else c for c in checks]
    failed = [c for c in checks if not c.success]
    reasons = [_sentence(c, report, drift) for severity in ("critical", "warning") for c in failed if c.severity == severity]
    status = status_of(checks)
    if not report.readable and status != "critical":
        raise InputError(f"expectations: files.json of {expectations_dir} lets a day pass that cannot be read; make it critical")
    return Verdict(
        surface=manifest.surface,
        dt=manifest.dt,
        revision=manifest.revision,
        status=status,
        reasons=reasons,
        counts=counts,
        quarantined={t: {r: bad for r, (bad, _) in day.bad[t].items() if bad} for t in TABLES} if day else {},
        metrics=day.figures if day else {},
        checks=checks,
        drift=drift.moved,
        skipped=skipped,
        profile=day.profile | _trend(manifest.dt, day.figures, past) | {"drift": drift.counts} if day else {},
    )


def _drift_frame(drift: Drift) -> pd.DataFrame:
    """A row a feature, in the column of its kind: its violating days."""
    import pandas as pd

    kinds = dict.fromkeys(m.kind for m in drift.moved)
    rows = [{k: float(n) if k == m.kind else None for k in kinds} for m, n in zip(drift.moved, drift.counts, strict=True)]
    return pd.DataFrame(rows, columns=list(kinds), dtype=float)


def _trend(dt: str, figures: Mapping[str, float | None], past: Sequence[Verdict]) -> dict[str, object]:
    """What the page draws over days: each figure on the last days, this one at the end."""
    last = past[-TREND_DAYS + 1 :]
    shown = [name for name in figures if name in TREND or name.startswith("rate_")]
    lines = {name: [*(v.metrics.get(name) for v in last), figures[name]] for name in shown}
    return {"trend": {"days": [*(v.dt for v in last), dt], "figures": lines}}


def _write_quarantine(con: duckdb.DuckDBPyConnection, table: Table, path: Path, revision: int) -> None:
    target = str(path).replace("'", "''")
    con.execute(
        f"""COPY (SELECT r.* EXCLUDE (file), parse_filename(r.file) AS file, {revision}::INT AS revision, b.broken
                  FROM {table}_raw r JOIN {table}_broken b ON r.file = b.file AND r.file_row = b.file_row
                  ORDER BY r.file, r.file_row) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"""
    )


def _sentence(check: Check, report: FileReport, drift: Drift) -> str:
    if check.suite == "files":
        return f"{check.reason}: {'; '.join(report.details[check.rule][:8])}"
    if check.suite == "drift":
        return f"{check.reason}: {_drifting(check, drift)} (drift.{check.rule})"
    return check.sentence


def _drifting(check: Check, drift: Drift) -> str:
    """The features with most violating days of the check's kind, in words."""
    found = [(n, m) for m, n in zip(drift.moved, drift.counts, strict=True) if n and m.kind == check.rule]
    found.sort(key=lambda pair: (-pair[0], -pair[1].psi))
    words = [
        f"{m.name}{f' ({m.group})' if m.group else ''} mean {m.mean:.4g} (usually {m.usual:.4g}), PSI {m.psi:.2f}, "
        f"{n} of {drift.limits[check.rule].of_days} days"
        for n, m in found[: check.bad]
    ]
    return "; ".join(words[:5]) + (f"; and {len(words) - 5} more" if len(words) > 5 else "")


def _unknown_rates(expectations_dir: Path, spec: FusionSpec) -> list[str]:
    """Behaviours that `day.json` bounds and this surface does not report; any other unknown figure is a mistake."""
    columns = {str(e["kwargs"].get("column")) for e in read_suite(expectations_dir, "day")} - set(names(spec))
    return sorted(c.removeprefix("rate_") for c in columns if c.startswith("rate_"))


def _unreadable(report: FileReport, error: Exception) -> None:
    report.counts["unreadable_files"] += 1
    report.details["unreadable_files"].append(str(error).splitlines()[0])
