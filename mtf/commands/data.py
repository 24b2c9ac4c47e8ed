"""`mtf data version | log | checkout`: versions of the pooled dataset."""

from __future__ import annotations

from pathlib import Path

import click

from mtf.settings import Settings

surface_option = click.option("--surface", default="feed", show_default=True, help="Which feed.")


@click.group()
def data() -> None:
    """Versions of the pooled dataset, in a git + DVC repository of its own under the state folder.

    A version is pushed to the store and verified there, object by object, before it gets its tag.
    """


@data.command()
@click.option("--dt", required=True, help="The day that the version is of, YYYY-MM-DD.")
@click.option("--transitions", type=click.Path(path_type=Path, exists=True), help="Built days [default: the state folder's].")
@surface_option
def version(dt: str, transitions: Path | None, surface: str) -> None:
    """Publish the built days as a version: add, push, verify, commit, tag.

    Content that the newest version has already gives that version.

    \b
    Example:
      mtf data version --dt 2026-03-02 --transitions var/tour/transitions
    """
    from mtf.datasets import version_dataset

    settings = Settings()
    found = version_dataset(settings, surface, dt, transitions or settings.transitions_dir(surface))
    click.echo(f"{found.tag}  {found.md5}  {found.rows:,} rows  commit {found.commit[:12]}")


@data.command()
@surface_option
def log(surface: str) -> None:
    """The published versions, newest first."""
    from mtf import datasets

    found = datasets.log(Settings(), surface)
    if not found:
        click.echo("no version was published yet; `mtf data version` publishes one")
    for revision in found:
        click.echo(f"{revision.tag:<28} {revision.md5}  {revision.rows:>12,} rows  commit {revision.commit[:12]}")


@data.command()
@click.argument("rev")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write, whole or not at all.")
@surface_option
def checkout(rev: str, out: Path, surface: str) -> None:
    """Write the dataset version REV (a tag of `mtf data log`) to a folder.

    Works after the local logs, transitions and cache were deleted: the bytes then come from the store.

    \b
    Example:
      mtf data checkout 2026-03-02.r1 --out var/again
    """
    from mtf.datasets import checkout as write

    click.echo(write(Settings(), surface, rev, out))
