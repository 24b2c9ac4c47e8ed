import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mtf.commands.quality import quarantine, validate
from mtf.errors import ConflictError, InputError, NotFoundError
from mtf.fileio import sha256_file
from mtf.logs.days import day_files, read_manifest, write_day
from mtf.quality import docs, read_verdict, validate_day
from mtf.quality.quarantine import list_piles, mend_day, replay_day
from mtf.quality.sketch import KINDS
from tests.conftest import random_policy
from tests.quality import rows


def judge(logs, out, *, expectations=rows.EXPECTATIONS, **kwargs):
    return validate_day(logs, rows.DT, out, spec=rows.SPEC, expectations_dir=expectations, threads=1, **kwargs)


def reasons(verdict):
    return " ".join(verdict.reasons)


@pytest.fixture(scope="module")
def tables():
    return rows.day()


@pytest.fixture(scope="module")
def clean(tables, tmp_path_factory):
    """(logs, out, verdict) of a clean day, with its policy at hand."""
    folder = tmp_path_factory.mktemp("clean")
    logs = rows.logs_of(folder / "logs", *tables)
    return logs, folder / "out", judge(logs, folder / "out", policies={rows.POLICY.sha: rows.POLICY})


def test_a_clean_day_passes_with_its_figures(clean, tables):
    logs, out, verdict = clean
    requests, feedback = tables
    assert (verdict.status, verdict.reasons) == ("pass", [])
    assert verdict.counts == {
        "requests": 240,
        "feedback": 720,
        "quarantined_requests": 0,
        "quarantined_feedback": 0,
        "late": 0,
    }
    m = verdict.metrics
    assert (m["users"], m["sessions"], m["mean_session_length"]) == (60, 60, 4)
    assert m["rate_click"] == pytest.approx(np.mean(feedback["click"].to_numpy()))
    assert m["mean_watch_s"] == pytest.approx(np.mean(feedback["watch_s"].to_numpy()), rel=1e-6)
    assert m["share_explored"] == pytest.approx(np.mean(requests["exploring"].to_pylist()))
    assert m["policy_center_error"] < 1e-6
    assert read_verdict(out, rows.DT) == verdict
    # the fourth dimension of the box has no width
    assert [p["dimension"] for p in verdict.profile["positions"]] == ["power click", "power watch", "bias click"]
    left_out = dict(line.split(": ", 1) for line in verdict.skipped)
    assert left_out.pop("day.rate_like") == left_out.pop("day.rate_like_usual") == "surface feed reports no `like`"
    assert left_out.pop("day.rate_interact") == left_out.pop("day.rate_interact_usual")
    # there is no earlier day, and 60 users are too few to speak of drift
    assert left_out.pop("day.day_before") == "nothing to measure it on"
    assert left_out.pop("day.volume_lost") == "needs 7 earlier days to compare with, there are 0"
    assert {left_out.pop(f"drift.{kind}") for kind in KINDS} == {"fewer than 200 users to measure it on"}
    assert set(left_out.values()) == {"needs 3 earlier days to compare with, there are 0"} and "day.volume" in left_out


def test_position_figures_against_the_closed_form(clean, tables):
    requests, _ = tables
    explored = np.array(requests["exploring"].to_pylist())
    action, center, lower, upper = (
        np.array(requests[c].to_pylist(), np.float64)[explored, 0] for c in ("action", "center", "lower", "upper")
    )
    x = (2 * (action - center) - lower - upper) / (upper - lower)
    found = clean[2].profile["positions"][0]
    assert found["mean"] == pytest.approx(x.mean(), abs=1e-5)
    assert found["mean_z"] == pytest.approx(x.mean() * np.sqrt(3 * len(x)), abs=1e-3)
    assert found["square_z"] == pytest.approx((np.mean(x * x) - 1 / 3) / np.sqrt(4 / 45 / len(x)), abs=1e-3)


