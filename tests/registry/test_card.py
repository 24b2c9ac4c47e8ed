"""The card is read by people who decide: its numbers are the tags', and nothing is claimed that is not there."""

from mtf.registry.card import card
from tests.conftest import random_policy

DATA = {
    "dataset_revision": "data/feed/2026-03-02.r1",
    "dataset_md5": "abc.dir",
    "dataset_rows": "1234",
    "dataset_dt": "2026-03-02",
    "code_sha": "c0de",
}
VERDICT = {
    "verdict": "pass",
    "verdict_reason": "It lies above 0.",
    "verdict_baseline": "f" * 64,
    "lift": "0.0712",
    "lift_low": "-0.0301",
    "lift_high": "0.11",
}


def test_a_judged_version_shows_data_verdict_and_interval():
    policy = random_policy(3)
    text = card("feed", policy, DATA | VERDICT)
    assert "state of 3 features to 4 fusion parameters" in text
    assert "Dataset `data/feed/2026-03-02.r1` (md5 `abc.dir`, 1234 rows, newest day 2026-03-02), code `c0de`" in text
    assert "**pass**: It lies above 0. Lift over the champion `ffffffffffff`: +7.12% [-3.01%, +11.00%]." in text
    assert policy.sha in text
    assert "models:/mtf-feed@champion" in text


def test_before_the_gate_and_for_the_start_it_says_so():
    assert "Not evaluated yet." in card("feed", random_policy(), DATA)
    start = card("search", random_policy(), {})
    assert "the same action for every state" in start
    assert "nothing to compare it with" in start
    assert "mtf-search" in start


def test_a_verdict_without_an_estimate_prints_no_number():
    text = card("feed", random_policy(), DATA | VERDICT | dict.fromkeys(("lift", "lift_low", "lift_high"), "nan"))
    assert "**pass**: It lies above 0." in text
    assert "nan" not in text
    assert "Lift over" not in text
