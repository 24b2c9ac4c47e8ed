"""`mtf rollout`: the controller, and the intents that a person gives it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtf.errors import InputError
from mtf.settings import Settings

if TYPE_CHECKING:
    from mtf.rollout.document import DeploymentDocument
    from mtf.rollout.intents import Action, Intent

TICK_S = 2.0
surface_option = click.option("--surface", default="feed", show_default=True, help="Which feed.")
reason_option = click.option("--reason", default="", help="Why; kept in the document's history.")
wait_option = click.option(
    "--wait", "wait_s", default=10.0, show_default=True, help="Seconds to wait for the controller's answer."
)


@click.group()
def rollout() -> None:
    """The rollout: one controller a surface writes the deployment document; everything else asks it by intents.

    `mtf rollout run` is the controller. The other commands write an intent, wait for the answer and say what it was.
    """


@rollout.command()
@surface_option
@click.option(
    "--spec", "spec_path", type=click.Path(path_type=Path), help="FusionSpec of the surface [default: the state folder's]."
)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="RolloutConfig as JSON: arms, rules, last look.")
@click.option("--once", is_flag=True, help="One tick, then stop.")
def run(surface: str, spec_path: Path | None, config_path: Path | None, once: bool) -> None:
    """Run the controller: a tick every 2 s until SIGTERM.

    It reads intents and the rows that servers committed to the spool, and alone writes the deployment document. It needs
    the store and the spool, neither Airflow nor MLflow; the registry's tags are written when it can be reached.
    """
    from mtf.logs.spool import SpoolReader
    from mtf.rollout.controller import Controller, read_config
    from mtf.spec import FusionSpec

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings = Settings()
    folder = settings.state_dir / "surfaces" / surface
    spec = FusionSpec.read(spec_path or folder / "spec.json")
    reader = SpoolReader(settings.spool_dir(surface))
    controller = Controller(settings, surface, spec, reader, read_config(config_path or folder / "rollout.json"), tell_registry)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        try:
            controller.tick()
        except Exception:
            if once:
                raise
            logging.exception("tick failed; trying again in %.0f s", TICK_S)
        if once:
            return
        stop.wait(TICK_S)


@rollout.command()
@surface_option
@click.option("--json", "as_json", is_flag=True, help="The whole document.")
def status(surface: str, as_json: bool) -> None:
    """What is served now, and how the rollout stands."""
    from mtf.rollout.document import encode

    document = _document(surface)
    if as_json:
        click.echo(encode(document).decode())
        return
    arms = ", ".join(f"{name} {getattr(document.arms, name):.1%}" for name in document.arms.__struct_fields__)
    click.echo(f"surface     {surface}, generation {document.generation} of {document.at}")
    click.echo(f"champion    version {document.champion.version} ({document.champion.sha[:12]})")
    click.echo(f"canary      {'version ' + document.canary.version if document.canary else 'none'}")
    click.echo(f"arms        {arms}")
    if document.rollout:
        state = document.rollout.outcome or document.rollout.phase
        click.echo(f"rollout     {document.rollout.id}: {state}. {document.rollout.reason}")
    for change in document.history[-5:]:
        click.echo(f"  {change.generation:>4}  {change.at[:19]}  {change.what}: {change.reason}")


@rollout.command()
@surface_option
@click.option("--version", required=True, help="Model version in the registry; its gate must have passed against the champion.")
@reason_option
@wait_option
def start(surface: str, version: str, reason: str, wait_s: float) -> None:
    """Start a canary of a registered version.

    \b
    Example:
      mtf rollout start --version 3 --reason "gate passed"
    """
    _submit(surface, _candidate("start", surface, version, reason), wait_s)


@rollout.command()
@surface_option
@click.option("--version", required=True, help="Model version in the registry; its gate must have passed against the champion.")
@reason_option
@wait_option
def promote(surface: str, version: str, reason: str, wait_s: float) -> None:
    """Make a registered version the champion at once.

    \b
    Example:
      mtf rollout promote --version 3 --reason "canary skipped: holiday traffic"
    """
    _submit(surface, _candidate("promote", surface, version, reason), wait_s)


@rollout.command()
@surface_option
@reason_option
@wait_option
def rollback(surface: str, reason: str, wait_s: float) -> None:
    """Return to the previous champion."""
    from mtf.rollout.intents import Intent

    _submit(surface, Intent(action="rollback", by="command line", reason=reason), wait_s)


@rollout.command()
@surface_option
@reason_option
@wait_option
def abort(surface: str, reason: str, wait_s: float) -> None:
    """End the running rollout and keep the champion."""
    from mtf.rollout.intents import Intent

    _submit(surface, Intent(action="abort", by="command line", reason=reason), wait_s)


@rollout.command()
@surface_option
@click.option("--off", is_flag=True, help="Resume decisions.")
@reason_option
@wait_option
def freeze(surface: str, off: bool, reason: str, wait_s: float) -> None:
    """Stop the controller's decisions on the running rollout (traffic stays as it is); --off resumes them."""
    from mtf.rollout.intents import Intent

    _submit(surface, Intent(action="unfreeze" if off else "freeze", by="command line", reason=reason), wait_s)


def tell_registry(before: DeploymentDocument, after: DeploymentDocument) -> None:
    """Write on the versions' tags and aliases what the document now says."""
    settings = Settings()
    if settings.mlflow_url is None:
        return
    from mtf.registry import record_change

    record_change(settings, before, after)


def _candidate(action: Action, surface: str, version: str, reason: str) -> Intent:
    from mtf.registry import intent_for_version

    return intent_for_version(Settings(), surface, version, action=action, by="command line", reason=reason)


def _document(surface: str) -> DeploymentDocument:
    from mtf.rollout.documents import read_latest
    from mtf.store import open_store

    document = read_latest(open_store(), surface)
    if document is None:
        raise InputError(f"surface {surface!r} has no deployment document yet; start the platform with `mtf up`")
    return document


def _submit(surface: str, intent: Intent, wait_s: float) -> None:
    from mtf.rollout.intents import read_answer, submit
    from mtf.store import open_store

    store = open_store()
    name = submit(store, surface, intent)
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        found = read_answer(store, surface, name)
        if found is not None:
            click.echo(f"{intent.action}: {'done' if found.done else 'refused'}: {found.reason} (generation {found.generation})")
            if not found.done:
                raise click.exceptions.Exit(1)
            return
        time.sleep(0.2)
    click.echo(f"{intent.action}: intent {name} is written and waits for the controller (is `mtf rollout run` up?)")
