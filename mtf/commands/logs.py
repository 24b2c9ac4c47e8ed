"""`mtf seal` and `mtf logs`: from the spool, or from other people's files, to sealed days; and what is sealed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mtf.logs.importing import Imported

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--dt", required=True, help="Day of the event clock, YYYY-MM-DD.")
@click.option("--surface", default="feed", show_default=True, help="Which feed.")
@click.option("--spool", "spool_dir", type=FOLDER, help="The spool [default: the state folder's].")
@click.option("--out", "logs_dir", type=FOLDER, help="Where sealed days go [default: the state folder's].")
@click.option("--spec", "spec_path", type=click.Path(path_type=Path), help="FusionSpec [default: the surface's].")
@click.option("--grace", "grace_s", default=1800.0, show_default=True, help="Seconds that the clock must be past the day's end.")
def seal(dt: str, surface: str, spool_dir: Path | None, logs_dir: Path | None, spec_path: Path | None, grace_s: float) -> None:
    """Seal a day: its rows in the spool become an immutable revision under --out.

    Refuses while the event clock has not passed the day's end by the grace time. Sealing again changes nothing, unless
    rows came late: then a new revision holds them too.

    \b
      mtf seal --dt 2026-01-01
    """
    from mtf.logs.seal import seal_day
    from mtf.settings import Settings
    from mtf.spec import FusionSpec

    settings = Settings()
    spec = FusionSpec.read(spec_path or settings.state_dir / "surfaces" / surface / "spec.json")
    out = logs_dir or settings.logs_dir(surface)
    # of another spool nobody knows here what keeps its clock
    spool, clock_us = (spool_dir, 0) if spool_dir else (settings.spool_dir(surface), settings.clock_us)
    manifest = seal_day(spool, out, dt, spec, surface=surface, grace_s=grace_s, clock_us=clock_us)
    click.echo(
        f"{dt} r{manifest.revision}: {manifest.rows('requests'):,} requests, {manifest.rows('feedback'):,} feedback rows"
        + (f", {manifest.late_rows:,} of them late" if manifest.late_rows else "")
        + f" in {out}"
    )


@click.group()
def logs() -> None:
    """Sealed days: bring other people's logs, list what is there."""


@logs.command("import")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--format", "log_format", required=True, type=click.Choice(["kuairand", "parquet"]), help="What the files are.")
@click.option("--map", "map_path", type=click.Path(path_type=Path), help="The column map [default for kuairand: its own].")
@click.option("--out", "out_dir", required=True, type=FOLDER, help="Where sealed days go.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be mapped, filled, dropped and left unread.")
def import_(folder: Path, log_format: str, map_path: Path | None, out_dir: Path, dry_run: bool) -> None:
    """Turn exposure and feedback files of FOLDER into sealed days, by a column map.

    docs/import.md walks through one. What a log does not hold is filled, and said: without propensities its days validate,
    build, report and can be cloned, and the gate says inconclusive.

    \b
    Example:
      mtf logs import ~/kuairand --format kuairand --out var/kuairand/logs --dry-run
      mtf logs import ~/ours --format parquet --map map.json --out var/ours/logs
    """
    from mtf.logs.importing import import_logs, map_of
    from mtf.settings import Settings

    found = import_logs(folder, map_of(log_format, map_path), None if dry_run else out_dir, threads=Settings().threads)
    _say(found)
    for manifest in found.manifests:
        click.echo(f"{manifest.dt}  r{manifest.revision}  {manifest.rows('requests'):>10,} requests")
    click.echo("nothing was written (--dry-run)" if dry_run else f"sealed days and spec.json: {out_dir}")


def _say(found: Imported) -> None:
    for section, rows in found.read.items():
        click.echo(f"read     {rows:,} rows of {section}")
    for reason, rows in found.dropped.items():
        click.echo(f"dropped  {rows:,} rows of {reason}")
    for section, columns in found.unused.items():
        if columns:
            click.echo(f"unread   {section}: {', '.join(columns)}")
    for target, what in found.filled.items():
        click.echo(f"filled   {target}: {what}")
    click.echo(
        f"makes    {found.requests:,} requests and {found.feedback:,} feedback rows of {found.users:,} users on "
        f"{len(found.days)} days, {min(found.days)} to {max(found.days)}"
    )
    explored, candidates = found.explored / found.requests, found.with_candidates / found.requests
    click.echo(f"         {explored:.1%} of the requests explored, {candidates:.1%} have their candidates")
    for note in found.notes:
        click.echo(f"note     {note}")


@logs.command("list")
@click.option("--logs", "logs_dir", type=FOLDER, help="Folder of sealed days [default: the state folder's].")
@click.option("--surface", default="feed", show_default=True, help="Which feed.")
def list_(logs_dir: Path | None, surface: str) -> None:
    """List the sealed days with their newest revision.

    \b
      mtf logs list --logs var/tour/logs
    """
    from mtf.logs.days import list_days, read_manifest
    from mtf.settings import Settings

    folder = logs_dir or Settings().logs_dir(surface)
    days = list_days(folder)
    if not days:
        click.echo(f"no sealed day in {folder}", err=True)
    for dt in days:
        manifest = read_manifest(folder, dt)
        click.echo(
            f"{dt}  r{manifest.revision}  {manifest.rows('requests'):>10,} requests  {manifest.rows('feedback'):>11,} feedback  "
            f"sealed {manifest.sealed_at:%Y-%m-%d %H:%M:%S}"
        )
