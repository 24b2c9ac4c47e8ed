"""The state machine, driven through a store and rows in memory; the spool's own reader is tested with the logs."""

import re
from pathlib import Path

import numpy as np
import pytest

from mtf.errors import ConflictError, InputError
from mtf.rollout import intents
from mtf.rollout.controller import Controller, RolloutConfig, read_config
from mtf.rollout.document import Arms, PolicyRef, Rollout
from mtf.rollout.documents import fetch_bundle, put_bundle, read_generation, read_latest, write_next
from mtf.rollout.intents import Intent
from mtf.rollout.start import box_in_force, initialise
from mtf.rollout.statistics import DecisionRules
from mtf.store import open_store
from tests.conftest import random_policy, small_spec
from tests.rollout.test_users import feedback, requests

DAY = 86_400_000_000
SPEC = small_spec()
CONFIG = RolloutConfig(rules=DecisionRules(min_users=200, tuned_for=2000))


class Rows:
    """Committed rows in memory."""

    def __init__(self):
        self.requests, self.feedback, self.mark = [], [], DAY

    def poll(self, cursor):
        start = cursor.get("n", 0)
        return self.requests[start:], self.feedback[start:], {"n": len(self.requests)}

    def watermark(self):
        return self.mark

    def play(self, rollout_id, n, effect, start=DAY):
        """n users, alternately canary and control, one request each."""
        rng = np.random.default_rng(n)
        rows, seen = [], []
        for i in range(n):
            arm = "canary" if i % 2 else "control"
            rows.append((f"q{i}", f"u{i}", arm, start + i))
            watch = rng.gamma(2, 20) * (1 + effect * (arm == "canary"))
            seen.append((f"q{i}", 1, start + i, watch, int(watch > 10)))
        table = requests(rows)
        table = table.set_column(table.column_names.index("rollout_id"), "rollout_id", [[rollout_id] * n])
        self.requests.append(table)
        self.feedback.append(feedback(seen))


@pytest.fixture
def platform(settings):
    settings.clock = "simulated"
    store, rows = open_store(settings=settings), Rows()
    document = initialise(settings, "feed", SPEC, CONFIG.exploring, 0.2)
    told = []
    controller = Controller(settings, "feed", SPEC, rows, CONFIG, lambda a, b: told.append((a.generation, b.generation)))
    policy = random_policy(5, spec=SPEC)
    ref = PolicyRef(sha=policy.sha, version="2", uri=put_bundle(store, policy.sha, policy.to_files()))

    def start(**changes):
        fields = {"action": "start", "policy": ref, "gate_verdict": "pass", "gate_baseline_sha": document.champion.sha}
        return intents.submit(store, "feed", Intent(**(fields | changes)))

    return store, rows, controller, start, told


def test_a_better_canary_is_promoted_with_its_box(platform):
    store, rows, controller, start, told = platform
    name = start(exploration=box_in_force((0.1,) * 4))
    document = controller.tick()
    assert document.canary.version == "2"
    assert document.arms == CONFIG.comparing
    assert document.rollout.id == name
    assert controller.tick().generation == document.generation  # nothing new, nothing written
    rows.play(name, 2000, effect=0.5)
    rows.mark = DAY + DAY // 2
    document = controller.tick()
    assert document.champion.version == "2"
    assert document.previous.version == "bootstrap"
    assert document.rollout.outcome == "promoted"
    assert document.exploration.half_width == (0.1,) * 4
    assert document.arms == CONFIG.exploring
    assert document.rollout.statistics["comparison"]["n_canary"] == 1000
    assert told == [(1, 2), (2, 3)]


def test_a_worse_canary_is_rolled_back_and_the_box_stays(platform):
    store, rows, controller, start, _ = platform
    name = start(exploration=box_in_force((0.1,) * 4))
    controller.tick()
    rows.play(name, 2000, effect=-0.5)
    rows.mark += DAY // 2
    document = controller.tick()
    assert document.champion.version == "bootstrap"
    assert document.rollout.outcome == "rolled_back"
    assert "worse" in document.rollout.reason
    assert document.exploration.half_width == (0.2,) * 4


def test_no_difference_ends_inconclusive_at_the_last_look(platform):
    store, rows, controller, start, _ = platform
    name = start()
    controller.tick()
    rows.play(name, 1000, effect=0.0)
    rows.mark = DAY + DAY // 2
    assert controller.tick().rollout.phase == "running"
    rows.mark = 2 * DAY + 3_600_000_000
    document = controller.tick()
    assert document.rollout.outcome == "rolled_back"
    assert document.rollout.reason.startswith("inconclusive")


