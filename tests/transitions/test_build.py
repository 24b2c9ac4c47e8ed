"""Logs to transitions: hand-written cases, and what must hold for any log (Hypothesis)."""

from __future__ import annotations

import datetime
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import transitions_pandas
from mtf.contracts import feedback_schema, requests_schema
from mtf.contracts.ids import uuid7
from mtf.logs import days
from mtf.logs.days import day_bounds, day_files, write_day
from mtf.transitions.build import build_day
from mtf.transitions.pool import pool_md5, read_pool
from mtf.transitions.table import load_transitions
from tests.conftest import small_spec

SPEC = small_spec()
DAYS = DAY, NEXT, THIRD, FOURTH = "2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"
START = day_bounds(DAY)[0]
MINUTE = 60_000_000
HALF_HOUR = 30 * MINUTE


def request(user, minute, *, arm="explore", policy="p1", shown=True, watch=10.0, mark=0.0, skew=0.0, box=(0.0, 0.1, -0.2, 0.2)):
    """What a case says of a request: its user, its minute since the day began, and what came of it.

    skew: minutes by which the clock that made its id was ahead. box: center, action, lower, upper, in every dimension.
    """
    case = {"user": user, "minute": minute, "arm": arm, "policy": policy, "shown": shown, "watch": watch, "mark": mark}
    return case | {"skew": skew, "box": box}


def tables(cases, seed=0):
    """The cases as requests and feedback in the contract's form, each request showing items 0, 1, 2."""
    ts = np.array([START + int(c["minute"] * MINUTE) for c in cases], np.int64)
    ids = uuid7(ts + np.array([int(c["skew"] * MINUTE) for c in cases], np.int64), np.random.default_rng(seed))
    rows, seen = [], []
    for case, id_, at in zip(cases, ids, ts.tolist(), strict=True):
        row = {"request_id": id_, "surface": "feed", "user_id": case["user"], "ts": at, "received_at": at, "arm": case["arm"]}
        row |= {"state": [case["mark"], 0.0, 0.0]}
        row |= {name: [value] * 4 for name, value in zip(("center", "action", "lower", "upper"), case["box"], strict=True)}
        row |= {"log_propensity": 3.665, "exploring": True, "policy_sha": case["policy"], "policy_version": "1", "bucket": 1}
        row |= {"exploration_sha": "e", "generation": 1, "latency_us": 5, "item_ids": [0, 1, 2], "scores": [0.5] * 6}
        row |= {"n_candidates": 3, "cand_scores": b"\x01\x02" * 6, "spec_version": SPEC.version, "schema_version": 1}
        rows.append(row)
        for item in range(3 * case["shown"]):
            answer = {"request_id": id_, "item_id": item, "position": item, "ts": at + 1000, "received_at": at + 2000}
            seen.append(answer | {"watch_s": case["watch"], "duration_s": 60.0, "click": 1, "valid": int(case["watch"] > 10)})
    return pa.Table.from_pylist(rows, requests_schema()), pa.Table.from_pylist(seen, feedback_schema(SPEC.behaviours))


