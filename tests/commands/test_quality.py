"""Bad days on the command line: each ends in a verdict, is counted, and leaves `mtf transitions build` no smaller in silence.

The same cases as in tests/quality, each through `mtf validate`, `mtf quarantine list` and `mtf transitions build`.
"""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.fileio import sha256_file
from mtf.transitions.pool import read_build
from tests.commands.conftest import said
from tests.quality import rows


def every(logs, kind="requests"):
    return next((logs / f"dt={rows.DT}" / "r1").glob(f"{kind}-*.parquet"))


def reseal(logs):
    """Make the manifest agree with the files: what is wrong was wrong when the day was sealed."""
    path = logs / f"dt={rows.DT}" / "r1" / "manifest.json"
    document = json.loads(path.read_text())
    for segment in document["segments"]:
        segment["sha256"] = sha256_file(path.parent / segment["path"])
    path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def tables():
    return rows.day()


def test_spoilt_rows_are_set_aside_counted_listed_and_dropped_from_the_dataset(mtf, tables, tmp_path):
    """One of each: a NaN action, one outside its box, a duplicate request, a negative watch time, feedback for nobody."""
    requests, feedback = tables
    explored = np.flatnonzero(requests["exploring"].to_pylist())
    spoilt = requests
    spoilt = rows.put(spoilt, "action", int(explored[0]), [float("nan"), 0.0, 0.0, 0.0])
    spoilt = rows.put(spoilt, "action", int(explored[5]), [-0.99] * 4)
    spoilt = pa.concat_tables([spoilt, requests.slice(7, 1)])
    answers = rows.put(feedback, "watch_s", 100, -3.0)
    answers = rows.put(answers, "request_id", 200, rows.unknown_id())
    logs, out = rows.logs_of(tmp_path / "logs", spoilt, answers), tmp_path / "out"

    done = mtf("validate", "--logs", logs, "--out", out)
    said(done, 0, f"{rows.DT}  warning   241 requests, 720 feedback, 5 rows set aside")
    for rule in ("action_finite", "action_in_box", "duplicate_request", "watch_range", "known_request"):
        assert re.search(rf"[12] of (241|240|720) rows \((requests|feedback)\.{rule}\)", done.out), (rule, done.out)
    assert (out / "site" / "index.html").exists()

    listed = mtf("quarantine", "list", "--out", out, "--rows", 2)
    said(listed, 0, f"{rows.DT} r1  3 rows of requests")
    assert "2 rows of feedback" in listed.out
    assert listed.out.count("    request ") == 4
    said(mtf("quarantine", "list", "--out", out, "--dt", rows.DT), 0, "duplicate_request")

    built = mtf("transitions", "build", "--logs", logs, "--out", tmp_path / "transitions")
    assert built.code == 0, built
    build = read_build(tmp_path / "transitions", rows.DT)
    requests_gone = {r: n for r, n in build.dropped.items() if r.startswith("requests.")}
    # 241 rows came in: two with a bad action and one copy are gone, and are counted; nothing else is
    assert build.rows + build.carried + sum(requests_gone.values()) == 241
    assert sum(requests_gone.values()) == 3
    for reason, n in build.dropped.items():
        assert f"dropped {n} rows: {reason}" in built.out
    assert f"{build.rows} transitions" in built.out
    # feedback of what was dropped, the negative one and the stray: every row is in the dataset or counted
    taken = sum(pq.read_table(tmp_path / "transitions" / f"dt={rows.DT}" / "transitions.parquet")["n_shown"].to_pylist())
    carried = pq.read_metadata(tmp_path / "transitions" / f"dt={rows.DT}" / "carry" / "feedback.parquet").num_rows
    assert taken + carried + sum(n for r, n in build.dropped.items() if r.startswith("feedback.")) == 720


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def drop_column(path):
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)


@pytest.mark.parametrize(
    ("spoil", "sealed_so", "verdict", "error"),
    [
        (truncate, False, "a file's bytes are not those of the manifest", "the manifest says"),
        (truncate, True, "a file is not readable Parquet", "requests-000.parquet"),
        (drop_column, True, "a column of the contract is missing: action of requests-000.parquet", "column `action`"),
    ],
    ids=["changed", "corrupted", "column missing"],
)
def test_a_day_that_cannot_be_read_is_critical_and_builds_nothing(mtf, tables, tmp_path, spoil, sealed_so, verdict, error):
    logs = rows.logs_of(tmp_path / "logs", *tables)
    spoil(every(logs))
    if sealed_so:
        reseal(logs)
    done = mtf("validate", "--logs", logs, "--out", tmp_path / "out")
    said(done, 3, f"{rows.DT}  critical")
    assert verdict in done.out
    said(mtf("transitions", "build", "--logs", logs, "--out", tmp_path / "t"), 1, error)
    assert not list((tmp_path / "t").glob("dt=*"))