def test_a_restart_goes_on_from_the_store_and_the_spool(platform, settings):
    store, rows, controller, start, _ = platform
    name = start()
    controller.tick()
    rows.play(name, 2000, effect=0.5)
    rows.mark += DAY // 2
    again = Controller(settings, "feed", SPEC, rows, CONFIG)
    assert again.tick().champion.version == "2"


@pytest.fixture
def killed(monkeypatch):
    """killed(controller): a tick that ends between the document and the answer."""

    def lost(*_):
        raise KeyboardInterrupt

    def tick(controller):
        with monkeypatch.context() as patched:
            patched.setattr(intents, "answer", lost)
            with pytest.raises(KeyboardInterrupt):
                controller.tick()

    return tick


def test_a_rollback_whose_answer_was_lost_is_not_carried_out_twice(platform, killed, settings):
    store, rows, controller, start, _ = platform
    start(action="promote")
    assert controller.tick().champion.version == "2"
    name = intents.submit(store, "feed", Intent(action="rollback"))
    killed(controller)
    again = Controller(settings, "feed", SPEC, rows, CONFIG)
    document = again.tick()
    assert (document.champion.version, document.previous.version) == ("bootstrap", "2")
    answer = intents.read_answer(store, "feed", name)
    assert (answer.done, answer.generation) == (True, document.generation)
    assert again.tick() == document


def test_a_start_whose_answer_was_lost_starts_once(platform, killed, settings):
    store, rows, controller, start, _ = platform
    name = start()
    killed(controller)
    again = Controller(settings, "feed", SPEC, rows, CONFIG)
    assert again.tick().rollout.phase == "running"
    assert intents.read_answer(store, "feed", name).done
    rows.play(name, 2000, effect=-0.5)
    rows.mark += DAY // 2
    ended = again.tick()
    assert ended.rollout.outcome == "rolled_back"
    assert again.tick() == ended


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gate_verdict": "inconclusive"}, "its gate says inconclusive"),
        ({"gate_baseline_sha": "0" * 64}, "evaluate it again"),
        ({"policy": PolicyRef(sha="f" * 64, version="9", uri="")}, "not in the store"),
    ],
)
def test_refusals_say_why_and_change_nothing(platform, changes, why):
    store, _, controller, start, _ = platform
    name = start(**changes)
    assert controller.tick().generation == 1
    answer = intents.read_answer(store, "feed", name)
    assert not answer.done
    assert why in answer.reason
    assert intents.open_intents(store, "feed") == []


def test_a_queued_start_waits_and_is_superseded_by_a_newer_one(platform):
    store, _, controller, start, _ = platform
    start()
    controller.tick()
    second, third = start(), start()
    controller.tick()
    assert "superseded" in intents.read_answer(store, "feed", second).reason
    assert [n for n, _ in intents.open_intents(store, "feed")] == [third]
    intents.submit(store, "feed", Intent(action="abort", reason="enough"))
    document = controller.tick()
    assert document.rollout.id == third or controller.tick().rollout.id == third


def test_frozen_means_no_decision(platform):
    store, rows, controller, start, _ = platform
    name = start()
    controller.tick()
    intents.submit(store, "feed", Intent(action="freeze", reason="look first"))
    controller.tick()
    rows.play(name, 2000, effect=0.5)
    rows.mark += DAY // 2
    assert controller.tick().rollout.phase == "frozen"
    intents.submit(store, "feed", Intent(action="unfreeze"))
    assert controller.tick().rollout.outcome == "promoted"


def test_hand_promotion_then_rollback(platform):
    store, _, controller, start, _ = platform
    start(action="promote")
    assert controller.tick().champion.version == "2"
    intents.submit(store, "feed", Intent(action="rollback"))
    document = controller.tick()
    assert (document.champion.version, document.previous.version) == ("bootstrap", "2")


def test_a_hand_promotion_leaves_what_an_earlier_rollout_came_to(platform):
    store, rows, controller, start, _ = platform
    name = start()
    controller.tick()
    rows.play(name, 4000, -0.3)
    rows.mark += DAY // 2
    ended = controller.tick().rollout
    assert ended.outcome == "rolled_back"
    start(action="promote")
    document = controller.tick()
    assert (document.champion.version, document.rollout) == ("2", ended)
    intents.submit(store, "feed", Intent(action="rollback"))
    assert controller.tick().rollout == ended


