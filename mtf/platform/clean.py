"""Deleting the state folder, unless something would be lost or is in use."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtf.errors import ConflictError
from mtf.platform.processes import stop_all, survivors
from mtf.settings import ROOT, Settings

OURS = {
    "airflow", "bundles", "checkouts", "checkpoints", "datasets", "datasets.lock", "demo", "evaluations", "exploration", "log",
    "logs", "mlflow", "pipeline", "platform.json", "quality", "rollout", "run", "s3", "secrets.json", "spool", "store",
    "surfaces", "tour", "training", "transitions",
}  # fmt: skip
"""All that the platform and the README's tour write into a state folder."""


def clean(settings: Settings, *, force: bool = False) -> bool:
    """Delete the state folder; False where there is none.

    Raises ConflictError while a server of it runs, a dataset version is unpushed, or something else lies there, unless `force`.
    """
    folder = settings.state_dir
    if not folder.exists():
        return False
    if folder == ROOT or ROOT.is_relative_to(folder):
        raise ConflictError(f"state_dir = {folder} holds the checkout itself; set MTF_STATE_DIR to a folder of its own")
    if not force:
        if strange := strangers(folder):
            raise ConflictError(
                f"state_dir = {folder} holds `{strange[0]}`, which the platform did not write; set MTF_STATE_DIR to a folder of "
                "its own, or --force to delete all of it"
            )
        if left := survivors(settings):
            raise ConflictError(f"{len(left)} processes of {folder} run; `mtf down` first, or --force")
        if lost := unpushed(settings):
            raise ConflictError(f"dataset versions that lie only on this disk: {', '.join(lost)}; push them, or --force")
    stop_all(settings)
    shutil.rmtree(folder)
    return True


def strangers(folder: Path) -> list[str]:
    """What lies in a state folder and is not the platform's; in the checkout's own `var` all is taken to be."""
    return [] if folder == ROOT / "var" else sorted(path.name for path in folder.iterdir() if path.name not in OURS)


def unpushed(settings: Settings) -> list[str]:
    """Tags of dataset versions whose bytes are not all in the store."""
    from mtf.datasets import unpushed as look

    return look(settings) if settings.datasets_dir.exists() else []
