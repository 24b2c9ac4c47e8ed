"""Deleting the state folder, unless something would be lost or is in use."""

from __future__ import annotations

import shutil

from mtf.errors import ConflictError
from mtf.platform.processes import stop_all, survivors
from mtf.settings import ROOT, Settings


def clean(settings: Settings, *, force: bool = False) -> bool:
    """Delete the state folder; False where there is none.

    Raises ConflictError while a server of it runs or a dataset version is unpushed, unless `force`.
    """
    folder = settings.state_dir
    if not folder.exists():
        return False
    if folder == ROOT or ROOT.is_relative_to(folder):
        raise ConflictError(f"state_dir = {folder} holds the checkout itself; set MTF_STATE_DIR to a folder of its own")
    if not force:
        if left := survivors(settings):
            raise ConflictError(f"{len(left)} processes of {folder} run; `mtf down` first, or --force")
        if lost := unpushed(settings):
            raise ConflictError(f"dataset versions that lie only on this disk: {', '.join(lost)}; push them, or --force")
    stop_all(settings)
    shutil.rmtree(folder)
    return True


def unpushed(settings: Settings) -> list[str]:
    """Tags of dataset versions whose bytes are not all in the store."""
    from mtf.datasets import unpushed as look

    return look(settings) if settings.datasets_dir.exists() else []
