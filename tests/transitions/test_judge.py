"""What is built is judged before it may be published: by the chain's step and by the command, which call one function."""

import json

import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mtf.commands.transitions import transitions
from mtf.fileio import write_atomic
from mtf.logs.days import write_day
from mtf.pipeline import CriticalError, build_transitions
from mtf.quality import Verdict
from mtf.quality.transitions import read_transitions_verdict
from mtf.settings import Settings
from mtf.transitions.judge import judge_built
from tests.quality import rows

DAYS = ("2026-01-01", "2026-01-02")


@pytest.fixture
def settings(tmp_path):
    """A state folder with two sealed days that validation has passed, and expectations of its own."""
    found = Settings(state_dir=tmp_path / "state", expectations_dir=rows.suites(tmp_path / "expectations"), threads=1)
    rows.SPEC.write(found.state_dir / "surfaces" / "feed" / "spec.json")
    for number, dt in enumerate(DAYS):
        write_day(found.logs_dir("feed"), dt, *rows.day(30, seed=number, dt=dt), rows.SPEC)
        verdict = Verdict(surface="feed", dt=dt, revision=1, status="pass", reasons=[], counts={})
        write_atomic(found.quality_dir("feed") / f"dt={dt}" / "r1" / "verdict.json", msgspec.json.encode(verdict))
    return found


def forbid(settings, rule, column, value):
    path = settings.expectations_dir / "sessions.json"
    document = json.loads(path.read_text())
    (found,) = (e for e in document["expectations"] if e["meta"]["rule"] == rule)
    found["severity"] = "critical"
    found["kwargs"] = {"column": column, "min_value": value}
    path.write_text(json.dumps(document))


def test_a_critical_day_stops_the_chain_until_it_is_mended(settings):
    built = build_transitions(settings, "feed", DAYS[0])
    assert built["rows"] == 120
    assert read_transitions_verdict(settings.quality_dir("feed"), DAYS[0]).metrics["unaccounted_requests"] == 0
    forbid(settings, "not_empty", "transitions", 121)
    # the day that is built now, and the one before it: the dataset is both
    with pytest.raises(CriticalError, match=r"2026-01-01: no session of the day has closed: found 120.*2026-01-02: .*Nothing is"):
        build_transitions(settings, "feed", DAYS[1])
    command = ["build", "--logs", str(settings.logs_dir("feed")), "--out", str(settings.transitions_dir("feed"))]
    command += ["--expectations", str(settings.expectations_dir), "--quality", str(settings.quality_dir("feed"))]
    done = CliRunner().invoke(transitions, command)
    assert done.exit_code == 3 and "2026-01-02  critical: no session" in done.output, done.output
    forbid(settings, "not_empty", "transitions", 1)
    assert build_transitions(settings, "feed", DAYS[1])["rows"] == 120


def test_lost_requests_are_noticed(settings):
    build_transitions(settings, "feed", DAYS[0])
    path = settings.transitions_dir("feed") / f"dt={DAYS[0]}" / "build.json"
    document = json.loads(path.read_text()) | {"rows": 117}
    path.write_text(json.dumps(document))
    (verdict,) = judge_built(
        settings.logs_dir("feed"),
        settings.transitions_dir("feed"),
        settings.quality_dir("feed"),
        spec=rows.SPEC,
        expectations_dir=settings.expectations_dir,
    )
    assert verdict.metrics["unaccounted_requests"] == 3 and verdict.status == "critical"
    assert pq.read_metadata(path.parent / "transitions.parquet").num_rows == 120
