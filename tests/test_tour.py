"""The README's step-by-step tour on the reference logs of `data.dvc`: every command, in its order, with its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtf
from mtf.settings import ROOT

MTF = str(Path(sys.executable).parent / "mtf")


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The reference logs, from the repository's own copy of their bytes."""
    folder = tmp_path_factory.mktemp("tour")
    clone = folder / "clone"
    clone.mkdir()
    for name in (".dvc", ".dvcignore", "data.dvc"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("cache", "tmp"))
        else:
            shutil.copy(source, clone / name)
    shutil.copytree(ROOT / "infra" / "seed", clone / "infra" / "seed")
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", "pull", "-q", "-r", "seed", "data.dvc"], cwd=clone, env=environment, check=True)
    (clone / "data" / "logs").rename(folder / "logs")
    return folder


def run(tour: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MTF_STATE_DIR": str(tour / "state"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([MTF, *arguments], cwd=tour, env=environment, capture_output=True, text=True, check=False)


def test_the_tour(tour):
    done = run(tour, "validate", "--logs", "logs", "--out", "quality")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(tour, "transitions", "build", "--logs", "logs", "--out", "transitions")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(tour, "power", "--transitions", "transitions")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smallest lift" in done.stdout
    train = ("train", "--transitions", "transitions", "--algorithm", "slate_replay", "--baseline", "bootstrap")
    for out in ("policy", "again"):
        done = run(tour, *train, "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (mtf.load_policy(tour / out) for out in ("policy", "again"))
    assert first.sha == second.sha
    judge = ("evaluate", "--transitions", "transitions", "--policy", "policy", "--baseline", "bootstrap", "--out", "report")
    done = run(tour, *judge)
    report = json.loads((tour / "report" / "report.json").read_text())
    assert report["verdict"] in ("pass", "fail", "inconclusive")
    assert done.returncode == (0 if report["verdict"] == "pass" else 3), done.stdout + done.stderr
    assert report["reason"]
    assert set(report["lift"]) >= {"mean", "low", "high"}


def test_wrong_usage_and_missing_input_have_their_exit_codes(tour):
    assert run(tour, "train").returncode == 2
    done = run(tour, "evaluate", "--transitions", "none", "--policy", "none", "--baseline", "bootstrap", "--out", "x")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_training_from_a_checkout_gives_the_same_bundle_after_everything_local_is_gone(tour):
    """Runs after the tour, on its transitions: publish, delete logs, transitions and cache, check out, train again."""
    before = mtf.load_policy(tour / "policy").sha
    done = run(tour, "data", "version", "--dt", "2026-03-02", "--transitions", "transitions")
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(tour, "data", "log").stdout.startswith("data/feed/2026-03-02.r1 ")
    shutil.rmtree(tour / "logs")
    shutil.rmtree(tour / "transitions")
    shutil.rmtree(tour / "state" / "datasets" / ".dvc" / "cache")
    done = run(tour, "data", "checkout", "2026-03-02.r1", "--out", "again-data")
    assert done.returncode == 0, done.stdout + done.stderr
    train = ("train", "--transitions", "again-data", "--algorithm", "slate_replay", "--baseline", "bootstrap")
    done = run(tour, *train, "--out", "from-checkout")
    assert done.returncode == 0, done.stdout + done.stderr
    assert mtf.load_policy(tour / "from-checkout").sha == before
