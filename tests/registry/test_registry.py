"""The registry against a real MLflow server: versions, lineage, verdicts, aliases, and what people's moves become."""

from __future__ import annotations

import os
import sys

import msgspec
import numpy as np
import pytest

from mtf.errors import IntegrityError, MtfError, NotFoundError
from mtf.logs.spool import SpoolReader
from mtf.policy import load_policy
from mtf.registry import (
    download_bundle,
    find_version,
    intent_for_version,
    log_training,
    publish_bundle,
    reconcile,
    record_change,
    register_bootstrap,
    set_alias,
    tag_box,
    tag_verdict,
    trained_versions,
)
from mtf.registry.client import connect, model_name, registry_page
from mtf.registry.reconcile import _pursue, note_intent
from mtf.rollout.controller import Controller, RolloutConfig
from mtf.rollout.documents import fetch_bundle, read_latest
from mtf.rollout.intents import Intent, open_intents, submit
from mtf.rollout.start import box_in_force
from mtf.settings import Settings
from mtf.store import open_store
from tests.conftest import random_policy, small_spec

pytestmark = pytest.mark.integration
REPORT = {"verdict": "pass", "reason": "the lower bound lies above 0.", "lift": {"mean": 0.05, "low": 0.01, "high": 0.09}}


def train(settings, surface, folder, seed=5):
    """Register a random policy as if a training had made it."""
    bundle = folder / f"bundle{seed}"
    random_policy(seed, spec=small_spec(surface=surface)).write(bundle)
    lineage = {
        "step_key": f"key{seed}",
        "dataset_revision": f"data/{surface}/2026-03-02.r1",
        "dataset_md5": "0" * 32,
        "dataset_rows": "1000",
        "dataset_dt": "2026-03-02",
        "code_sha": "abc",
    }
    report = {"loss": {"value": 0.5}, "steps": 10, "warnings": ["none"], "never": float("nan")}
    report["algorithm"] = {"curve": [{"step": 5.0, "td_error": 0.7}, {"step": 10.0, "td_error": 0.4, "held_out": 0.5}]}
    return log_training(settings, surface, bundle=bundle, report=report, power={"detectable_lift": 0.03}, lineage=lineage)


def judge(settings, version, baseline, folder, **changes):
    """Write a gate report on a version."""
    report = folder / "report.json"
    report.write_bytes(msgspec.json.encode(REPORT | changes))
    files = {"report.json": report}
    return tag_verdict(settings, version.surface, version.version, report=REPORT | changes, baseline_sha=baseline, files=files)


def controller(settings, surface):
    """The controller over an empty spool, telling the registry of each generation."""
    rows = SpoolReader(settings.spool_dir(surface))
    spec = small_spec(surface=surface)
    return Controller(
        settings, surface, spec, rows, RolloutConfig(), lambda before, after: record_change(settings, before, after)
    )


def aliases(settings, surface):
    return dict(connect(settings).get_registered_model(model_name(surface)).aliases)


def test_bootstrap_is_the_first_champion_once(settings, surface):
    spec = small_spec(surface=surface)
    assert register_bootstrap(settings, surface, spec) == register_bootstrap(settings, surface, spec) == "1"
    assert aliases(settings, surface) == {"champion": "1"}
    assert trained_versions(settings, surface) == []


def test_a_training_becomes_a_version_with_its_lineage(settings, surface, tmp_path):
    version = train(settings, surface, tmp_path)
    run = connect(settings).get_run(version.run_id).data
    assert run.metrics["loss.value"] == 0.5
    assert run.metrics["power.detectable_lift"] == 0.03
    assert "never" not in run.metrics
    curve = connect(settings).get_metric_history(version.run_id, "curve.td_error")
    assert [(point.step, point.value) for point in curve] == [(5, 0.7), (10, 0.4)]
    assert run.metrics["curve.held_out"] == 0.5
    assert run.params["algorithm"] == "random"
    assert version.tags["dataset_revision"] == run.tags["dataset_revision"] == f"data/{surface}/2026-03-02.r1"
    assert version.policy_sha == load_policy(tmp_path / "bundle5").sha
    assert find_version(settings, surface, version.version) == version
    assert trained_versions(settings, surface) == [version.version]


def test_the_same_step_registers_once(settings, surface, tmp_path):
    first, second = train(settings, surface, tmp_path), train(settings, surface, tmp_path)
    assert first.version == second.version
    assert train(settings, surface, tmp_path, seed=6).version != first.version


