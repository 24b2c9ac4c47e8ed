"""`mtf train`."""

from __future__ import annotations

from pathlib import Path

import click

NAMES = (
    "slate_replay", "linear_advantage", "integrated_rl", "unified_rl", "naive", "batch_rl", "cql_sac", "iql", "td3_bc", "td3",
    "ddpg", "es", "plug_in", "corner", "bc",
)  # fmt: skip
FOLDER = click.Path(path_type=Path)
SEED = click.IntRange(0, 2**31 - 2)


def _explain(context: click.Context, _: click.Parameter, name: str | None) -> None:
    """Print what an algorithm does and what it can be set to."""
    if name is not None:
        from mtf.learning.config import explained
        from mtf.learning.registry import ALGORITHMS, algorithm

        click.echo(f"{name}: {ALGORITHMS[name][1]}\n\n{explained(algorithm(name).config)}")
        context.exit()


@click.command()
@click.option("--transitions", required=True, type=FOLDER, help="Folder of transitions, or one Parquet file.")
@click.option("--algorithm", required=True, type=click.Choice(NAMES), help="Who learns.")
@click.option(
    "--baseline",
    help="The policy deployed now: a bundle, `bootstrap` (the spec's start) or `logged` (each row's own centre, where all "
    "explored rows are of one policy). Required of algorithms that stay in its box: all but bc.",
)
@click.option("--out", required=True, type=FOLDER, help="Where the bundle goes, with the report train.json.")
@click.option("--spec", "spec_file", type=FOLDER, help="FusionSpec; default: spec.json beside the transitions.")
@click.option("--exploration", type=FOLDER, help="exploration.json of the box; default: that of the baseline's latest rows.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps, for algorithms that take steps.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Same data, settings, seed: same bundle.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the algorithm; may be repeated.")
@click.option(
    "--explain",
    type=click.Choice(NAMES),
    is_eager=True,
    expose_value=False,
    callback=_explain,
    help="Print its settings.",
)
@click.option("--checkpoints", type=FOLDER, help="Write checkpoints here, and go on from the newest one.")
@click.option("--dataset-md5", help="Kept in the bundle's lineage.")
@click.option("--dataset-revision", help="Kept in the bundle's lineage.")
def train(
    transitions: Path,
    algorithm: str,
    baseline: str | None,
    out: Path,
    spec_file: Path | None,
    exploration: Path | None,
    steps: int | None,
    seed: int,
    settings: tuple[str, ...],
    checkpoints: Path | None,
    dataset_md5: str | None,
    dataset_revision: str | None,
) -> None:
    """Train a policy that is better than the deployed one, inside its exploration box, and write it as a bundle.

    Reads only the training users. slate_replay learns most from little data, where all candidates of explored requests
    were logged; linear_advantage needs only actions and rewards; integrated_rl and unified_rl are the paper's ensemble of
    critics and boxed actor; the others are comparators (docs/method.md). --explain NAME prints what can be --set. Everything
    measured on the way is in OUT/train.json, its warnings are printed. With --checkpoints a run that was killed goes on where
    its last checkpoint was.

    \b
    Example:
      mtf train --transitions var/tour/transitions --algorithm slate_replay --baseline bootstrap --out var/tour/policy
      mtf train --transitions logs.parquet --baseline logged --algorithm integrated_rl --set critics=24 --out var/policy
    """
    from mtf.learning import parallel
    from mtf.learning.registry import algorithm as find
    from mtf.learning.run import train as run
    from mtf.spec import FusionSpec

    if baseline == "":
        raise click.BadParameter("'': an empty name; give a bundle, `bootstrap` or `logged`", param_hint="--baseline")
    if baseline is None and find(algorithm).config.needs_exploration:
        raise click.UsageError(
            "--baseline is missing: the new policy stays in the box around the one that is deployed now; give its bundle, "
            "`bootstrap` (the spec's start), or `logged` where all explored rows are of one policy"
        )
    overrides: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r}: write KEY=VALUE", param_hint="--set")
        if overrides.setdefault(name, value) != value:
            raise click.BadParameter(f"{name} is {overrides[name]} and {value}; give it once", param_hint="--set")
    result = run(
        transitions,
        out,
        algorithm=algorithm,
        baseline="logged" if baseline is None else baseline,
        spec=FusionSpec.read(spec_file) if spec_file is not None else None,
        exploration=exploration,
        steps=steps,
        seed=seed,
        overrides=overrides,
        checkpoints=checkpoints,
        dataset_md5=dataset_md5,
        dataset_revision=dataset_revision,
    )
    if not parallel.first():
        return
    report = result.report
    rows, step = report["rows"], report["step"]
    click.echo(f"policy   {result.sha}")
    click.echo(
        f"rows     {rows['used']:,} ({rows['explored']:,} explored) in {rows['sessions']:,} sessions of {rows['users']:,} users"
    )
    wanted = f"{step['of_wanted']:.0%} of what it wanted, " if "of_wanted" in step else ""
    edge = f"{step['edge_share']:.0%} of dimensions at its edge"
    click.echo(f"step     RMS position in the box {step['rms_y']:.2f}, {wanted}{edge}")
    if worth := report["algorithm"].get("plug_in_worth"):
        click.echo(f"scores   rewards bear out {worth['value']:.2f} (standard deviation {worth['sd']:.2f}) of what they promise")
    click.echo(f"seconds  {report['seconds']['total']:.0f}")
    for warning in report["warnings"]:
        click.echo(f"warning  {warning}", err=True)