def test_an_empty_day_is_critical_and_trains_nothing(mtf, tables, tmp_path):
    requests, feedback = tables
    logs = rows.logs_of(tmp_path / "logs", requests.slice(0, 0), feedback)
    said(mtf("validate", "--logs", logs, "--out", tmp_path / "out"), 3, "the day holds no usable request: found 0")
    said(mtf("transitions", "build", "--logs", logs, "--out", tmp_path / "t"), 0, "0 transitions in 0 sessions")
    # feedback for nobody is counted, not lost
    build = read_build(tmp_path / "t", rows.DT)
    assert sum(build.dropped.values()) == 720
    learn = ("--transitions", tmp_path / "t", "--algorithm", "bc", "--out", tmp_path / "p")
    said(mtf("train", *learn), 1, "holds no rows of train users")
    said(mtf("power", "--transitions", tmp_path / "t"), 1, "holds no rows of gate users")


def test_a_day_of_one_session_is_a_warning_and_is_built(mtf, tables, tmp_path):
    requests, feedback = tables
    ids = set(requests["request_id"].to_pylist()[:4])
    mine = feedback.filter(pa.array([r in ids for r in feedback["request_id"].to_pylist()]))
    logs = rows.logs_of(tmp_path / "logs", requests.slice(0, 4), mine)
    said(mtf("validate", "--logs", logs, "--out", tmp_path / "out"), 0, "too few sessions to say anything about the day: found 1")
    said(mtf("transitions", "build", "--logs", logs, "--out", tmp_path / "t"), 0, "4 transitions in 1 sessions")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"--dt": "2026-02-02"}, "holds no such sealed day (sealed: 2026-01-01)"),
        ({"--dt": "2026-1-1"}, "not a day; write it as YYYY-MM-DD"),
    ],
)
def test_a_day_that_is_not_there_is_named(mtf, tables, tmp_path, options, says):
    logs = rows.logs_of(tmp_path / "logs", *tables)
    extra = [part for pair in options.items() for part in pair]
    said(mtf("validate", "--logs", logs, "--out", tmp_path / "out", *extra), 1, says)
    said(mtf("transitions", "build", "--logs", logs, "--out", tmp_path / "t", *extra), 1, says)


def test_folders_that_are_something_else_are_named(mtf, tables, tmp_path, monkeypatch):
    said(mtf("validate", "--logs", tmp_path, "--out", tmp_path / "out"), 1, "holds no sealed day")
    said(mtf("transitions", "build", "--logs", tmp_path, "--out", tmp_path / "t"), 1, "spec.json does not exist")
    said(mtf("quarantine", "list", "--out", tmp_path), 1, "holds no verdict; run `mtf validate")
    logs = rows.logs_of(tmp_path / "logs", *tables)
    said(mtf("quarantine", "replay", "--logs", logs, "--out", tmp_path / "out", "--dt", rows.DT), 1, "no verdict on it")
    monkeypatch.setenv("MTF_EXPECTATIONS_DIR", str(tmp_path))
    said(mtf("validate", "--logs", logs, "--out", tmp_path / "out"), 1, "requests.json does not exist")
    said(mtf("transitions", "build", "--logs", logs, "--out", tmp_path / "t"), 1, "requests.json does not exist")


def test_replay_says_what_it_let_go(mtf, tables, tmp_path, monkeypatch):
    """A threshold is loosened after the day was judged."""
    requests, feedback = tables
    watch = rows.put(feedback, "watch_s", 100, 100_000.0)
    logs, out = rows.logs_of(tmp_path / "logs", requests, watch), tmp_path / "out"
    said(mtf("validate", "--logs", logs, "--out", out), 0, "1 rows set aside")
    folder = rows.suites(tmp_path / "suites")
    document = json.loads((folder / "feedback.json").read_text())
    (rule,) = (e for e in document["expectations"] if e["meta"]["rule"] == "watch_range")
    rule["kwargs"]["max_value"] = 1e9
    (folder / "feedback.json").write_text(json.dumps(document))
    monkeypatch.setenv("MTF_EXPECTATIONS_DIR", str(folder))
    done = mtf("quarantine", "replay", "--logs", logs, "--out", out, "--dt", rows.DT)
    assert done.code in (0, 3), done
    assert "feedback: 1 let go, 0 still set aside, 0 set aside anew" in done.out
    assert "build the day again to use them" in done.out
    said(mtf("quarantine", "list", "--out", out), 0, "nothing is set aside")