def test_mlflow_loads_and_runs_the_policy_without_a_pickle(settings, surface, tmp_path):
    import mlflow

    version = train(settings, surface, tmp_path)
    set_alias(settings, surface, "champion", version.version)
    states = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    model = mlflow.pyfunc.load_model(f"models:/{model_name(surface)}@champion")
    np.testing.assert_array_equal(model.predict(states), load_policy(tmp_path / "bundle5").act(states))
    uri = f"models:/{model_name(surface)}/{version.version}"
    files = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(tmp_path / "got"))
    assert not [p for p in (tmp_path / "got").rglob("*") if p.suffix in (".pkl", ".pickle", ".pt")], files


def test_the_bundle_store_is_filled_from_the_artefacts(settings, surface, tmp_path):
    version = train(settings, surface, tmp_path)
    sha = version.policy_sha
    for path in (tmp_path / "bundle5").iterdir():  # the trainer's folder is gone
        path.unlink()
    store = open_store(settings=settings)
    ref = publish_bundle(settings, store, version)
    assert fetch_bundle(store, ref, tmp_path / "cache").sha == sha
    assert load_policy(download_bundle(settings, version, tmp_path / "other")).sha == sha
    forged = msgspec.structs.replace(version, tags=version.tags | {"policy_sha": "0" * 64})
    with pytest.raises(IntegrityError):
        publish_bundle(settings, store, forged)


def test_a_damaged_cache_is_fetched_again(settings, surface, tmp_path):
    version = train(settings, surface, tmp_path)
    folder = download_bundle(settings, version, tmp_path / "cache")
    (folder / "policy.safetensors").write_bytes(b"x")
    assert load_policy(download_bundle(settings, version, tmp_path / "cache"), version.policy_sha)
    (folder / "policy.json").unlink()
    assert load_policy(download_bundle(settings, version, tmp_path / "cache"), version.policy_sha)
    whole = folder.stat().st_ino
    assert download_bundle(settings, version, tmp_path / "cache").stat().st_ino == whole  # a good one is left


def test_the_verdict_is_on_the_tags_and_on_the_card(settings, surface, tmp_path):
    version = train(settings, surface, tmp_path)
    found = judge(settings, version, "f" * 64, tmp_path)
    assert (found.tags["verdict"], float(found.tags["lift_low"])) == ("pass", 0.01)
    assert find_version(settings, surface, version.version).tags == found.tags
    card = connect(settings).get_model_version(model_name(surface), version.version).description
    assert "**pass**" in card
    assert "+5.00%" in card
    assert f"data/{surface}/2026-03-02.r1" in card


def test_a_verdict_without_a_lift(settings, surface, tmp_path):
    version = train(settings, surface, tmp_path)
    none = {"mean": None, "low": None, "high": None}
    found = judge(settings, version, "f" * 64, tmp_path, verdict="inconclusive", reason="no overlap.", lift=none)
    assert found.tags["lift"] == "nan"


def test_a_missing_version(settings, surface, started):
    for version in ("77", "challenger"):
        with pytest.raises(NotFoundError, match=f"no version '{version}'"):
            find_version(settings, surface, version)
    with pytest.raises(NotFoundError, match="model mtf-nobody: no version '1'"):
        find_version(settings, "nobody", "1")


