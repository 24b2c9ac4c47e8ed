"""The real chain, one small round: supervisor, Airflow, MLflow, DVC, the S3 store, the fusion server, the controller.

The day is small, so the gate may or may not pass; what is checked is where everything landed. Airflow is killed
after the day was sealed: the round must complete all the same. Then the numbers are recomputed by `mtf verify`.
"""

from __future__ import annotations

import json
import os
import signal
import time

import msgspec
import pytest

from mtf import datasets
from mtf.demo.run import CHAIN, DemoConfig, demo
from mtf.demo.verify import verify
from mtf.logs.days import list_days, read_manifest
from mtf.platform.clean import strangers
from mtf.platform.processes import AIRFLOW, running, survivors
from mtf.platform.run import down, start_airflow
from mtf.registry import find_version
from mtf.rollout.documents import read_latest
from mtf.settings import Settings
from mtf.store import open_store

pytestmark = pytest.mark.integration
CONFIG = DemoConfig(explore_users=2500, canary_users=400, truth_users=500)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """One round of the demo in a state folder of its own, with Airflow killed once in the middle."""
    state = tmp_path_factory.mktemp("state")
    settings = Settings(state_dir=state, clock="simulated")
    killed = []

    def say(line: str) -> None:
        if "seal_day" in line and "success" in line and not killed:
            found = running(settings).pids()
            pids = [found[name] for name in AIRFLOW]
            assert all(pids), f"not all of Airflow runs: {pids}"  # 0 would be this process's own group
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed.append(line)
            start_airflow(settings, say=lambda _: None)

    try:
        summary = demo(settings, rounds=1, config=CONFIG, say=say)
        assert killed, "Airflow was never killed: the sentence that says that the day is sealed has changed"
        yield Settings(state_dir=state, clock="simulated"), summary
    finally:
        down(settings)
        assert survivors(settings) == []


def test_all_that_lies_in_the_state_folder_is_known_to_clean(played):
    settings, _ = played
    assert strangers(settings.state_dir) == []


def test_the_day_is_sealed_validated_and_shown(played):
    settings, summary = played
    dt, canary = summary.rounds[0].dt, summary.rounds[0].canary.dt
    assert list_days(settings.logs_dir("feed")) == [day for day in (dt, canary) if day]
    assert read_manifest(settings.logs_dir("feed"), dt).rows("requests") > 10_000
    verdict = json.loads(next(settings.quality_dir("feed").glob(f"dt={dt}/r*/verdict.json")).read_text())
    assert verdict["status"] in ("pass", "warning")
    assert (settings.docs_dir / "index.html").exists()


def test_the_dataset_is_a_version_whose_objects_are_in_the_store(played, tmp_path):
    settings, summary = played
    found = summary.rounds[0].dataset
    published = {(revision.tag, revision.md5, revision.rows) for revision in datasets.log(settings, "feed")}
    assert (found.revision, found.md5, found.rows) in published
    out = datasets.checkout(settings, "feed", found.revision, tmp_path / "data")
    assert list(out.rglob("transitions.parquet"))


def test_the_policy_is_a_version_with_its_lineage_and_verdict(played):
    settings, summary = played
    found = summary.rounds[0]
    version = find_version(settings, "feed", found.model_version)
    assert version.tags["verdict"] == found.gate.verdict
    assert version.tags["dataset_revision"] == found.dataset.revision
    assert version.policy_sha == found.policy_sha
    import mlflow
    import numpy as np

    model = mlflow.pyfunc.load_model(f"models:/mtf-feed/{found.model_version}")
    spec = read_spec(settings)
    actions = model.predict(np.zeros((2, spec.state_width), np.float32))
    assert actions.shape == (2, spec.action_width)


def test_the_document_says_what_is_served(played):
    settings, summary = played
    store = open_store(settings=settings)
    document = read_latest(store, "feed")
    assert document.champion.sha == summary.rounds[0].serving_sha
    assert store.exists(f"bundles/{document.champion.sha}/policy.json")


def test_every_dag_ran_and_none_failed(played):
    from mtf.demo.airflow import Airflow

    settings, _ = played
    airflow = Airflow(settings.airflow_url, settings.airflow_password_file)
    for name in ("seal_day", *CHAIN):
        states = {run.state for run in airflow.runs(f"{name}__feed")}
        assert states, name
        assert "failed" not in states, name


def test_every_number_of_the_summary_comes_out_again(played):
    settings, summary = played
    checks = verify(settings.state_dir / "demo")
    assert len(checks) > 15
    assert [c for c in checks if not c.equal] == []


def test_a_changed_number_is_found(played):
    settings, summary = played
    path = settings.state_dir / "demo" / "summary.json"
    true = path.read_bytes()
    forged = msgspec.json.decode(true)
    forged["rounds"][0]["dataset"]["rows"] += 1
    path.write_bytes(msgspec.json.encode(forged))
    try:
        assert [c.name for c in verify(settings.state_dir / "demo") if not c.equal] == ["rounds[1].dataset.rows"]
    finally:
        path.write_bytes(true)


def test_what_a_person_runs_by_hand_the_chain_goes_on_from(played):
    """A run without a partition key: its event starts the next step all the same."""
    from mtf.demo.airflow import Airflow

    settings, _ = played
    airflow = Airflow(settings.airflow_url, settings.airflow_password_file)
    known = airflow.known(["refresh_exploration__feed"])["refresh_exploration__feed"]
    run_id = airflow.trigger("evaluate_policy__feed", {})
    deadline = time.monotonic() + 180
    while not [run for run in airflow.runs("refresh_exploration__feed") if run.run_id not in known]:
        assert time.monotonic() < deadline, airflow.run("evaluate_policy__feed", run_id)
        time.sleep(1)


def read_spec(settings):
    from mtf.spec import FusionSpec

    return FusionSpec.read(settings.state_dir / "surfaces" / "feed" / "spec.json")