def test_validating_again_changes_nothing(clean):
    logs, out, verdict = clean
    before = (out / f"dt={rows.DT}" / "r1" / "verdict.json").read_bytes()
    judge(logs, out, policies={rows.POLICY.sha: rows.POLICY})
    assert (out / f"dt={rows.DT}" / "r1" / "verdict.json").read_bytes() == before


def test_pages_need_no_network_and_every_link_leads_somewhere(clean):
    import re

    _, out, verdict = clean
    site = out / "site"
    pages = [*site.rglob("*.html"), out / f"dt={rows.DT}" / "r1" / "summary.html"]
    # index, summary twice, four suites and their four results
    assert len(pages) == 11
    for page in pages:
        html = page.read_text()
        loaded = re.findall(r'(?:src|<link[^>]*href)="(https?:[^"]*)"', html)
        assert loaded == [], page
        for href in re.findall(r'(?:href|src)="([^"#][^"]*)"', html):
            if not href.startswith(("http", "data:", "mailto:")):
                assert (page.parent / href).exists(), (page, href)
    assert "2026-01-01" in (site / "index.html").read_text()
    assert all((site / docs.page_path(verdict, suite)).exists() for suite in ("files", "requests", "feedback", "day"))


def test_bad_rows_are_kept_counted_and_do_not_stop_the_day(tables, tmp_path):
    requests, feedback = tables
    explored = np.flatnonzero(requests["exploring"].to_pylist())
    requests = rows.put(requests, "action", int(explored[0]), [float("nan"), 0.0, 0.0, 0.0])
    requests = rows.put(requests, "action", int(explored[5]), [0.99, 0.99, -0.99, -0.99])
    requests = pa.concat_tables([requests, requests.slice(7, 1)])
    feedback = rows.put(feedback, "watch_s", 11, -3.0)
    feedback = rows.put(feedback, "request_id", 12, rows.unknown_id())
    feedback = rows.put(feedback, "position", 13, 2**31 - 1)
    # repeats of feedback are normal, at least once is promised
    feedback = pa.concat_tables([feedback, feedback.slice(100, 4)])
    logs, out = rows.logs_of(tmp_path / "logs", requests, feedback), tmp_path / "out"
    verdict = judge(logs, out)
    assert verdict.status == "warning"
    assert (verdict.counts["quarantined_requests"], verdict.counts["quarantined_feedback"]) == (3, 3)
    assert verdict.quarantined["feedback"] == {"known_request": 1, "watch_range": 1, "shown_there": 1}
    assert {"action_finite": 1, "duplicate_request": 1}.items() <= verdict.quarantined["requests"].items()
    assert verdict.metrics["share_repeated_feedback"] == pytest.approx(4 / 721)
    kept = pq.read_table(out / f"dt={rows.DT}" / "r1" / "quarantine" / "requests.parquet")
    assert set(requests.column_names) <= set(kept.column_names) and kept.num_rows == 3
    assert sorted(p.table for p in list_piles(out)) == ["feedback", "requests"]
    # Great Expectations counted the same rows
    page = (out / "site" / docs.page_path(verdict, "feedback")).read_text()
    assert page.count("1 unexpected values found") == 3

    shown = CliRunner().invoke(quarantine, ["list", "--out", str(out)])
    assert shown.exit_code == 0 and "duplicate_request" in shown.output and "3 rows of requests" in shown.output

    # a later revision brings the request that the feedback waited for; its row is let go
    known = rows.put(feedback, "request_id", 12, requests["request_id"][4].as_py())
    write_day(logs, rows.DT, requests, known, rows.SPEC)
    found = replay_day(logs, rows.DT, out, spec=rows.SPEC, expectations_dir=rows.EXPECTATIONS)
    assert found.verdict.revision == 2
    assert found.released == {"requests": 0, "feedback": 1} and found.kept == {"requests": 3, "feedback": 2}


