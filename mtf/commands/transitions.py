"""`mtf transitions build`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def transitions() -> None:
    """Build transitions from logs: what training and evaluation read."""


@transitions.command()
@click.option("--logs", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False), help="Sealed days.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the days' partitions go.")
@click.option("--dt", default=None, help="Only this day, YYYY-MM-DD (default: every sealed day).")
@click.option("--engine", type=click.Choice(["duckdb", "spark"]), default="duckdb", show_default=True, help="What computes it.")
@click.option("--spec", "spec_file", type=click.Path(path_type=Path), default=None, help="Default: LOGS/spec.json.")
@click.option("--expectations", type=click.Path(path_type=Path), default=None, help="Rules; default: MTF_EXPECTATIONS_DIR.")
@click.option("--quality", type=click.Path(path_type=Path), default=None, help="Verdicts and pages; default: OUT/quality.")
def build(
    logs: Path,
    out: Path,
    dt: str | None,
    engine: str,
    spec_file: Path | None,
    expectations: Path | None,
    quality: Path | None,
) -> None:
    """Join feedback to requests, cut sessions, and write one row a shown request with its successor.

    Rows that break a row rule of the expectations are dropped and counted by reason, the same ones that `mtf validate`
    sets aside. A session that may still go on at the day's end is left to the next day. A day that is built already from
    the same inputs is not built again. What is built is judged by expectations/transitions.json and sessions.json: where a
    critical rule fails the dataset may not be published (exit code 3).

    Memory does not grow with the number of days: about 2 GiB for 2 M requests a day at full width; what does not fit is
    spilled into OUT. MTF_THREADS (default 2) says how many threads compute.

    The engine is DuckDB, in this process. Spark gives the same bytes, needs Java 17 and the `spark` extra (sh infra/setup.sh
    dev,spark), and pays where one machine is too small for a day; on one machine DuckDB is several times faster. It runs as
    local[MTF_THREADS], or on the master that SPARK_MASTER names. LOGS and OUT must then lie on a disk that its workers see.

    \b
    Examples:
      mtf transitions build --logs var/tour/logs --out var/tour/transitions
      mtf transitions build --logs LOGS --out OUT --dt 2026-03-02          # one day, and later ones that its carry changes
      mtf transitions build --logs LOGS --out OUT --engine spark
      SPARK_MASTER=spark://127.0.0.1:7077 mtf transitions build --logs LOGS --out OUT --engine spark
    """
    from mtf.settings import Settings
    from mtf.spec import FusionSpec
    from mtf.transitions.build import build_all
    from mtf.transitions.judge import judge_built
    from mtf.transitions.pool import read_pool

    settings = Settings()
    spec = FusionSpec.read(spec_file or logs / "spec.json")
    rules = expectations or settings.expectations_dir
    builds = build_all(
        logs,
        out,
        days=[dt] if dt else None,
        spec=spec,
        expectations_dir=rules,
        engine=engine,
        threads=settings.threads,
        progress=True,
    )
    for found in builds:
        click.echo(f"{found.dt}  {found.rows} transitions in {found.sessions} sessions; {found.carried} requests carried over")
        for reason, n in found.dropped.items():
            click.echo(f"            dropped {n} rows: {reason}")
    pool = read_pool(out)
    click.echo(f"pool        {pool.rows} transitions of {len(pool.days)} days, md5 {pool.md5}")
    verdicts = judge_built(logs, out, quality or out / "quality", spec=spec, expectations_dir=rules, threads=settings.threads)
    for verdict in verdicts:
        for reason in verdict.reasons:
            click.echo(f"{verdict.dt}  {verdict.status}: {reason}")
    if any(verdict.status == "critical" for verdict in verdicts):
        raise click.exceptions.Exit(3)
