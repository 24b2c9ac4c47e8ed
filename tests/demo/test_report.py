import msgspec
import pytest

from mtf.demo.report import page, plot, table, write_report
from mtf.demo.summary import (
    Canary,
    Dataset,
    Gate,
    Metric,
    PowerOf,
    Round,
    Seconds,
    Summary,
    TrueValue,
    Truth,
    read_summary,
    write_summary,
)
from mtf.demo.verify import Check
from mtf.errors import InputError


def value(mean):
    return TrueValue(mean=mean, se=0.1)


@pytest.fixture
def summary():
    passed = Round(
        round=1,
        dt="2026-03-02",
        dataset=Dataset(md5="a.dir", rows=1234, revision="data/feed/2026-03-02.r1"),
        power=PowerOf(detectable_lift=0.041),
        model_version="2",
        policy_sha="b" * 64,
        run_id="r",
        baseline_sha="c" * 64,
        gate=Gate(verdict="pass", reason="It is <better>.", lift=0.07, low=0.03, high=0.11),
        canary=Canary(
            decision="rolled_back",
            reason="inconclusive: too noisy",
            n_canary=1500,
            n_control=1490,
            metrics={name: Metric(lift=0.01, low=-0.05, high=0.07) for name in ("reward", "valid", "duration")},
            rollout_id="r",
            dt="2026-03-03",
        ),
        serving_sha="c" * 64,
        true_value=value(10.0),
        candidate_true_value=value(10.6),
        seconds=Seconds(traffic=1, chain=2, total=3),
    )
    refused = msgspec.structs.replace(
        passed,
        round=2,
        power=PowerOf(detectable_lift=None),
        gate=Gate(verdict="inconclusive", reason="Nothing to see.", lift=None, low=None, high=None),
        canary=Canary(decision="none", reason="the gate says inconclusive"),
    )
    return Summary(
        rounds=[passed, refused],
        urls={"airflow": "http://127.0.0.1:8080"},
        world={"kind": "parametric", "name": "default"},
        truth=Truth(users=100, seed=1, dt="2026-03-02", start=value(10.0)),
        configuration={},
        code="c",
        versions={"mtf": "0"},
        machine={},
        command="mtf demo",
        exit=0,
    )


def test_a_summary_comes_back_as_it_was_written(summary, tmp_path):
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
    with pytest.raises(InputError, match="run `mtf demo` first"):
        read_summary(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"rounds": 3}')
    with pytest.raises(InputError, match=r"rounds"):
        read_summary(tmp_path / "bad.json")


def test_the_table_tells_every_outcome(summary):
    text = table(summary)
    assert "pass +7.0% [+3.0%, +11.0%]" in text
    assert "rolled back" in text
    assert "1,500 / 1,490" in text
    assert "inconclusive: Nothing to see." in text
    assert "no decision reads it" in text


def test_the_page_is_whole_and_escaped(summary, tmp_path):
    write_report(summary, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "It is &lt;better&gt;." in text
    assert "<svg" in text
    assert "src=" not in text
    assert page(summary, "<svg></svg>").startswith("<!doctype html>")


@pytest.mark.parametrize("estimated", [True, False])
def test_the_plots_legend_names_what_any_round_shows(summary, tmp_path, estimated):
    first, second = summary.rounds
    if not estimated:
        first, second = (
            msgspec.structs.replace(r, gate=g, round=n) for r, g, n in ((first, second.gate, 1), (second, first.gate, 2))
        )
    assert [r.gate.lift is not None for r in (first, second)] == [estimated, not estimated]
    plot(msgspec.structs.replace(summary, rounds=[first, second]), tmp_path / "rounds.svg")
    said = (tmp_path / "rounds.svg").read_text()
    for label in ("gate (offline, discounted, 96 %)", "canary - control (always valid, 95 %)", "truth, by simulation"):
        assert said.count(label) == 1
    assert said.count("rolled back") == 1


@pytest.mark.parametrize(
    ("recorded", "again", "equal"),
    [(1.0, 1.0 + 1e-9, True), (1.0, 1.001, False), ("a", "a", True), (3, 4, False), (None, None, True), (None, 0.1, False)],
)
def test_what_counts_as_equal(recorded, again, equal):
    assert Check(name="n", recorded=recorded, recomputed=again, source="s").equal is equal
