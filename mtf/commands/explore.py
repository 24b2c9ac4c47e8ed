"""`mtf explore`."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


@click.group()
def explore() -> None:
    """The exploration box: how wide the next one is."""


@explore.command()
@click.option("--policy", required=True, help="The policy that the box will be around: a bundle, or `bootstrap`.")
@click.option("--transitions", required=True, type=FOLDER, help="Folder of transitions, or one Parquet file.")
@click.option("--baseline", required=True, help="The policy that explored: a bundle, `bootstrap` or `logged`.")
@click.option("--previous", type=FOLDER, help="exploration.json in force; default: the box of the baseline's latest rows.")
@click.option("--floor", default=0.05, show_default=True, help="Narrowest half-width of a dimension that varies.")
@click.option("--cap", default=0.3, show_default=True, help="Widest half-width.")
@click.option("--quantile", default=0.9, show_default=True, help="Of |new - old action| that must fit into the box.")
@click.option("--budget", default=0.03, show_default=True, help="Share of the reward that exploring may cost.")
@click.option("--out", required=True, type=FOLDER, help="exploration.json.")
def refresh(
    policy: str,
    transitions: Path,
    baseline: str,
    previous: Path | None,
    floor: float,
    cap: float,
    quantile: float,
    budget: float,
    out: Path,
) -> None:
    """Choose the next box: as wide as the policy moves, wider where it wants to go further, narrower where all is known.

    Reads only the training users. Prints a line a dimension with the rule that decided, and writes exploration.json.

    \b
    Example:
      mtf explore refresh --policy var/tour/policy --transitions var/tour/transitions --baseline bootstrap \\
          --out var/tour/exploration.json
    """
    from mtf.exploration import read_exploration
    from mtf.exploration import refresh as run

    document = run(
        policy=policy,
        transitions=transitions,
        baseline=baseline,
        previous=read_exploration(previous) if previous is not None else None,
        out=out,
        quantile=quantile,
        floor=floor,
        cap=cap,
        budget=budget,
    )
    for d, (width, seen) in enumerate(zip(document.half_width, document.evidence, strict=True)):
        click.echo(
            f"dimension {d}: {seen.before:.3f} -> {width:.3f}  {seen.rule:6}  moves {seen.move:.3f}, "
            f"slope {seen.slope:+.4f} +- {seen.slope_se:.4f}"
        )
    cost = f"{document.expected_loss:.2%} +- {document.loss_se:.2%}"
    click.echo(f"cost {cost} of the reward, budget {document.budget:.0%}: {document.reason}")
    click.echo(f"box  {document.sha}")
