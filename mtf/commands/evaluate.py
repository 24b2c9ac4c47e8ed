"""`mtf evaluate` and `mtf power`."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--transitions", required=True, type=FOLDER, help="Folder of transitions, or one Parquet file.")
@click.option("--policy", required=True, type=FOLDER, help="The candidate: a bundle that `mtf train` wrote.")
@click.option(
    "--baseline",
    required=True,
    help="The deployed policy, around which the rows explored: a bundle, `bootstrap` (the spec's start) or `logged` "
    "(the rows' own centre).",
)
@click.option("--spec", "spec_file", type=FOLDER, help="FusionSpec; default: spec.json beside the transitions.")
@click.option("--out", required=True, type=FOLDER, help="Folder for report.json and report.html.")
def evaluate(transitions: Path, policy: Path, baseline: str, spec_file: Path | None, out: Path) -> None:
    """Judge a policy from logs alone: how much better is it than the deployed one, and may it go to a canary?

    Reads only the gate's users (half of all users, for ever; training never sees them), and of their sessions only those
    explored around the baseline. The verdict is `pass` where the 96 % interval of the lift lies above 0 and every check
    holds, `fail` where it lies below 0 or the policy leaves the explored box, else `inconclusive` with the reason.
    Exit code 0 after a pass, 3 after any other verdict; the report is written in each case.

    \b
    Example:
      mtf evaluate --transitions var/tour/transitions --policy var/tour/policy --baseline bootstrap --out var/tour/report
    """
    from mtf.evaluation.run import evaluate as run
    from mtf.spec import FusionSpec

    spec = FusionSpec.read(spec_file) if spec_file is not None else None
    report = run(transitions, policy, baseline, out, spec=spec, progress=True)
    click.echo(f"{report.verdict}: {report.reason}")
    click.echo(f"{report.sessions:,} sessions of {report.users:,} gate users; report: {out / 'report.html'}")
    if report.verdict != "pass":
        raise click.exceptions.Exit(3)


@click.command()
@click.option("--transitions", required=True, type=FOLDER, help="Folder of transitions, or one Parquet file.")
@click.option("--spec", "spec_file", type=FOLDER, help="FusionSpec; default: spec.json beside the transitions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def power(transitions: Path, spec_file: Path | None, as_json: bool) -> None:
    """The smallest lift that these logs could detect, before anything is trained.

    Uses the gate's users, and of them only how noisy their returns are. Prints the gate's standard errors for a policy
    half-way to the edge of the box and at the edge, the sessions that lifts of 1, 2 and 5 % need, and what a canary of n
    users an arm could see.

    \b
    Example:
      mtf power --transitions var/tour/transitions
    """
    import msgspec

    from mtf.evaluation.power import describe
    from mtf.evaluation.power import power as run
    from mtf.spec import FusionSpec
    from mtf.transitions.table import load_transitions

    spec = FusionSpec.read(spec_file) if spec_file is not None else None
    result = run(load_transitions(transitions, users="gate", spec=spec))
    click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() if as_json else describe(result))
