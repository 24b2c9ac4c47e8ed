"""`mtf world ...`, `mtf simulate`, `mtf traffic`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mtf.policy import Policy
    from mtf.world.fit_check import FitCheck
    from mtf.world.world import World

_OUT = click.Path(path_type=Path, file_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.group()
def world() -> None:
    """Simulated feeds with a known truth: make one from published figures, fit one to a log, describe one.

    A test bed, never evidence about real users: every figure of a world says whether it was learned, borrowed or assumed.
    """


@world.command()
@click.option("--preset", default="default", show_default=True, help="default, personalised, global_only or null.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="YAML file of what to replace.")
@click.option("--out", required=True, type=_OUT, help="The world's folder.")
def make(preset: str, config: Path | None, out: Path) -> None:
    """Make a parametric world, calibrated to public figures.

    \b
    Presets: `default` (production is tuned to watch time, and segments differ in which scores are good), `personalised`
    (production is near the best one setting; half of the rest is in the segments), `global_only` (mostly production's setting is
    off), `null` (nothing beats production).
    The file names knobs of the preset, and under `scalars` any number of the world (docs/world.md lists all of them):
      users: 20000
      personal: 0.5
      scalars: {n_candidates: 100, leave_disappointment: 5.0}

    \b
    Example:
      mtf world make --out var/world
      mtf world make --preset personalised --config knobs.yaml --out var/world
    """
    import yaml

    from mtf.errors import InputError
    from mtf.fileio import replaceable
    from mtf.world.params import MARK
    from mtf.world.presets import make as make_world

    knobs: dict[str, Any] = {}
    if config is not None:
        try:
            knobs = yaml.safe_load(config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"config: {config} is no YAML: {error}") from None
        if not isinstance(knobs, dict):
            raise InputError(f"config: {config} holds {type(knobs).__name__}; give an object {{knob: value}}")
    replaceable(out, MARK)
    with _bar("making the world", 7) as step:
        params = make_world(preset, progress=step, **knobs)
    params.save(out)
    click.echo(f"{out}: {params.kind} world `{params.name}`, {len(params.user_key):,} users, {len(params.item_key):,} items")


@world.command()
@click.option("--log", "log_path", required=True, type=click.Path(path_type=Path, exists=True), help="KuaiRand's files.")
@click.option("--out", required=True, type=_OUT, help="The world's folder.")
@click.option("--seed", default=0, show_default=True, help="Of the posterior draw.")
@click.option("--copies", default=1, show_default=True, help="Simulated users for each logged one, each with a draw of his own.")
def fit(log_path: Path, out: Path, seed: int, copies: int) -> None:
    """Fit a world to a KuaiRand feedback log: real users, videos, scores of a model trained on the earlier days only.

    What that log cannot say (leaving, above all) is borrowed or assumed; `mtf world describe` says which. A user plays one
    session a day: with --copies a day can hold more sessions than the log has users.

    \b
    Example:
      mtf world fit --log data/kuairand --copies 8 --out var/fitted
    """
    from mtf.world.fit import fit_world

    fit_world(log_path, out, seed=seed, copies=copies)
    click.echo(f"{out}: fitted world; `mtf world describe {out}` says what is learned, borrowed and assumed")


@world.command()
@click.argument("folder", type=_FOLDER)
@click.argument("name")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the scenario; may be repeated.")
@click.option("--out", required=True, type=_OUT, help="The changed world's folder.")
def scenario(folder: Path, name: str, settings: tuple[str, ...], out: Path) -> None:
    """Write a world to which something has happened: NAME is a scenario of mtf/world/scenarios.py.

    \b
    shifted_population  users of one group come more often     group=0 factor=3
    new_items           a share of the items is new            share=0.3 seed=1
    broken_head         one head's scores are stuck            head=valid
    seasonal            more clicks, longer sessions           amount=0.3
    correlated_users    circles of users share their day       size=50 factor=2

    \b
    Example:
      mtf world scenario var/world broken_head --set head=like --out var/broken
    """
    import yaml

    from mtf.errors import InputError
    from mtf.world.scenarios import SCENARIOS
    from mtf.world.world import World

    if name not in SCENARIOS:
        raise InputError(f"scenario: {name!r} is unknown; use one of {', '.join(SCENARIOS)}")
    given = dict(setting.partition("=")[::2] for setting in settings)
    try:
        changed = SCENARIOS[name](World.load(folder), **{key: yaml.safe_load(value) for key, value in given.items()})
    except TypeError as error:
        raise InputError(f"scenario: {name}: {error}; `mtf world scenario --help` lists the settings") from None
    changed.save(out)
    click.echo(f"{out}: {changed.params.name}")


@world.command()
@click.argument("folder", type=_FOLDER)
@click.option("--log", "log_path", type=click.Path(path_type=Path, exists=True), help="A fitted world's log: check against it.")
@click.option("--out", type=_OUT, help="A folder for describe.html, with plots.")
@click.option("--quick", is_flag=True, help="A smaller search and fewer sessions: wider intervals.")
@click.option("--no-headroom", is_flag=True, help="Skip the search for better policies.")
@click.option("--seed", default=0, show_default=True, help="Of the search and of the users that it is tried on.")
def describe(folder: Path, log_path: Path | None, out: Path | None, quick: bool, no_headroom: bool, seed: int) -> None:
    """How a world plays against the published figures, what each figure rests on, and the headroom above production.

    The headroom is the true value of the best policies that a quick search finds, a lower bound, by common random numbers
    on users that the search did not see. About a minute; --quick about twenty seconds. With --log a fitted world is checked
    against days of that log which a twin of its response model did not see.

    \b
    Example:
      mtf world describe var/world --out var/world-page
      mtf world describe var/fitted --log data/kuairand --no-headroom
    """
    from mtf.fileio import write_atomic
    from mtf.world.describe import compare, headroom_lines, played, provenance
    from mtf.world.describe_page import page
    from mtf.world.fit_check import check_fit
    from mtf.world.headroom import REACH, headroom
    from mtf.world.world import World

    loaded = World.load(folder)
    params = loaded.params
    click.echo(
        f"{params.kind} world `{params.name}`: {loaded.n_users:,} users, {loaded.n_items:,} items, spec {loaded.spec.version}"
    )
    click.echo(f"production's start, powers: {_numbers(loaded, 0)}; biases: {_numbers(loaded, 1)}")
    with _bar("playing", 2 if log_path is not None else 1) as step:
        step("sessions under the start")
        play = played(loaded, 3_000 if quick else 12_000)
        if log_path is not None:
            step("a twin fitted without held-out days")
        check = check_fit(log_path, loaded, seed=seed) if log_path is not None else None
    compared = compare(loaded, play.figures())
    click.echo("\nPlay under the start, against the published figures")
    for row in compared:
        mark = "ok " if row.holds else "OFF"
        click.echo(
            f"  {mark} {row.name:<21} {row.played:9.4g}  published {row.published:9.4g} (+-{row.tolerance:.0%})  {row.source}"
        )
    if check is not None:
        _echo_check(check)
    for label, rows in provenance(params).items():
        click.echo(f"\n{label} ({len(rows)})")
        for name, value, source in rows:
            click.echo(f"  {name:<22} {value:<28} {source}")
    if out is not None:
        write_atomic(out / "describe.html", page(params, compared, play, check).encode())
        click.echo(f"\n{out / 'describe.html'}: the same with plots")
    if no_headroom:
        return
    with _bar("headroom", 4) as step:
        found = headroom(loaded, quick=quick, seed=seed, progress=step)
    click.echo(f"\nHeadroom within +-{REACH} of the start   session reward [95 %]   with gamma = {loaded.spec.gamma} [95 %]")
    for line in headroom_lines(found):
        click.echo(f"  {line}")
    for name, truth in (("start", found.start), ("global", found.best_global), ("linear", found.best_linear)):
        click.echo(f"  {name:<7}" + "  ".join(f"{metric} {value:.4g}" for metric, value in truth.metrics.items()))
    click.echo(f"  (the best that a search of {found.seconds:.0f} s found: a lower bound; `mtf world oracle` searches longer)")


def _echo_check(check: FitCheck) -> None:
    click.echo(f"\nAgainst {check.rows:,} impressions of days that the twin did not see ({', '.join(map(str, check.held_out))})")
    for o in check.ordering:
        click.echo(f"  AUC {o.head:<9} scores {o.scores:.3f}   twin of the truth {o.twin:.3f}   ({o.positives:,} positives)")
    for level in check.levels:
        observed = f"observed {level.observed:.4f} (se {level.se:.4f})"
        click.echo(f"  mean {level.head:<9} {level.group:<14} {observed}   twin {level.predicted:.4f}")
    for setting in check.settings:
        click.echo(f"  MTF-GAUC {setting.name:<14} log {setting.log:.3f}   world {setting.world:.3f}")
    click.echo(f"  rank correlation of the seven settings: {check.rank_correlation:.2f}")
    click.echo("\nHow much users differ: covariance of one user's outcomes on different days, log and world")
    for t in check.together:
        click.echo(f"  {t.head:<9} log {t.log:.5f} (se {t.se:.5f})   world {t.world:.5f}   ratio {t.world / t.log:.2f}")


@world.command()
@click.argument("folder", type=_FOLDER)
@click.option("--out", required=True, type=_OUT, help="A folder for oracle.json and the policies' bundles.")
@click.option("--users", default=40_000, show_default=True, type=click.IntRange(min=2), help="Of the play that is reported.")
@click.option("--restarts", default=3, show_default=True, type=click.IntRange(min=1), help="Searches of each kind.")
@click.option("--elasticity", type=click.FloatRange(min=0), help="Of leaving, in place of the world's own.")
@click.option("--quick", is_flag=True, help="Smaller searches.")
@click.option("--seed", default=0, show_default=True, help="Of the search and of the users that it is tried on.")
def oracle(folder: Path, out: Path, users: int, restarts: int, elasticity: float | None, quick: bool, seed: int) -> None:
    """What could be gained in a world: production's start, best global weights, best greedy and best far-sighted policy.

    Each is searched for in the world itself, with its truth, so they are yardsticks and never candidates; each reported value
    is played in sessions that no search saw, paired with the start. A few minutes; --quick under one. --elasticity repeats it
    with leaving that depends less or more on what was shown (0 not at all), at the same session length under the start: no
    log identifies it, and what holds at 0 only, or above 0 only, is an assumption.

    \b
    Example:
      mtf world oracle var/world --out var/oracle
      mtf world oracle var/fitted --elasticity 0 --out var/oracle-0
    """
    from mtf.world.calibrate import calibrate_leaving
    from mtf.world.oracle import QUICK, STEPS, Effort, find, lines, write
    from mtf.world.world import World

    loaded = World.load(folder)
    if elasticity is not None and elasticity != loaded.params.scalars.leave_elasticity:
        loaded = World(calibrate_leaving(loaded.params.with_scalars(leave_elasticity=elasticity)))
    with _bar("oracle", len(STEPS)) as step:
        found, policies = find(
            loaded, users=users, restarts=restarts, seed=seed, effort=QUICK if quick else Effort(), progress=step
        )
    for name, policy in policies.items():
        policy.write(out / name)
    write(found, out / "oracle.json")
    for line in lines(found, loaded.spec.gamma):
        click.echo(line)
    click.echo(f"{out}: oracle.json, and the bundles {', '.join(policies)}")


@click.command()
@click.option("--world", "world_dir", required=True, type=_FOLDER, help="The world's folder.")
@click.option("--policy", default="bootstrap", show_default=True, help="A bundle's folder, or `bootstrap`: the spec's start.")
@click.option("--box", default=0.0, show_default=True, help="Half-width of the exploration box; 0 = no exploration.")
@click.option("--users", required=True, type=click.IntRange(min=1), help="Users of the day, one session each.")
@click.option("--dt", required=True, help="The day, YYYY-MM-DD.")
@click.option("--seed", default=0, show_default=True, help="Another seed: other users, other draws.")
@click.option("--out", required=True, type=_OUT, help="Logs folder; another --dt extends it.")
def simulate(world_dir: Path, policy: str, box: float, users: int, dt: str, seed: int, out: Path) -> None:
    """Serve a day of simulated users in-process and write it as a sealed day of logs.

    The engine is the fusion server's. With a box, nine users in ten explore.

    \b
    Example:
      mtf simulate --world var/world --policy bootstrap --box 0.3 --users 20000 --dt 2026-03-02 --seed 1 --out var/logs
    """
    from mtf.world.simulate import simulate_day
    from mtf.world.world import World

    loaded = World.load(world_dir)
    manifest = simulate_day(loaded, _policy(loaded, policy), users, dt, seed, box, out, progress=True)
    click.echo(
        f"{out}/dt={dt}/r{manifest.revision}: {manifest.rows('requests'):,} requests, {manifest.rows('feedback'):,} impressions"
    )


@click.command()
@click.option("--world", "world_dir", required=True, type=_FOLDER, help="The world's folder.")
@click.option("--url", required=True, help="The fusion server, e.g. http://127.0.0.1:8600.")
@click.option("--users", required=True, type=click.IntRange(min=1), help="Users of the day, one session each.")
@click.option("--dt", required=True, help="The day, YYYY-MM-DD.")
@click.option("--seed", default=0, show_default=True, help="Another seed: other users, other draws.")
def traffic(world_dir: Path, url: str, users: int, dt: str, seed: int) -> None:
    """Play a day of simulated users against a running server, over HTTP, then set its clock past the day's end.

    The server must run with MTF_CLOCK=simulated and the world's spec. Some feedback is sent twice, some late, as in life.

    \b
    Example:
      mtf traffic --world var/world --url http://127.0.0.1:8600 --users 5000 --dt 2026-03-02
    """
    from mtf.world.traffic import play_day
    from mtf.world.world import World

    stats = play_day(World.load(world_dir), url, users=users, dt=dt, seed=seed, progress=True)
    click.echo(
        f"{dt}: {stats.users:,} sessions, {stats.requests:,} requests, {stats.impressions:,} impressions "
        f"({stats.duplicates:,} sent twice, {stats.late:,} late, {stats.retries} messages repeated) "
        f"in {stats.seconds:.1f} s, {stats.requests_per_second:,.0f} requests/s"
    )


def _policy(loaded: World, name: str) -> Policy:
    from mtf.policy import bootstrap_policy, load_policy

    return bootstrap_policy(loaded.spec) if name == "bootstrap" else load_policy(name)


def _numbers(loaded: World, half: int) -> str:
    import numpy as np

    from mtf.fusion import raw_action

    raw = raw_action(loaded.spec, np.array(loaded.spec.start, np.float32)).reshape(2, -1)[half]
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(loaded.spec.objectives, raw, strict=True))


@contextlib.contextmanager
def _bar(what: str, steps: int) -> Iterator[Callable[[str], None]]:
    """A progress bar of `steps` steps; the function names the step that begins."""
    from tqdm import tqdm

    with tqdm(total=steps, desc=what, unit="step") as bar:
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            bar.update(begun and 1)
            begun = 1
            bar.set_postfix_str(name)

        yield step
        bar.update(steps - bar.n)
