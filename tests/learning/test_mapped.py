"""Training on mapped data: the same bundle, in memory that does not grow with the rows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mtf import box
from mtf.learning import slate_replay
from mtf.learning.run import train
from mtf.policy import bootstrap_policy
from mtf.transitions import arrays, mapped
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions
from tests.learning.test_lqr import write
from tests.transitions.files import write_transitions

FEW = {"steps": "30", "batch": "64", "critics": "2", "critic_hidden": "8"}
CASES = {
    "linear_advantage": {},
    "integrated_rl": FEW,
    "bootstrapped": FEW | {"bootstrap": "true"},
    "td3_bc": {"steps": "30", "batch": "64"},
    "corner": {},
    "bc": {},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    data = make_sessions(400, seed=1, slope=np.array([1.0, -1.0]))
    return write_transitions(tmp_path_factory.mktemp("rows") / "t", data)


@pytest.mark.parametrize("name", CASES)
def test_the_bundle_is_the_same(rows, tmp_path, monkeypatch, name):
    monkeypatch.setattr(mapped, "PART", 500)
    monkeypatch.setattr(arrays, "CHUNK", 300)
    algorithm = {"bootstrapped": "integrated_rl"}.get(name, name)
    found = [
        train(
            rows,
            tmp_path / "out" / "policy",
            algorithm=algorithm,
            baseline="logged",
            overrides={"distil_steps": "20", **CASES[name]},
            progress=False,
            mapped_from=limit,
        )
        for limit in (1_000_000, 1)
    ]
    assert found[0].sha == found[1].sha
    reports = [{k: v for k, v in f.report.items() if k not in ("seconds", "peak_rss_mib")} for f in found]
    assert reports[0] == reports[1]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["policy"]


def test_so_is_one_that_replays_logged_candidates_after_sessions_were_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "PART", 200)
    monkeypatch.setattr(arrays, "CHUNK", 150)
    monkeypatch.setattr(slate_replay, "CHUNK", 100)
    spec, rng, n = small_spec(), np.random.default_rng(0), 1500
    state = rng.normal(size=(n, 3)).astype(np.float32)
    center = bootstrap_policy(spec).act(state)
    lower, upper = box.offsets(center, 0.3)
    name = np.array([f"user{i}" for i in range(n)])
    write(
        tmp_path / "rows" / "x.parquet",
        session_id=name,
        user_id=name,
        step=np.zeros(n, np.int64),
        state=state,
        next_state=state,
        action=box.sample(rng, center, lower, upper),
        center=center,
        lower=lower,
        upper=upper,
        reward=rng.normal(size=(n, 2)),
        terminal=np.ones(n, bool),
        behaviour=rng.random((n, 3)),
        cand_scores=np.array([rng.random(12).astype("<f2").tobytes() for _ in range(n)], object),
        fallback=np.where(np.arange(n) % 50 == 3, "timeout", None),
    )
    spec.write(tmp_path / "rows" / "spec.json")
    settings = {"algorithm": "slate_replay", "baseline": "bootstrap", "overrides": {"distil_steps": "20"}, "progress": False}
    held, found = (train(tmp_path / "rows", tmp_path / "policy", mapped_from=limit, **settings) for limit in (10**6, 1))
    assert held.report["algorithm"]["used"] == "slate_replay"
    assert held.report["rows"]["dropped"]["fallback"] > 5
    assert found.sha == held.sha


WORKER = """
import sys
from pathlib import Path
from mtf.learning import linear_advantage, value
from mtf.learning.run import train
from mtf.transitions import arrays, mapped
# what is held at once of any number of rows: small, beside what this many rows take
arrays.CHUNK = value.CHUNK = linear_advantage.CHUNK = mapped.PART = mapped.BATCH = 2048
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
def run(rows):
    settings = {"algorithm": "corner", "baseline": "logged", "overrides": {"distil_steps": "10"}, "progress": False}
    return train(folder / rows, folder / f"policy-{limit}", mapped_from=limit, **settings)
run("few")
print("ready", flush=True)
sys.stdin.readline()
print(run("many").sha, flush=True)
"""


def wide(path: Path, n: int) -> None:
    """Sessions of four requests, 12 features, 10 dimensions, candidates of 400 bytes."""
    rng = np.random.default_rng(n)
    user = np.array([f"user{i}" for i in range(n // 4)]).repeat(4)
    step = np.tile(np.arange(4), n // 4)
    action = rng.uniform(-0.3, 0.3, (n, 10))
    still = np.zeros((n, 10))
    write(
        path,
        session_id=user,
        user_id=user,
        step=step,
        terminal=step == 3,
        state=rng.normal(size=(n, 12)),
        next_state=rng.normal(size=(n, 12)),
        action=action,
        center=still,
        lower=still - 0.3,
        upper=still + 0.3,
        reward=1 + action[:, :1] + rng.normal(size=(n, 1)),
        cand_scores=np.array([rng.random(200).astype("<f2").tobytes() for _ in range(n)], object),
    )


def peak(folder: Path, limit: int) -> tuple[int, str]:
    """Growth of the memory (KiB; pages of files do not count, they can be given back) of a training on many rows; its bundle."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(limit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None

        def held() -> int:
            lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)

        assert worker.stdout.readline() == "ready\n"
        before = most = held()
        worker.stdin.write("go\n")
        worker.stdin.flush()
        while worker.poll() is None:
            most = max(most, held())
            time.sleep(0.005)
        return most - before, worker.stdout.readline().strip()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded(tmp_path):
    wide(tmp_path / "few" / "x.parquet", 2000)
    wide(tmp_path / "many" / "x.parquet", 100_000)
    (held, sha), (mapped_peak, same) = peak(tmp_path, 10**9), peak(tmp_path, 1)
    assert same == sha
    assert mapped_peak < 0.5 * held, (mapped_peak, held)