def mended(out, table, folder, **values):
    """A file with the set-aside row whose watch time is negative, mended."""
    pile = pq.read_table(out / f"dt={rows.DT}" / "r1" / "quarantine" / f"{table}.parquet", filters=[("watch_s", "<", 0)])
    for column, value in values.items():
        pile = rows.put(pile, column, 0, value)
    pq.write_table(pile, folder / "mended.parquet")
    return folder / "mended.parquet"


def test_a_mended_row_comes_back_in_a_new_revision_once_and_nothing_is_lost(tables, tmp_path):
    requests, feedback = tables
    feedback = rows.put(rows.put(feedback, "watch_s", 11, -3.0), "watch_s", 12, float("nan"))
    logs, out = rows.logs_of(tmp_path / "logs", requests, feedback), tmp_path / "out"
    assert judge(logs, out).counts["quarantined_feedback"] == 2
    file = mended(out, "feedback", tmp_path, watch_s=3.0)
    replay = ["replay", "--logs", str(logs), "--out", str(out), "--dt", rows.DT, "--mended", str(file)]
    for says in ("feedback: 1 let go, 1 still set aside", "feedback: 0 let go, 1 still set aside"):
        done = CliRunner().invoke(quarantine, replay)
        assert done.exit_code == 0 and "r2 holds the rows" in done.output and says in done.output, done.output
    read = pa.concat_tables([pq.read_table(p) for p in day_files(logs, rows.DT, "feedback")])
    assert read_manifest(logs, rows.DT).revision == 2 and read.num_rows == feedback.num_rows
    wanted = rows.put(feedback, "watch_s", 11, 3.0)["watch_s"].to_pylist()
    assert sorted(map(str, read["watch_s"].to_pylist())) == sorted(map(str, wanted))
    # the first revision, and what was set aside of it, stay as they were
    assert -3.0 in pq.read_table(day_files(logs, rows.DT, "feedback", revision=1)[0])["watch_s"].to_pylist()
    assert read_verdict(out, rows.DT, 1).counts["quarantined_feedback"] == 2


def test_late_rows_and_mended_rows_do_not_undo_each_other(tables, tmp_path):
    requests, feedback = tables
    logs, out = rows.logs_of(tmp_path / "logs", requests, rows.put(feedback, "watch_s", 11, -3.0)), tmp_path / "out"
    judge(logs, out)
    late = rows.put(feedback.slice(5, 1), "watch_s", 0, 77.0)
    write_day(logs, rows.DT, requests, pa.concat_tables([rows.put(feedback, "watch_s", 11, -3.0), late]), rows.SPEC)
    manifest = mend_day(logs, rows.DT, out, mended(out, "feedback", tmp_path, watch_s=3.0), spec=rows.SPEC)
    seconds = pa.concat_tables([pq.read_table(p) for p in day_files(logs, rows.DT, "feedback")])["watch_s"].to_pylist()
    assert manifest.revision == 3 and 77.0 in seconds and 3.0 in seconds and -3.0 not in seconds
    assert len(seconds) == feedback.num_rows + 1


def test_a_mended_file_that_is_not_of_the_pile_is_refused(tables, tmp_path):
    requests, feedback = tables
    logs, out = rows.logs_of(tmp_path / "logs", requests, rows.put(feedback, "watch_s", 11, -3.0)), tmp_path / "out"
    judge(logs, out)
    for values, says in (
        ({"file_row": 12345}, "row 12345 of feedback-000.parquet was not set aside in revision 1"),
        ({"revision": 9}, "no verdict on revision 9"),
    ):
        with pytest.raises((InputError, NotFoundError), match=says):
            mend_day(logs, rows.DT, out, mended(out, "feedback", tmp_path, watch_s=3.0, **values), spec=rows.SPEC)
    file = mended(out, "feedback", tmp_path, watch_s=3.0)
    pq.write_table(pq.read_table(file).drop_columns("file_row"), file)
    with pytest.raises(InputError, match="has no column 'file_row'; give rows of a pile"):
        mend_day(logs, rows.DT, out, file, spec=rows.SPEC)
    write_day(logs, rows.DT, requests, feedback, rows.SPEC)
    with pytest.raises(ConflictError, match="is not in revision 2 any more"):
        mend_day(logs, rows.DT, out, mended(out, "feedback", tmp_path, watch_s=4.0), spec=rows.SPEC)
    assert read_manifest(logs, rows.DT).revision == 2