def test_a_server_that_is_away_is_no_missing_version(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Settings(state_dir=tmp_path, mlflow_url="http://127.0.0.1:9")
    for version in ("1", "champion"):
        with pytest.raises(
            MtfError, match=r"mlflow_url = http://127\.0\.0\.1:9: MLflow cannot be reached or failed: .*; see `mtf status`"
        ) as said:
            find_version(away, "feed", version)
        assert not isinstance(said.value, NotFoundError)


def test_a_proxy_of_the_shell_is_not_asked_for_a_server_on_loopback(settings, surface, started, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.com")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert find_version(settings, surface, "champion").version == "1"


@pytest.mark.parametrize(
    ("url", "before", "after"),
    [
        ("http://127.0.0.1:5000", (None, None), ("127.0.0.1", "127.0.0.1")),
        ("http://localhost:5000", ("a.example, b.example", None), ("a.example, b.example,localhost",) * 2),
        ("http://[::1]:5000", ("a.example", "b.example"), ("a.example,::1", "b.example,::1")),
        ("http://127.0.0.1:5000", ("127.0.0.1,a.example", "*"), ("127.0.0.1,a.example", "*")),
        ("http://mlflow.example:5000", (None, "a.example"), (None, "a.example")),
    ],
)
def test_what_goes_past_the_proxy_already_still_does(url, before, after, tmp_path, monkeypatch):
    names = ("no_proxy", "NO_PROXY")
    for name, value in zip(names, before, strict=True):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    for _ in range(2):
        connect(Settings(state_dir=tmp_path, mlflow_url=url))
        assert tuple(os.environ.get(name) for name in names) == after


def test_an_intent_carries_the_verdict_the_box_and_the_bundle(settings, surface, started, tmp_path):
    version = train(settings, surface, tmp_path)
    judge(settings, version, started.champion.sha, tmp_path)
    box = box_in_force((0.1, 0.1, 0.2, 0.2))
    (tmp_path / "exploration.json").write_text("{}")
    tag_box(settings, surface, version.version, box, tmp_path / "exploration.json")
    intent = intent_for_version(settings, surface, version.version, action="start", by="test", reason="why")
    assert intent.policy.sha == version.policy_sha
    assert intent.exploration == box
    assert (intent.gate_verdict, intent.gate_baseline_sha, intent.data_dt) == ("pass", started.champion.sha, "2026-03-02")


def test_the_alias_champion_by_hand_promotes_a_version_that_passed(settings, surface, started, tmp_path):
    version = train(settings, surface, tmp_path)
    judge(settings, version, started.champion.sha, tmp_path)
    assert reconcile(settings, surface) == ["aliases brought to generation 1"]
    assert reconcile(settings, surface) == []
    set_alias(settings, surface, "champion", version.version)
    assert "became intent" in reconcile(settings, surface)[0]
    assert reconcile(settings, surface) == []  # it waits; a second intent is not written
    assert len(open_intents(open_store(settings=settings), surface)) == 1
    document = controller(settings, surface).tick()
    assert document.champion.version == version.version
    assert aliases(settings, surface) == {"champion": version.version, "previous_champion": "1"}
    assert "promoted" in find_version(settings, surface, version.version).tags["rollout"]
    assert reconcile(settings, surface) == []


def test_champion_back_to_the_previous_one_is_a_rollback(settings, surface, started, tmp_path):
    test_the_alias_champion_by_hand_promotes_a_version_that_passed(settings, surface, started, tmp_path)
    set_alias(settings, surface, "champion", "1")
    assert "became intent" in reconcile(settings, surface)[0]
    document = controller(settings, surface).tick()
    assert document.champion.version == "1"
    assert aliases(settings, surface)["champion"] == "1"
    assert reconcile(settings, surface) == []


@pytest.fixture
def passed(settings, surface, started, tmp_path):
    """A version that passed its gate against the champion; the aliases say what the document says."""
    version = train(settings, surface, tmp_path)
    judge(settings, version, started.champion.sha, tmp_path)
    reconcile(settings, surface)
    return version


def test_every_move_of_a_person_counts_also_the_second_onto_a_version(settings, surface, passed):
    ticking = controller(settings, surface)
    for to in (passed.version, "1", passed.version, "1"):
        set_alias(settings, surface, "champion", to)
        assert "became intent" in reconcile(settings, surface)[0]
        assert ticking.tick().champion.version == to
        assert aliases(settings, surface)["champion"] == to
        assert reconcile(settings, surface) == []


def test_an_intent_that_was_carried_out_since_the_document_was_read_is_not_asked_again(settings, surface, passed):
    set_alias(settings, surface, "champion", passed.version)
    reconcile(settings, surface)
    store = open_store(settings=settings)
    before = read_latest(store, surface)
    controller(settings, surface).tick()
    assert _pursue(settings, connect(settings), store, before, "champion", passed.version) == []
    assert open_intents(store, surface) == []


def test_an_intent_that_was_noted_and_not_written_is_written_once(settings, surface, passed):
    set_alias(settings, surface, "champion", passed.version)
    note_intent(connect(settings), surface, "champion", passed.version, "noted")  # and killed
    store = open_store(settings=settings)
    for _ in range(2):
        assert reconcile(settings, surface) == []
        assert [name for name, _ in open_intents(store, surface)] == ["noted"]


def test_a_move_that_nobody_has_seen_survives_a_new_generation(settings, surface, passed):
    """A box changes, or a canary ends, in the two minutes until the next look."""
    ticking, store = controller(settings, surface), open_store(settings=settings)
    submit(store, surface, intent_for_version(settings, surface, passed.version, action="promote", by="t", reason="t"))
    assert ticking.tick().champion.version == aliases(settings, surface)["champion"] == passed.version
    set_alias(settings, surface, "champion", "1")
    submit(store, surface, Intent(action="explore", exploration=box_in_force((0.1,) * 4)))
    assert ticking.tick().generation == 3
    assert aliases(settings, surface)["champion"] == "1"
    assert "became intent" in reconcile(settings, surface)[0]
    assert ticking.tick().champion.version == "1"


def test_an_answer_of_then_is_not_one_to_the_next_move(settings, surface, started, tmp_path):
    version = train(settings, surface, tmp_path)
    judge(settings, version, started.champion.sha, tmp_path, verdict="inconclusive")
    reconcile(settings, surface)
    ticking = controller(settings, surface)
    set_alias(settings, surface, "champion", version.version)
    reconcile(settings, surface)
    ticking.tick()  # refuses it
    set_alias(settings, surface, "champion", "1")  # and the person has seen it before the next look
    assert reconcile(settings, surface) == []
    judge(settings, version, started.champion.sha, tmp_path)
    set_alias(settings, surface, "champion", version.version)
    assert "became intent" in reconcile(settings, surface)[0]
    assert ticking.tick().champion.version == version.version


def test_a_wait_costs_nothing_and_holds_no_rollback_up(settings, surface, passed, monkeypatch):
    """A challenger that waits for its turn is not fetched again at every look."""
    set_alias(settings, surface, "challenger", passed.version)
    reconcile(settings, surface)
    module = sys.modules["mtf.registry.reconcile"]
    monkeypatch.setattr(module, "intent_for_version", lambda *_, **__: pytest.fail("the bundle was fetched"))
    assert reconcile(settings, surface) == []


def test_a_verdict_is_whole_where_its_baseline_is_said(settings, surface, tmp_path, monkeypatch):
    """Cut at any tag, the version does not say against whom, and is given its verdict again."""
    version, client = train(settings, surface, tmp_path), connect(settings)
    written = []
    monkeypatch.setattr(type(client), "set_model_version_tag", lambda self, name, number, key, value: written.append(key))
    monkeypatch.setattr(type(client), "update_model_version", lambda *_, **__: written.append("card"))
    judge(settings, version, "f" * 64, tmp_path)
    assert written[0] == "card"
    assert set(written[:-1]) >= {"card", "lift", "lift_low", "lift_high", "verdict", "verdict_reason"}
    assert written[-1] == "verdict_baseline"


@pytest.mark.parametrize("alias", ["champion", "challenger"])
def test_a_move_of_a_version_that_did_not_pass_is_refused_and_moved_back(settings, surface, started, tmp_path, alias):
    version = train(settings, surface, tmp_path)
    judge(settings, version, started.champion.sha, tmp_path, verdict="inconclusive")
    reconcile(settings, surface)
    set_alias(settings, surface, alias, version.version)
    reconcile(settings, surface)
    controller(settings, surface).tick()
    assert "refused and moved back" in reconcile(settings, surface)[0]
    assert aliases(settings, surface) == {"champion": "1"}
    assert "refused" in find_version(settings, surface, version.version).tags["rollout"]
    assert reconcile(settings, surface) == []
    assert read_latest(open_store(settings=settings), surface).generation == 1


def test_the_alias_challenger_by_hand_starts_a_canary_once(settings, surface, passed):
    set_alias(settings, surface, "challenger", passed.version)
    reconcile(settings, surface)
    running = controller(settings, surface)
    document = running.tick()
    assert document.canary.version == passed.version
    assert aliases(settings, surface) == {"champion": "1", "challenger": passed.version}
    assert reconcile(settings, surface) == []


def test_a_registry_that_lags_is_not_taken_for_a_person(settings, surface, started, tmp_path):
    version = train(settings, surface, tmp_path)
    judge(settings, version, started.champion.sha, tmp_path)
    set_alias(settings, surface, "champion", version.version)
    spec = small_spec(surface=surface)
    reconcile(settings, surface)  # the first look brings the aliases to the document
    set_alias(settings, surface, "champion", version.version)
    reconcile(settings, surface)
    mute = Controller(settings, surface, spec, SpoolReader(settings.spool_dir(surface)), RolloutConfig())
    assert mute.tick().champion.version == version.version  # promoted while the registry could not be told
    set_alias(settings, surface, "champion", "1")  # as if the alias had never moved
    assert reconcile(settings, surface) == ["aliases brought to generation 2"]
    assert aliases(settings, surface)["champion"] == version.version
    assert open_intents(open_store(settings=settings), surface) == []


def test_registry_page_leads_past_mlflows_language_models():
    there = "http://127.0.0.1:5000"
    assert registry_page(there, "feed") == f"{there}/#/models/mtf-feed?workflowType=machine_learning"
    assert registry_page(there, "feed", version="4") == f"{there}/#/models/mtf-feed/versions/4?workflowType=machine_learning"
    assert registry_page(there, "feed", "search") == f"{there}/#/models?workflowType=machine_learning"
