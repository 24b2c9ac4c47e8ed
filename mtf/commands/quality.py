"""`mtf validate` and `mtf quarantine`: is a day's data fit to train on, and what was set aside."""

from __future__ import annotations

from pathlib import Path

import click

from mtf.settings import Settings

out_option = click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of verdicts, quarantine and pages (`mtf validate --out`).",
)


@click.command()
@click.option("--logs", "logs_dir", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of sealed days.")
@out_option
@click.option("--dt", help="One day, YYYY-MM-DD [default: every sealed day].")
def validate(logs_dir: Path, out: Path, dt: str | None) -> None:
    """Check sealed days against the expectations; set bad rows aside; write verdicts and pages.

    Rules stand in expectations/ and nowhere else. A critical one that fails stops the chain (exit code 3), a warning is
    shown. The pages: OUT/site/index.html, readable offline.

    \b
    Example:
      mtf validate --logs var/tour/logs --out var/tour/quality
    """
    from mtf.errors import InputError
    from mtf.logs.days import list_days
    from mtf.quality import validate_day
    from mtf.spec import FusionSpec

    settings = Settings()
    days = [dt] if dt else list_days(logs_dir)
    if not days:
        raise InputError(f"logs: {logs_dir} holds no sealed day; give the folder that `mtf simulate --out` or `mtf seal` wrote")
    spec = FusionSpec.read(logs_dir / "spec.json")
    verdicts = [
        validate_day(
            logs_dir,
            day,
            out,
            spec=spec,
            expectations_dir=settings.expectations_dir,
            docs_dir=_site(settings, out, spec.surface),
            threads=settings.threads,
            progress=True,
        )
        for day in days
    ]
    for verdict in verdicts:
        aside = verdict.counts["quarantined_requests"] + verdict.counts["quarantined_feedback"]
        click.echo(
            f"{verdict.dt}  {verdict.status:<8}  {verdict.counts['requests']:,} requests, "
            f"{verdict.counts['feedback']:,} feedback, {aside:,} rows set aside"
        )
        for reason in verdict.reasons:
            click.echo(f"            {reason}")
    click.echo(f"pages: {(_site(settings, out, spec.surface) or out / 'site') / 'index.html'}")
    if any(verdict.status == "critical" for verdict in verdicts):
        raise click.exceptions.Exit(3)


@click.group()
def quarantine() -> None:
    """Rows that were set aside: kept with the rules that they broke, never lost."""


@quarantine.command("list")
@out_option
@click.option("--dt", help="One day [default: all].")
@click.option("--rows", default=5, show_default=True, help="Rows to show a day and table.")
def list_rows(out: Path, dt: str | None, rows: int) -> None:
    """List what was set aside, by day, table and rule, with a few rows of each.

    \b
    Example:
      mtf quarantine list --out var/tour/quality --dt 2026-01-01
    """
    import pyarrow.parquet as pq

    from mtf.quality.quarantine import list_piles

    piles = list_piles(out, dt)
    for pile in piles:
        click.echo(f"{pile.dt} r{pile.revision}  {pile.rows:,} rows of {pile.table}, in {pile.path}")
        for rule, n in sorted(pile.rules.items(), key=lambda item: -item[1]):
            click.echo(f"    {n:>9,}  {rule}")
        for row in pq.read_table(pile.path, columns=["request_id", "broken", "file"]).slice(0, rows).to_pylist():
            click.echo(f"    request {row['request_id']} of {row['file']}: {', '.join(row['broken'])}")
    if not piles:
        click.echo("nothing is set aside")


@quarantine.command()
@click.option("--logs", "logs_dir", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of sealed days.")
@out_option
@click.option("--dt", required=True, help="The day, YYYY-MM-DD.")
@click.option(
    "--mended",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Parquet with rows of a pile, their values mended: they take the broken rows' place in a new revision of the day.",
)
def replay(logs_dir: Path, out: Path, dt: str, mended: Path | None) -> None:
    """Judge a day's set-aside rows again, after a rule or the rows were mended, and let go of those that pass.

    What is let go is in the day's next build of transitions again. A sealed revision is never changed: mended rows make a new
    one. Doing it again changes nothing. Exit code 3 where the day is critical now.

    \b
    Example:
      mtf quarantine replay --logs var/tour/logs --out var/tour/quality --dt 2026-01-01
      mtf quarantine replay --logs var/tour/logs --out var/tour/quality --dt 2026-01-01 --mended mended.parquet
    """
    from mtf.quality.quarantine import mend_day, replay_day
    from mtf.spec import FusionSpec

    settings, spec = Settings(), FusionSpec.read(logs_dir / "spec.json")
    if mended is not None:
        manifest = mend_day(logs_dir, dt, out, mended, spec=spec)
        click.echo(f"{dt} r{manifest.revision} holds the rows of {mended}")
    found = replay_day(
        logs_dir,
        dt,
        out,
        spec=spec,
        expectations_dir=settings.expectations_dir,
        docs_dir=_site(settings, out, spec.surface),
        progress=True,
    )
    for table, n in found.released.items():
        click.echo(f"{table}: {n:,} let go, {found.kept[table]:,} still set aside, {found.added[table]:,} set aside anew")
    if any(found.released.values()):
        click.echo("build the day again to use them: `mtf transitions build`")
    if found.verdict.status == "critical":
        raise click.exceptions.Exit(3)


def _site(settings: Settings, out: Path, surface: str) -> Path | None:
    """The platform's one site where `out` is the platform's own folder, else OUT/site (None)."""
    return settings.docs_dir if out.resolve() == settings.quality_dir(surface) else None