def test_one_edited_threshold_moves_quarantine_verdict_and_pages(clean, tables, tmp_path):
    logs, out, before = clean
    folder = rows.suites(tmp_path / "suites")
    document = json.loads((folder / "feedback.json").read_text())
    (rule,) = (e for e in document["expectations"] if e["meta"]["rule"] == "watch_range")
    rule["kwargs"]["max_value"] = 60.0
    (folder / "feedback.json").write_text(json.dumps(document))
    after = judge(logs, tmp_path / "out", expectations=folder)
    long = int((tables[1]["watch_s"].to_numpy() > 60).sum())
    assert long > 10
    assert before.counts["quarantined_feedback"] == 0 and after.counts["quarantined_feedback"] == long
    assert before.status == "pass" and f"{long:,} of 720 rows (feedback.watch_range)" in reasons(after)
    page = docs.page_path(after, "feedback")
    assert "unexpected values found" not in (out / "site" / page).read_text()
    assert f"{long} unexpected values found" in (tmp_path / "out" / "site" / page).read_text()


def test_too_much_quarantine_is_critical(tables, tmp_path):
    requests, feedback = tables
    watch = np.where(np.arange(720) < 60, -1, feedback["watch_s"].to_numpy()).astype(np.float32)
    feedback = feedback.set_column(feedback.schema.get_field_index("watch_s"), feedback.schema.field("watch_s"), pa.array(watch))
    logs = rows.logs_of(tmp_path / "logs", requests, feedback)
    verdict = judge(logs, tmp_path / "out")
    assert verdict.status == "critical"
    assert verdict.reasons[0].startswith(
        "too much feedback is quarantined: found 0.0833333, expected share_quarantined_feedback ≤"
    )
    shown = CliRunner().invoke(validate, ["--logs", str(logs), "--out", str(tmp_path / "out")])
    assert shown.exit_code == 3 and "critical" in shown.output


def test_a_center_that_is_not_the_policys_is_critical(tables, tmp_path):
    logs = rows.logs_of(tmp_path / "logs", *tables)
    other = random_policy(seed=5, spec=rows.SPEC)
    verdict = judge(logs, tmp_path / "out", policies={rows.POLICY.sha: other})
    assert verdict.status == "critical" and "center_is_policy" in reasons(verdict)


def test_actions_that_are_not_uniform_are_critical(tmp_path):
    requests, feedback = rows.day(users=400)
    action, center, upper = (np.array(requests[c].to_pylist(), np.float32) for c in ("action", "center", "upper"))
    skewed = np.where(upper > 0, np.clip(action + 0.04, None, center + upper), action)
    field = requests.schema.field("action")
    requests = requests.set_column(requests.schema.get_field_index("action"), field, pa.array(skewed.tolist(), field.type))
    verdict = judge(rows.logs_of(tmp_path / "logs", requests, feedback), tmp_path / "out")
    assert verdict.counts["quarantined_requests"] == 0
    assert verdict.status == "critical" and "position_mean" in reasons(verdict)


def only_request(logs):
    return next((logs / f"dt={rows.DT}" / "r1").glob("requests-*.parquet"))


def reseal(logs):
    """Make the manifest agree with the files: what is wrong was wrong when the day was sealed."""
    path = logs / f"dt={rows.DT}" / "r1" / "manifest.json"
    document = json.loads(path.read_text())
    for segment in document["segments"]:
        segment["sha256"] = sha256_file(path.parent / segment["path"])
    path.write_text(json.dumps(document))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def overwrite(path):
    """Garbage in the body; the footer is whole."""
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)


def drop_column(path):
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)


def retype_column(path):
    table = pq.read_table(path)
    i = table.schema.get_field_index("bucket")
    pq.write_table(table.set_column(i, "bucket", table["bucket"].cast(pa.string())), path)


