"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# before NumPy is loaded: its BLAS reads this once, and threads of parallel tests that spin take each other's cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings as hypothesis_settings

from mtf.policy import Lineage, Policy
from mtf.settings import Settings
from mtf.spec import Feature, FusionSpec, RewardHead

# a busy machine is no failure of the code; everything else is Hypothesis's own choice (with CI set: the same examples each time)
hypothesis_settings.register_profile("mtf", deadline=None)
hypothesis_settings.load_profile("mtf")


def small_spec(**changes: object) -> FusionSpec:
    """Two objectives, four-dimensional actions, three features of the three sources."""
    fields: dict[str, object] = {
        "objectives": ("click", "watch"),
        "power_low": (0.0, 0.0),
        "power_high": (2.0, 2.0),
        "bias_low": (0.001, 0.01),
        "bias_high": (1.0, 10.0),
        "start": (0.0, 0.0, 0.0, 0.0),
        "n_shown": 3,
        "behaviours": ("watch", "click", "valid"),
        "reward_heads": (RewardHead(name="watch", weights={"watch": 0.01}), RewardHead(name="engage", weights={"valid": 0.5})),
        "features": (
            Feature(name="activity", source="caller", default=0.25),
            Feature(name="recent:valid", source="history", moved_by_action=True),
            Feature(name="score_mean:click", source="scores"),
        ),
    }
    return FusionSpec(**(fields | changes))  # type: ignore[arg-type]


def random_policy(seed: int = 0, state: int = 3, action: int = 4, spec: FusionSpec | None = None) -> Policy:
    """A policy with one hidden layer and random weights."""
    rng = np.random.default_rng(seed)
    arrays = {
        "mean": rng.normal(size=state),
        "scale": rng.uniform(0.5, 2, state),
        "skip": rng.normal(size=(state, action)) * 0.1,
        "weight_0": rng.normal(size=(state, 8)),
        "bias_0": rng.normal(size=8),
        "weight_1": rng.normal(size=(8, action)) * 0.1,
        "bias_1": rng.normal(size=action) * 0.1,
    }
    return Policy(arrays, spec=spec, lineage=Lineage(algorithm="random", seed=seed))


@pytest.fixture
def spec() -> FusionSpec:
    return small_spec()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty state folder, with a folder as the store."""
    return Settings(state_dir=tmp_path / "state")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, made by whichever worker comes first and shared by all of them."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small parametric world (its calibration takes seconds)."""
    from mtf.world.world import World

    return made_once(tmp_path_factory, "world", World.make("default", users=4000, items=1500).save)


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on SQLite, one a worker."""
    from mtf.platform.health import _get
    from mtf.platform.ports import choose

    folder = tmp_path_factory.mktemp("mlflow")
    # a server listens only after seconds, so workers that start together would find the same port free
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    port = choose({"mlflow": 2320 + 20 * worker})["mlflow"]
    command = [
        str(Path(sys.executable).parent / "mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while _get(f"{url}/health") is None:
        assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
        time.sleep(0.2)
    assert server.poll() is None, "another server answers on its port"
    yield url
    os.killpg(server.pid, 15)
    server.wait(timeout=20)
