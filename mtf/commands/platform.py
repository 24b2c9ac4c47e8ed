"""`mtf up | down | status | doctor | clean`: the platform of one machine; `mtf demo | verify`: the main job on it."""

from __future__ import annotations

from pathlib import Path

import click

from mtf.settings import Settings


@click.command()
@click.option(
    "--spec", "spec_path", type=click.Path(path_type=Path, exists=True), help="FusionSpec of the surface (first start)."
)
@click.option("--world", "world_dir", type=click.Path(path_type=Path, exists=True), help="A world's folder, for its spec.json.")
@click.option(
    "--box",
    default=0.2,
    type=click.FloatRange(0, 1),
    show_default=True,
    help="Half-width of the first exploration box; 0 explores nothing.",
)
def up(spec_path: Path | None, world_dir: Path | None, box: float) -> None:
    """Start the platform and leave it running.

    Airflow, MLflow, the object store, the fusion server and the rollout controller, under supervisord, on loopback only; a
    default port that is taken is replaced by the next free one. Run it again to start what does not run. MTF_STATE_DIR says
    where everything is kept (default var/), MTF_CLOCK=simulated lets callers set the clock.

    \b
    Example:
      mtf world make --out var/world
      mtf up --world var/world
    """
    from mtf.platform.run import up as start
    from mtf.rollout.controller import read_config

    if spec_path is not None and world_dir is not None:
        raise click.UsageError("give --spec or --world, not both")
    settings = Settings()
    click.echo(f"starting the platform in {settings.state_dir}")
    arms = read_config(settings.state_dir / "surfaces" / settings.surfaces[0] / "rollout.json").exploring
    spec = world_dir / "spec.json" if world_dir else spec_path
    start(settings, spec=spec, arms=arms, half_width=box, say=click.echo)
    show_addresses(Settings())


@click.command()
def down() -> None:
    """Stop all of the platform, also after its process manager was killed.

    Finds every process by the mark that `mtf up` left in its environment; touches no others. What was written stays:
    `mtf up` goes on from there.
    """
    from mtf.platform.run import down as stop

    stopped = stop(Settings())
    click.echo(f"stopped {stopped} processes" if stopped else "nothing runs")


@click.command()
def status() -> None:
    """What runs, where, and how it is.

    Exit code 1 where something that should run does not, or is not well.
    """
    from mtf.platform.run import status as look

    settings = Settings()
    rows = look(settings)
    if not rows:
        click.echo(f"no platform runs in {settings.state_dir}; start it with `mtf up`")
        raise click.exceptions.Exit(1)
    click.echo(f"{'program':<22} {'state':<9} {'health':<9} {'pid':>7} {'MB':>6}  address")
    for row in rows:
        click.echo(f"{row.program:<22} {row.state:<9} {row.health:<9} {row.pid:>7} {row.megabytes:>6}  {row.url}")
    click.echo(f"{'':<22} {'':<9} {'':<9} {'':>7} {sum(row.megabytes for row in rows):>6}")
    show_addresses(settings)
    if any(row.state != "running" or row.health == "not well" for row in rows):
        raise click.exceptions.Exit(1)


@click.command()
def doctor() -> None:
    """What is missing on this machine, and how to mend it.

    Exit code 1 where something that the platform needs is missing; what only an extra needs is a note.
    """
    from mtf.platform.doctor import examine

    findings = examine(Settings())
    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    for finding in findings:
        click.echo(f"{marks[finding.level]}  {finding.what:<18} {finding.found}")
        if finding.mend:
            click.echo(f"{'':24} -> {finding.mend}")
    if any(finding.level == "bad" for finding in findings):
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--force", is_flag=True, help="Delete although a dataset version is not pushed; stops servers that run.")
def clean(force: bool) -> None:
    """Delete the state folder.

    Refuses while a server of it runs or a dataset version lies only on this disk, unless --force.
    """
    from mtf.platform.clean import clean as delete

    settings = Settings()
    click.echo(f"deleted {settings.state_dir}" if delete(settings, force=force) else f"nothing to delete in {settings.state_dir}")


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="How many rounds to play.")
@click.option(
    "--world", "world_dir", type=click.Path(path_type=Path, exists=True), help="A world's folder [default: parametric]."
)
@click.option("--explore-users", type=click.IntRange(min=100), help="Users of an explore day [default: 36000].")
@click.option("--canary-users", type=click.IntRange(min=100), help="Users of a canary day [default: 40000].")
def demo(rounds: int, world_dir: Path | None, explore_users: int | None, canary_users: int | None) -> None:
    """The whole loop, several rounds, in real Airflow.

    Starts the platform where it does not run, plays simulated users against it day by day, seals each day and watches what the
    chain makes of it: dataset, training, gate, canary, decision. Refused, inconclusive and rolled back are results; the
    exit code is 1 only where something failed. Writes var/demo/summary.json.

    What a round can show depends on how many users a day has: the column `detectable` says it. The defaults are sized for the
    parametric world; a world whose rewards are noisier or whose headroom is smaller needs more of them.

    \b
    Example:
      mtf demo --rounds 3
      mtf demo --rounds 3 --world var/fitted --explore-users 80000 --canary-users 100000
    """
    from mtf.demo.report import table
    from mtf.demo.run import DemoConfig
    from mtf.demo.run import demo as play

    sizes = DemoConfig()
    config = DemoConfig(explore_users=explore_users or sizes.explore_users, canary_users=canary_users or sizes.canary_users)
    summary = play(Settings(), rounds=rounds, world=world_dir, config=config, say=click.echo)
    click.echo("\n" + table(summary))
    for name, url in summary.urls.items():
        click.echo(f"{name.replace('_', ' '):<14} {url}")
    click.echo("recompute every number: mtf verify   stop the platform: mtf down")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True), required=False)
def verify(folder: Path | None) -> None:
    """Recompute every number of a demo's summary from MLflow, DVC and the logs.

    FOLDER is where the demo wrote its summary.json (default: demo/ in the state folder). The platform must be up. Exit code 1
    on any difference.
    """
    from mtf.demo.summary import read_summary
    from mtf.demo.verify import verify as recompute
    from mtf.pipeline import code_version

    folder = folder or Settings().state_dir / "demo"
    checks = recompute(folder, progress=lambda line: click.echo(line, err=True))
    wrong = [check for check in checks if not check.equal]
    for check in wrong:
        click.echo(f"{check.name}: the summary says {check.recorded}, {check.source} gives {check.recomputed}")
    if wrong:
        made, now = read_summary(folder / "summary.json").code, code_version()
        if made != now:
            click.echo(f"the summary was made by the code {made}; this is {now}: check that one out to compare like with like")
        raise click.exceptions.Exit(1)
    click.echo(f"all {len(checks)} numbers agree")


def show_addresses(settings: Settings) -> None:
    """The pages and how to log in."""
    import json

    from mtf.registry.client import registry_page

    models = settings.mlflow_url and registry_page(settings.mlflow_url, *settings.surfaces)
    pages = (
        ("Airflow", settings.airflow_url),
        ("MLflow", models),
        ("fusion server", settings.serve_url),
        ("S3", settings.s3_endpoint),
    )
    for title, address in pages:
        if address:
            click.echo(f"  {title:<14} {address}")
    if settings.airflow_password_file and settings.airflow_password_file.exists():
        password = json.loads(settings.airflow_password_file.read_text())["admin"]
        click.echo(f"  Airflow login  admin / {password}")