@pytest.mark.parametrize(
    ("spoil", "sealed_so", "says"),
    [
        (truncate, False, "a file's bytes are not those of the manifest: requests-"),
        (truncate, True, "a file is not readable Parquet: requests-"),
        (overwrite, True, "a file is not readable Parquet: "),
        (drop_column, True, "a column of the contract is missing: action of requests-"),
        (retype_column, True, "bucket of requests-000.parquet is string, not int32"),
        (lambda path: path.unlink(), False, "a file that the manifest names is not there: requests-"),
    ],
    ids=["changed", "truncated", "damaged", "column missing", "column of another type", "file missing"],
)
def test_a_day_that_cannot_be_read_is_critical_with_its_reason(tables, tmp_path, spoil, sealed_so, says):
    logs = rows.logs_of(tmp_path / "logs", *tables)
    spoil(only_request(logs))
    if sealed_so:
        reseal(logs)
    verdict = judge(logs, tmp_path / "out")
    assert verdict.status == "critical"
    assert says in reasons(verdict)
    assert verdict.quarantined == {} and verdict.metrics == {}
    assert "critical" in (tmp_path / "out" / "site" / "index.html").read_text()


@pytest.mark.parametrize(
    ("keep_requests", "keep_feedback", "status", "says"),
    [
        (0, 720, "critical", "the day holds no usable request: found 0"),
        (240, 0, "critical", "the day holds no usable feedback: found 0"),
        (4, 12, "warning", "too few sessions to say anything about the day: found 1, expected sessions ≥ 30"),
    ],
    ids=["empty", "no feedback", "one session"],
)
def test_a_day_with_too_little_in_it(tables, tmp_path, keep_requests, keep_feedback, status, says):
    requests, feedback = tables
    logs = rows.logs_of(tmp_path / "logs", requests.slice(0, keep_requests), feedback.slice(0, keep_feedback))
    verdict = judge(logs, tmp_path / "out")
    assert (verdict.status, says in reasons(verdict)) == (status, True), verdict.reasons


def test_pages_of_earlier_days_stay_and_old_ones_are_forgotten(clean, tmp_path, monkeypatch):
    _, out, verdict = clean
    import msgspec

    site = tmp_path / "site"
    monkeypatch.setattr(docs, "KEEP_DAYS", 2)
    for dt in ("2026-01-01", "2026-01-02", "2026-01-03"):
        day = msgspec.structs.replace(verdict, dt=dt)
        built = tmp_path / dt / docs.page_path(day, "day")
        built.parent.mkdir(parents=True)
        built.write_text("<html><head></head><body></body></html>")
        docs.add(site, tmp_path / dt, day, "summary")
    assert sorted(p.name for p in (site / "days" / "feed").iterdir() if any(p.iterdir())) == ["2026-01-02", "2026-01-03"]
    assert sorted(p.name for p in (site / "validations" / "day").iterdir()) == ["feed_2026-01-02_r1", "feed_2026-01-03_r1"]
    assert "2026-01-01" not in (site / "index.html").read_text()


def test_a_figure_that_nobody_computes_is_refused(clean, tmp_path):
    folder = rows.suites(tmp_path / "suites")
    document = json.loads((folder / "day.json").read_text())
    document["expectations"][0]["kwargs"]["column"] = "reqests"
    (folder / "day.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="column = 'reqests'"):
        judge(clean[0], tmp_path / "out", expectations=folder)
    # nothing is left behind by a validation that could not be done
    assert not list((tmp_path / "out").glob("dt=*/r*"))


def test_a_day_that_was_never_sealed_is_named(clean, tmp_path):
    with pytest.raises(NotFoundError, match="2026-02-02"):
        validate_day(clean[0], "2026-02-02", tmp_path, spec=rows.SPEC, expectations_dir=rows.EXPECTATIONS)
    with pytest.raises(NotFoundError, match="no verdict"):
        list_piles(tmp_path)