@pytest.mark.parametrize(("clock", "hours"), [("simulated", 24.5), ("real", 48.3)])
def test_a_rollout_has_its_hours(platform, clock, hours):
    """Begun at 23:48: the simulated clock is told whole days, so its day ends half an hour after midnight; 24 hours are 24."""
    _, _, controller, _, _ = platform
    controller.settings.clock = clock
    rollout = Rollout(id="r", phase="running", started_ts="1970-01-01T23:48:00+00:00")
    assert controller._deadline_us(rollout) == pytest.approx(hours * DAY / 24)


def test_two_writers_of_one_generation(platform):
    store, _, controller, start, _ = platform
    document = read_latest(store, "feed")
    with pytest.raises(ConflictError):
        write_next(store, document)
    assert read_generation(store, "feed", 1) == document


def test_a_damaged_cache_is_fetched_again(platform, settings):
    store, _, _, _, _ = platform
    ref = read_latest(store, "feed").champion
    fetch_bundle(store, ref, settings.bundles_dir)
    (settings.bundles_dir / ref.sha / "policy.safetensors").write_bytes(b"x")
    assert fetch_bundle(store, ref, settings.bundles_dir).sha == ref.sha


def test_a_cache_that_lacks_a_file_is_fetched_again(platform, settings):
    store, _, _, _, _ = platform
    policy = random_policy(5, spec=SPEC)
    ref = PolicyRef(sha=policy.sha, version="2", uri="")
    fetch_bundle(store, ref, settings.bundles_dir)
    (settings.bundles_dir / policy.sha / "golden.safetensors").unlink()
    assert fetch_bundle(store, ref, settings.bundles_dir).sha == policy.sha
    assert (settings.bundles_dir / policy.sha / "golden.safetensors").exists()


def test_initialise_leaves_what_is_there(platform, settings):
    store, _, controller, start, _ = platform
    start(action="promote")
    controller.tick()
    assert initialise(settings, "feed", SPEC, Arms(), 0.0).generation == 2


def test_a_guardrail_that_is_not_named_keeps_its_margin(tmp_path):
    (tmp_path / "rollout.json").write_text('{"rules": {"margins": {"valid": 0.1}}, "exploring": {"explore": 0.5}}')
    config = read_config(tmp_path / "rollout.json")
    assert (config.rules.margins.valid, config.rules.margins.duration) == (0.1, 0.05)
    assert (config.exploring.explore, config.comparing.canary) == (0.5, 0.375)
    assert read_config(tmp_path / "none.json") == RolloutConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"margins": {"valid": 0.1}}', "unknown field `margins`"),
        ('{"rules": {"margin": {"valid": 0.1}}}', "unknown field `margin`"),
        ('{"rules": {"margins": {"durations": 0.1}}}', "unknown field `durations`"),
        ('{"rules": {"margins": {"valid": -0.1}}}', r"`float` >= 0.0 - at `\$.rules.margins.valid`"),
        ('{"rules": {"alpha": 0}}', r"`float` > 0.0 - at `\$.rules.alpha`"),
        ('{"exploring": {"explor": 0.5}}', "unknown field `explor`"),
        ('{"exploring": {"explore": 0.5, "canary": 0.1}}', "canary and control are 0 while nothing is compared"),
        ('{"comparing": {"explore": 0.5, "canary": 0.3, "control": 0.3}}', "comparing: shares .* sum to at most 1"),
        ('{"comparing": {"canary": 0.3, "control": 0.2}}', "canary 0.3 and control 0.2 must be equal"),
        ('{"last_look_h": 0}', r"`float` > 0.0 - at `\$.last_look_h`"),
    ],
)
def test_a_configuration_that_would_not_do_what_it_says_is_refused(tmp_path, text, says):
    (tmp_path / "rollout.json").write_text(text)
    with pytest.raises(InputError, match=says) as refused:
        read_config(tmp_path / "rollout.json")
    assert "rollout.json" in str(refused.value)


def test_the_documented_configuration_is_the_default(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "rollout.md"
    (block,) = re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "rollout.json").write_text(block)
    assert read_config(tmp_path / "rollout.json") == RolloutConfig()
