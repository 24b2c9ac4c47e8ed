"""`mtf rollout ...`: the controller and the intents that it answers, on a folder as the store."""

import json
import threading
import time

import pytest

from mtf.logs.spool import SpoolReader
from mtf.rollout.controller import Controller, RolloutConfig
from mtf.rollout.document import Arms, PolicyRef
from mtf.rollout.documents import put_bundle, read_latest
from mtf.rollout.intents import Intent, submit
from mtf.rollout.start import initialise
from mtf.settings import Settings
from mtf.store import open_store
from tests.commands.conftest import said
from tests.conftest import random_policy, small_spec

SPEC = small_spec()


@pytest.fixture
def surface(state):
    """The first document of `feed`, with its spec where the controller looks for it."""
    SPEC.write(state / "surfaces" / "feed" / "spec.json")
    return initialise(Settings(), "feed", SPEC, Arms(explore=0.5), 0.2)


@pytest.fixture
def controller(surface):
    """A controller that ticks beside the command, as `mtf rollout run` does."""
    settings = Settings()
    ticking = Controller(settings, "feed", SPEC, SpoolReader(settings.spool_dir("feed")), RolloutConfig(), lambda *_: None)
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            ticking.tick()
            time.sleep(0.05)

    thread = threading.Thread(target=tick)
    thread.start()
    yield ticking
    stop.set()
    thread.join()


def canary():
    """Ask for a canary that passed its gate."""
    store, policy = open_store(), random_policy(5, spec=SPEC)
    ref = PolicyRef(sha=policy.sha, version="2", uri=put_bundle(store, policy.sha, policy.to_files()))
    champion = read_latest(store, "feed").champion.sha
    return submit(store, "feed", Intent(action="start", policy=ref, gate_verdict="pass", gate_baseline_sha=champion))


def test_status_says_who_serves_and_why(mtf, surface):
    done = mtf("rollout", "status")
    said(done, 0, "surface     feed, generation 1")
    assert f"champion    version bootstrap ({surface.champion.sha[:12]})" in done.out
    assert "explore 50.0%" in done.out
    assert "initialised: first start of the surface" in done.out
    assert json.loads(mtf("rollout", "status", "--json").out)["generation"] == 1


def test_without_a_document_it_says_how_one_comes_about(mtf):
    said(mtf("rollout", "status"), 1, "surface 'feed' has no deployment document yet; start the platform with `mtf up`")


def test_one_tick_begins_what_was_asked_for(mtf, surface):
    name = canary()
    said(mtf("rollout", "run", "--once"), 0, "")
    done = mtf("rollout", "status")
    said(done, 0, "canary      version 2")
    assert f"rollout     {name}: running" in done.out
    assert read_latest(open_store(), "feed").generation == 2
    # a tick without anything new writes nothing
    mtf("rollout", "run", "--once")
    assert read_latest(open_store(), "feed").generation == 2


def test_an_intent_is_answered_by_the_running_controller(mtf, surface, controller):
    name = canary()
    until = time.monotonic() + 10
    while read_latest(open_store(), "feed").canary is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    said(mtf("rollout", "freeze", "--reason", "holiday"), 0, "freeze: done: ")
    assert read_latest(open_store(), "feed").rollout.phase == "frozen"
    said(mtf("rollout", "freeze", "--off"), 0, "unfreeze: done: ")
    assert read_latest(open_store(), "feed").rollout.phase == "running"
    said(mtf("rollout", "abort", "--reason", "enough"), 0, "abort: done: ")
    document = read_latest(open_store(), "feed")
    assert (document.rollout.id, document.rollout.outcome, document.canary) == (name, "aborted", None)
    assert "enough" in mtf("rollout", "status").out


def test_a_refusal_is_exit_code_1_with_its_reason(mtf, surface, controller):
    for command in ("rollback", "abort", "freeze"):
        done = mtf("rollout", command)
        assert done.code == 1, done
        assert f"{command}: refused: " in done.out
    assert read_latest(open_store(), "feed").generation == 1


def test_without_a_controller_the_intent_waits_and_that_is_said(mtf, surface):
    said(mtf("rollout", "abort", "--wait", 0.1), 0, "is written and waits for the controller (is `mtf rollout run` up?)")
    assert len(open_store().list("deploy/feed/intents/")) == 1


@pytest.mark.parametrize("command", ["start", "promote"])
def test_a_version_needs_the_registry(mtf, surface, command):
    said(mtf("rollout", command, "--version", "3", "--wait", 0), 1, "mlflow_url: not set; start the platform with `mtf up`")


def test_the_controller_names_what_it_cannot_read(mtf, state, tmp_path):
    said(mtf("rollout", "run", "--once"), 1, "spec.json does not exist")
    SPEC.write(state / "surfaces" / "feed" / "spec.json")
    (tmp_path / "config.json").write_text('{"rulez": 1}')
    said(mtf("rollout", "run", "--once", "--config", tmp_path / "config.json"), 1, "unknown field `rulez`")
