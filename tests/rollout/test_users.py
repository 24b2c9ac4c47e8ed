import pyarrow as pa
import pytest

from mtf.contracts import feedback_schema, requests_schema
from mtf.rollout.statistics import DecisionRules
from mtf.rollout.users import Sample
from mtf.spec import RewardHead
from tests.conftest import small_spec

SPEC = small_spec()
GAP = int(SPEC.session_gap_s * 1e6)
MINUTE = 60_000_000


def requests(rows):
    """Rows of (request id, user, arm, ts)."""
    filled = []
    for request_id, user, arm, ts in rows:
        values = {"request_id": request_id, "user_id": user, "arm": arm, "ts": ts, "received_at": ts, "rollout_id": "r1"}
        values |= {"surface": "feed", "state": [1.0, 2.0, 3.0], "exploring": False, "policy_sha": "p", "policy_version": "1"}
        values |= {"action": [], "center": [], "lower": [], "upper": [], "bucket": 0, "generation": 1, "latency_us": 0}
        values |= {"item_ids": [], "scores": [], "n_candidates": 0, "spec_version": "s", "schema_version": 1}
        filled.append(values)
    return pa.Table.from_pylist(filled, schema=requests_schema())


def feedback(rows):
    """Rows of (request id, item, received at, watch seconds, valid)."""
    filled = [
        {
            "request_id": r,
            "item_id": i,
            "position": 0,
            "ts": at,
            "received_at": at,
            "watch_s": w,
            "duration_s": 9.0,
            "click": 1,
            "valid": v,
        }
        for r, i, at, w, v in rows
    ]
    return pa.Table.from_pylist(filled, schema=feedback_schema(SPEC.behaviours))


def sample_users(sample, watermark):
    return sample._users(watermark, 10**15)


def test_first_session_only_and_feedback_resolved_once():
    sample = Sample(SPEC, "r1")
    rows = [("a0", "u", "canary", 0), ("a1", "u", "canary", MINUTE), ("a2", "u", "canary", MINUTE + GAP + 1)]
    sample.add(
        [requests(rows)],
        [feedback([("a0", 1, 5, 10.0, 0), ("a0", 1, 9, 20.0, 1), ("a1", 2, 5, 700.0, 1), ("a2", 3, 5, 50.0, 1)])],
    )
    found = sample_users(sample, 10**12)
    # watch: the later row of item 1, and 700 s capped at 600; the second session does not count
    assert found.totals["duration"].tolist() == [620.0]
    assert found.totals["valid"].tolist() == [2.0]
    assert found.totals["reward"].tolist() == [pytest.approx(0.01 * 620 + 0.5 * 2)]
    assert found.covariates.tolist() == [[1.0, 2.0, 3.0]]


def test_users_enter_in_order_and_stop_at_the_first_open_window():
    sample = Sample(SPEC, "r1")
    rows = [
        ("a", "u1", "canary", 0),
        ("b", "u2", "control", MINUTE),
        ("b2", "u2", "control", 20 * MINUTE),
        ("c", "u3", "canary", 2 * MINUTE),
    ]
    sample.add([requests(rows)], [])
    # u2's window is open until 50 minutes; u3 was complete before it, but enrolled later
    assert sample_users(sample, 40 * MINUTE).canary.tolist() == [True]
    assert sample_users(sample, 51 * MINUTE).canary.tolist() == [True, False, True]


def test_other_arms_and_rollouts_are_left_out_and_an_empty_look_is_no_error():
    sample = Sample(SPEC, "r1")
    assert sample.compare(DecisionRules(), watermark_us=0).n_canary == 0
    rows = requests([("a", "u1", "explore", 0), ("b", "u2", "canary", 0)])
    other = rows.set_column(rows.column_names.index("rollout_id"), "rollout_id", pa.array(["r0", "r0"]))
    sample.add([rows, other], [feedback([("a", 1, 5, 10.0, 1)])])
    found = sample.compare(DecisionRules(), watermark_us=10**12)
    assert (found.enrolled_canary, found.enrolled_control, found.n_canary) == (1, 0, 1)


def test_rows_received_later_do_not_change_a_look():
    sample = Sample(SPEC, "r1")
    sample.add(
        [requests([("a", "u1", "canary", 0), ("b", "u2", "control", 0), ("c", "u3", "canary", 9), ("d", "u4", "control", 9)])], []
    )
    sample.add([], [feedback([(r, 1, 50, 10.0 + i, 1) for i, r in enumerate("abcd")])])
    first = sample.compare(DecisionRules(), watermark_us=10**12)
    sample.add([], [feedback([("a", 1, 99, 500.0, 1)])])
    again = sample.compare(DecisionRules(), watermark_us=10**12, received_until_us=first.received_until_us)
    assert again == first
    assert sample.compare(DecisionRules(), watermark_us=10**12) != first


def test_who_never_pauses_keeps_nobody_waiting():
    """A request every 20 minutes for a day, enrolled first: his first two hours count, and then the others are looked at."""
    sample = Sample(SPEC, "r1")
    bot = [(f"b{i}", "bot", "control", i * 20 * MINUTE) for i in range(72)]
    rows = [*bot, ("c", "u1", "canary", MINUTE), ("d", "u2", "control", 2 * MINUTE)]
    sample.add([requests(rows)], [feedback([(r, 1, 5, 10.0, 0) for r, *_ in rows])])
    # the last of his requests within two hours is at 120 minutes; it closes half an hour later
    assert len(sample_users(sample, 150 * MINUTE).canary) == 0
    found = sample_users(sample, 151 * MINUTE)
    assert found.canary.tolist() == [False, True, False]
    assert found.totals["duration"].tolist() == [70.0, 10.0, 10.0]


def test_a_watch_time_that_is_no_number_counts_as_none():
    sample = Sample(SPEC, "r1")
    sample.add(
        [requests([(r, f"u{r}", "canary", 0) for r in "abcd"])],
        [feedback([("a", 1, 5, float("-inf"), 0), ("b", 1, 5, float("nan"), 0), ("c", 1, 5, -3.0, 0), ("d", 1, 5, 30.0, 0)])],
    )
    assert sample_users(sample, 10**12).totals["duration"].tolist() == [0.0, 0.0, 0.0, 30.0]


def test_feedback_that_comes_before_its_request_waits_for_it_once():
    sample = Sample(SPEC, "r1")
    sample.add([], [feedback([("a", 1, 5, 10.0, 1), ("other arm", 1, 5, 99.0, 1)])])
    sample.add([requests([("a", "u1", "canary", 0)])], [])
    assert sample_users(sample, 10**12).totals["duration"].tolist() == [10.0]
    sample.add([requests([("other arm", "u2", "canary", 0)])], [])
    assert sample_users(sample, 10**12).totals["duration"].tolist() == [10.0, 0.0]


def test_a_surface_without_valid_is_compared_by_what_it_has():
    spec = small_spec(behaviours=("watch", "click"), reward_heads=(RewardHead(name="watch", weights={"watch": 0.01}),))
    sample = Sample(spec, "r1")
    rows = [(f"q{i}", f"u{i}", "canary" if i % 2 else "control", i) for i in range(8)]
    sample.add([requests(rows)], [feedback([(r, 1, 5, 10.0 + i, 1) for i, (r, *_) in enumerate(rows)])])
    assert set(sample.compare(DecisionRules(), watermark_us=10**12).metrics) == {"reward", "duration"}