def build(folder, cases, *, feedback_again=None, day=DAY):
    """Seal the cases' days, build them, and return the transitions of `day` as rows."""
    requests, feedback = tables(cases)
    if feedback_again is not None:
        feedback = pa.concat_tables([feedback, feedback_again(feedback)])
    of = np.array([DAYS[int(c["minute"] // 1440)] for c in cases])
    by_id = dict(zip(requests.column("request_id").to_pylist(), of, strict=True))
    feedback_of = np.array([by_id.get(r, DAY) for r in feedback.column("request_id").to_pylist()])
    for dt in sorted({str(d) for d in of}):
        write_day(folder / "logs", dt, requests.filter(pa.array(of == dt)), feedback.filter(pa.array(feedback_of == dt)), SPEC)
    built = {
        dt: build_day(folder / "logs", dt, folder / "out", spec=SPEC, expectations_dir=None)
        for dt in sorted({str(d) for d in of})
    }
    return pq.read_table(folder / "out" / f"dt={day}" / "transitions.parquet").to_pylist(), built


def test_rewards_steps_and_successors(tmp_path):
    rows, built = build(tmp_path, [request("u", 0, watch=20, mark=1), request("u", 5, watch=700, mark=2)])
    first, second = rows
    assert (first["step"], second["step"]) == (0, 1)
    assert first["session_id"] == second["session_id"] == first["request_id"]
    # heads: .01 a second watched, at most 600 s an item; .5 a valid item; three items
    assert first["reward"] == pytest.approx([0.01 * 60, 1.5])
    assert second["reward"] == pytest.approx([0.01 * 1800, 1.5])
    assert second["behaviour"] == pytest.approx([2100, 3, 3])
    assert first["next_state"] == second["state"]
    assert (first["terminal"], second["terminal"]) == (False, True)
    assert not first["truncated"] and not second["truncated"]
    assert second["next_state"] == [0, 0, 0]
    assert first["cand_scores"] == b"\x01\x02" * 6
    assert built[DAY].rows == 2


def test_the_gap_ends_a_session_and_not_a_minute_less(tmp_path):
    rows, _ = build(tmp_path, [request("u", 0), request("u", 30), request("u", 60.1)])
    assert [(r["step"], r["terminal"]) for r in rows] == [(0, False), (1, True), (0, True)]


@pytest.mark.parametrize("changed", [{"policy": "p2"}, {"arm": "canary"}])
def test_a_change_of_policy_or_arm_cuts_a_session(tmp_path, changed):
    rows, _ = build(tmp_path, [request("u", 0, mark=1), request("u", 1, mark=2, **changed), request("u", 2, mark=3, **changed)])
    first, second, third = sorted(rows, key=lambda r: r["ts"])
    assert (first["truncated"], first["terminal"]) == (True, False)
    assert first["next_state"] == second["state"]
    assert second["session_id"] == third["session_id"] == second["request_id"] != first["session_id"]
    assert (second["step"], third["step"]) == (0, 1)


def test_a_session_open_at_midnight_belongs_to_the_next_day_whole(tmp_path):
    cases = [request("early", 60), request("late", 1425), request("late", 1442)]
    rows, built = build(tmp_path, cases)
    assert [r["user_id"] for r in rows] == ["early"]
    assert built[DAY].carried == 1
    rows = pq.read_table(tmp_path / "out" / f"dt={NEXT}" / "transitions.parquet").to_pylist()
    assert [(r["user_id"], r["step"], r["terminal"]) for r in rows] == [("late", 0, False), ("late", 1, True)]
    assert {r["dt"] for r in rows} == {NEXT}


def test_a_request_that_was_never_shown_is_not_a_step_and_is_counted(tmp_path):
    rows, built = build(tmp_path, [request("u", 0, mark=1), request("u", 1, shown=False), request("u", 2, mark=3)])
    assert [r["state"][0] for r in rows] == [1, 3]
    assert rows[0]["next_state"][0] == 3
    assert built[DAY].never_shown == {"explore": 1}


def test_of_feedback_that_came_twice_the_later_wins(tmp_path):
    def again(feedback):
        later = feedback.column("received_at").to_pylist()
        first = feedback.slice(0, 1)
        at = pa.array([later[0] + datetime.timedelta(seconds=9)], feedback.schema.field("received_at").type)
        changed = first.set_column(first.column_names.index("received_at"), feedback.schema.field("received_at"), at)
        watch = pa.array([100.0], pa.float32())
        return changed.set_column(changed.column_names.index("watch_s"), feedback.schema.field("watch_s"), watch)

    rows, _ = build(tmp_path, [request("u", 0, watch=10)], feedback_again=again)
    assert rows[0]["behaviour"][0] == pytest.approx(120)


def test_the_same_rows_give_the_same_bytes_in_any_order_and_with_any_threads(tmp_path):
    rng = np.random.default_rng(0)
    cases = [
        request(f"u{i % 40}", float(m), watch=float(w))
        for i, (m, w) in enumerate(zip(rng.uniform(0, 900, 400), rng.gamma(1, 20, 400), strict=True))
    ]
    requests, feedback = tables(cases)
    found = []
    for n, threads in enumerate((1, 2)):
        shuffled = [t.take(pa.array(np.random.default_rng(n).permutation(t.num_rows))) for t in (requests, feedback)]
        folder = tmp_path / str(n)
        write_day(folder / "logs", DAY, *shuffled, SPEC)
        build_day(folder / "logs", DAY, folder / "out", spec=SPEC, expectations_dir=None, threads=threads)
        found.append((folder / "out" / f"dt={DAY}" / "transitions.parquet").read_bytes())
    assert found[0] == found[1]


def test_built_once_and_again_when_late_rows_came(tmp_path):
    _, built = build(tmp_path, [request("u", 0)])
    file = tmp_path / "out" / f"dt={DAY}" / "transitions.parquet"
    before = file.stat().st_mtime_ns
    assert build_day(tmp_path / "logs", DAY, tmp_path / "out", spec=SPEC, expectations_dir=None) == built[DAY]
    assert file.stat().st_mtime_ns == before
    rows, again = build(tmp_path, [request("u", 0), request("u", 3)])
    assert len(rows) == 2
    assert again[DAY].logs_revision == 2


def transitions_of(folder, day):
    return pq.read_table(folder / "out" / f"dt={day}" / "transitions.parquet").to_pylist()


def written_at(folder, day):
    return (folder / "out" / f"dt={day}" / "transitions.parquet").stat().st_mtime_ns


def test_one_request_is_a_session(tmp_path):
    rows, built = build(tmp_path, [request("u", 60, mark=7)])
    (row,) = rows
    assert (row["step"], row["terminal"], row["truncated"]) == (0, True, False)
    assert row["session_id"] == row["request_id"]
    assert row["session_start"] == row["ts"]
    assert row["next_state"] == [0.0] * 3
    assert row["next_center"] == row["next_lower"] == row["next_upper"] == [0.0] * 4
    assert built[DAY].sessions == 1


def test_the_order_is_that_of_events_where_the_clocks_of_ids_disagree(tmp_path):
    # the first request's id was made by a clock ten minutes ahead, so it sorts after the second one's
    rows, _ = build(tmp_path, [request("u", 5, mark=1, skew=10), request("u", 6, mark=2), request("u", 7, mark=3, skew=-20)])
    assert [r["state"][0] for r in rows] == [1, 2, 3]
    assert [r["next_state"][0] for r in rows] == [2, 3, 0]
    assert rows[0]["request_id"] > rows[1]["request_id"] > rows[2]["request_id"]
    assert {r["session_id"] for r in rows} == {rows[0]["request_id"]}


def test_requests_of_one_instant_are_ordered_by_id(tmp_path):
    rows, _ = build(tmp_path, [request("u", 5, mark=m) for m in range(4)])
    assert [r["request_id"] for r in rows] == sorted(r["request_id"] for r in rows)
    assert [r["step"] for r in rows] == [0, 1, 2, 3]


def test_a_policy_that_changes_and_comes_back_makes_three_sessions_of_one_visit(tmp_path):
    rows, _ = build(tmp_path, [request("u", m, mark=m, policy=p) for m, p in enumerate(["p1", "p2", "p2", "p1"])])
    rows = sorted(rows, key=lambda r: r["ts"])
    assert [r["step"] for r in rows] == [0, 0, 1, 0]
    assert [r["truncated"] for r in rows] == [True, False, True, False]
    assert [r["terminal"] for r in rows] == [False, False, False, True]
    assert [r["next_state"][0] for r in rows] == [1, 2, 3, 0]


def test_a_change_that_nobody_was_shown_cuts_nothing(tmp_path):
    rows, _ = build(tmp_path, [request("u", 0), request("u", 1, policy="p2", shown=False), request("u", 2)])
    assert [(r["step"], r["truncated"], r["terminal"]) for r in rows] == [(0, False, False), (1, False, True)]


def test_a_gap_that_only_requests_never_shown_would_bridge_ends_the_session(tmp_path):
    rows, _ = build(tmp_path, [request("u", 0), request("u", 20, shown=False), request("u", 40)])
    assert [(r["step"], r["terminal"]) for r in rows] == [(0, True), (0, True)]


def test_a_change_after_the_gap_is_an_end_and_not_a_cut(tmp_path):
    rows, _ = build(tmp_path, [request("u", 0), request("u", 31, policy="p2")])
    assert [(r["terminal"], r["truncated"]) for r in rows] == [(True, False), (True, False)]


def test_a_box_that_was_cut_at_the_edge_of_the_space_is_carried_as_it_was_sampled(tmp_path):
    inside, edge = (0.0, 0.1, -0.2, 0.2), (0.875, 1.0, -0.25, 0.125)
    rows, _ = build(tmp_path, [request("u", 0, box=inside), request("u", 1, box=edge)])
    assert rows[0]["next_center"] == rows[1]["center"] == [0.875] * 4
    assert rows[0]["next_lower"] == rows[1]["lower"] == [-0.25] * 4
    assert rows[0]["next_upper"] == rows[1]["upper"] == [0.125] * 4
    loaded = load_transitions(tmp_path / "out")
    assert loaded.position[1] == pytest.approx([1.0] * 4)


def test_a_session_left_open_by_the_last_day_is_closed_by_a_day_without_logs(tmp_path):
    cases = [request("late", 1435, mark=1), request("late", 1439, mark=2), request("other", 2 * 1440 + 5)]
    _, built = build(tmp_path, cases)
    assert built[DAY].rows == 0
    assert [(r["state"][0], r["terminal"]) for r in transitions_of(tmp_path, NEXT)] == [(1, False), (2, True)]
    assert [r["user_id"] for r in transitions_of(tmp_path, THIRD)] == ["other"]


def test_a_day_that_is_built_after_a_later_one_leaves_no_session_open(tmp_path):
    """Its carry closes on a day without logs, which no later build looks for."""
    build(tmp_path, [request("other", 2 * 1440 + 5)], day=THIRD)
    _, built = build(tmp_path, [request("late", 1435, mark=1), request("late", 1439, mark=2)])
    assert built[DAY].rows == 0
    assert [(r["state"][0], r["terminal"]) for r in transitions_of(tmp_path, NEXT)] == [(1, False), (2, True)]
    assert list(read_pool(tmp_path / "out").days) == [DAY, NEXT, THIRD]


def test_a_session_may_cross_more_than_one_midnight(tmp_path):
    cases = [request("u", m, mark=m) for m in range(1430, 2 * 1440 + 30, 25)]
    _, built = build(tmp_path, cases)
    assert (built[DAY].rows, built[NEXT].rows, built[THIRD].rows) == (0, 0, len(cases))
    rows = transitions_of(tmp_path, THIRD)
    assert [r["step"] for r in rows] == list(range(len(cases)))
    assert [r["next_state"][0] for r in rows[:-1]] == [r["state"][0] for r in rows[1:]]


THREE_DAYS = [
    *(request("a", m, mark=m) for m in (10, 12, 1425, 1450)),  # the last two are one session, over midnight
    *(request("b", m, mark=m) for m in (1500, 1510, 1440 + 1425)),  # and the last one is open at the second midnight
    *(request("c", m, mark=m) for m in (2 * 1440 + 60, 2 * 1440 + 61)),
]


def late(minute, position=0):
    """Feedback on THREE_DAYS with one row of the request at `minute` again, which came late and says more."""

    def again(feedback):
        at = START + minute * MINUTE + 1000
        rows = feedback.filter(pa.array(feedback.column("ts").cast(pa.int64()).to_numpy() == at)).slice(position, 1)
        received = pa.array([START + 10 * 1440 * MINUTE], feedback.schema.field("received_at").type)
        rows = rows.set_column(rows.column_names.index("received_at"), feedback.schema.field("received_at"), received)
        return rows.set_column(
            rows.column_names.index("watch_s"), feedback.schema.field("watch_s"), pa.array([500.0], pa.float32())
        )

    return again


@pytest.mark.parametrize(
    ("minute", "rebuilt"),
    [
        pytest.param(10, {DAY}, id="of a session that closed on its day: that day alone"),
        pytest.param(1425, {DAY, NEXT}, id="of a session that was carried: the day that closed it too, and none after it"),
        pytest.param(1500, {NEXT}, id="of the second day: no day before it"),
    ],
)
def test_late_feedback_rebuilds_what_it_changed_and_nothing_else(tmp_path, minute, rebuilt):
    build(tmp_path, THREE_DAYS)
    before = {day: (written_at(tmp_path, day), pool_md5(tmp_path / "out")) for day in DAYS[:3]}
    _, built = build(tmp_path, THREE_DAYS, feedback_again=late(minute))
    assert {day for day in DAYS[:3] if written_at(tmp_path, day) != before[day][0]} == rebuilt
    revised = DAYS[minute // 1440]
    assert [built[day].logs_revision for day in DAYS[:3]] == [2 if day == revised else 1 for day in DAYS[:3]]
    assert pool_md5(tmp_path / "out") != before[DAY][1]
    paid = sum(r["reward"][0] for day in DAYS[:3] for r in transitions_of(tmp_path, day))
    assert paid == pytest.approx(0.01 * (10 * 3 * len(THREE_DAYS) + 490))


def test_the_pool_does_not_depend_on_the_order_in_which_days_were_built(tmp_path):
    build(tmp_path, THREE_DAYS)
    pools = {pool_md5(tmp_path / "out")}
    for order in ((THIRD, NEXT, DAY), (NEXT, DAY, THIRD)):
        out = tmp_path / "-".join(order)
        for day in order:
            build_day(tmp_path / "logs", day, out, spec=SPEC, expectations_dir=None)
        pools.add(pool_md5(out))
    assert len(pools) == 1


def test_the_same_rows_in_other_files_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "ROW_GROUP_ROWS", 3)
    found = set()
    for size in (1000, 4):
        monkeypatch.setattr(days, "SEGMENT_ROWS", size)
        build(tmp_path / str(size), THREE_DAYS, feedback_again=late(10))
        found.add(tuple((tmp_path / str(size) / "out" / f"dt={d}" / "transitions.parquet").read_bytes() for d in DAYS[:3]))
    assert len(list((tmp_path / "4" / "logs").glob("dt=*/r1/feedback-*"))) > 3
    assert len(found) == 1


def test_feedback_on_what_was_not_shown_is_left_out_and_counted(tmp_path):
    def wrong(feedback):
        rows = feedback.slice(0, 3)
        position = pa.array([1, -1, 2**31 - 1], pa.int32())
        rows = rows.set_column(rows.column_names.index("position"), feedback.schema.field("position"), position)
        strange = feedback.slice(0, 1)
        unknown = pa.array([strange["request_id"][0].as_py()[:-4] + "0000"])
        return pa.concat_tables([rows, strange.set_column(0, feedback.schema.field("request_id"), unknown)])

    rows, built = build(tmp_path, [request("u", 0)], feedback_again=wrong)
    assert rows[0]["behaviour"] == pytest.approx([30, 3, 0])
    assert built[DAY].dropped == {"feedback.not_shown": 3, "feedback.unknown_request": 1}


case = st.builds(
    request,
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 2 * 1440 - 1),
    arm=st.sampled_from(["explore", "champion"]),
    policy=st.sampled_from(["p1", "p2"]),
    shown=st.booleans(),
    watch=st.floats(0, 900, width=32),
    skew=st.sampled_from([0.0, 0.0, -45.0, 45.0]),
)


def copies(numbers):
    """Feedback again: of the rows with these numbers, later ones with another watch time."""

    def again(feedback):
        rows = feedback.take(pa.array([n % feedback.num_rows for n in numbers], pa.int64()))
        at = rows["received_at"].cast(pa.int64()).to_numpy() + 1000 * (1 + np.arange(len(numbers)))
        rows = rows.set_column(4, feedback.schema.field("received_at"), pa.array(at).cast(rows["received_at"].type))
        return rows.set_column(5, feedback.schema.field("watch_s"), pa.array(np.arange(len(numbers)), pa.float32()))

    return again


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(case, min_size=1, max_size=25).filter(lambda cases: any(c["shown"] for c in cases)), st.lists(st.integers(0, 100))
)
def test_whatever_the_log_rewards_are_conserved_and_nothing_crosses_a_session(cases, again):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, built = build(folder, cases, feedback_again=copies(again), day=DAYS[int(cases[0]["minute"] // 1440)])
        last = max(built)
        rows = [row for dt in built for row in transitions_of(folder, dt)]
        # every shown request is a row, or waits in the last day's carry; every unit of feedback is in one of them
        shown = [c for c in cases if c["shown"]]
        assert len(rows) + built[last].carried == len(shown)
        feedback = tables(cases)[1]
        feedback = pa.concat_tables([feedback, copies(again)(feedback)]).to_pylist()
        latest = {(r["request_id"], r["item_id"]): r for r in sorted(feedback, key=lambda r: r["received_at"])}
        for row in rows:
            of = [latest[row["request_id"], item] for item in range(3)]
            # the engine sums in units of 1e-6: three rows are off by at most half of one each
            sums = [sum(r[c] for r in of) for c in ("watch_s", "click", "valid")]
            assert row["behaviour"] == pytest.approx(sums, rel=1e-6, abs=2e-6)
            paid = [sum(0.01 * min(r["watch_s"], 600) for r in of), sum(0.5 * r["valid"] for r in of)]
            assert row["reward"] == pytest.approx(paid, rel=1e-5, abs=1e-5)
            assert sum(row["shown_reward"]) == pytest.approx(sum(paid), rel=1e-5, abs=1e-5)
        sessions = {}
        for row in rows:
            sessions.setdefault(row["session_id"], []).append(row)
        for session in sessions.values():
            assert len({(r["user_id"], r["arm"], r["policy_sha"]) for r in session}) == 1
            assert [r["step"] for r in session] == list(range(len(session)))
            for row, following in itertools.pairwise(session):
                pause = following["ts"] - row["ts"]
                assert datetime.timedelta(0) <= pause <= datetime.timedelta(microseconds=HALF_HOUR)
                assert row["next_state"] == following["state"]
                assert not row["terminal"] and not row["truncated"]
            assert session[-1]["terminal"] != session[-1]["truncated"]
        if rows:
            assert load_transitions(folder / "out").n_sessions == len(sessions)
        # the first day, once more, by another implementation
        first = min(built)
        files = [day_files(folder / "logs", first, kind) for kind in ("requests", "feedback")]
        if built[first].rows:
            again_by_pandas = transitions_pandas.transitions(*files, SPEC, first)
            assert again_by_pandas.equals(pq.read_table(folder / "out" / f"dt={first}" / "transitions.parquet"))
