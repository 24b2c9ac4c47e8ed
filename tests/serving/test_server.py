import contextlib
import itertools
import sqlite3
import time

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from mtf.contracts import check_table, requests_schema
from mtf.logs.seal import seal_day
from mtf.logs.spool import SpoolReader
from mtf.rollout.document import Change, PolicyRef
from mtf.rollout.documents import put_bundle, read_latest, write_next
from mtf.serving.arms import assign
from mtf.settings import Settings
from mtf.store import open_store
from tests.conftest import random_policy
from tests.serving.conftest import SPEC, from_stream, running, to_stream

T0 = 1_767_225_600_000_000  # 2026-01-01
TS = "2026-01-01T00:00:00Z"


def request(**changes):
    items = [{"id": 10 + i, "scores": {"click": 0.1 * (i + 1), "watch": 5.0}} for i in range(5)]
    return {"user_id": "u1", "ts": TS, "features": {"activity": 0.5}, "items": items} | changes


def impression(request_id, **changes):
    row = {"request_id": request_id, "item_id": 14, "position": 0, "watch_s": 3.5, "behaviours": {"click": 1}, "ts": TS}
    return row | changes


def fixed(matrix):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def rank_columns(n=20, c=8, **changes):
    rng = np.random.default_rng(0)
    columns = {
        "user_id": pa.array([f"u{i}" for i in range(n)]),
        "ts": pa.array(T0 + np.arange(n) * 1000).cast(pa.timestamp("us", tz="UTC")),
        "given": fixed(rng.random((n, 2), dtype=np.float32)),
        "item_ids": fixed(np.arange(n * c).reshape(n, c)),
        "scores": fixed(rng.random((n, c * 2), dtype=np.float32)),
    } | changes
    return {name: column for name, column in columns.items() if column is not None}


def feedback_columns(request_ids, **changes):
    n = len(request_ids)
    columns = {
        "request_id": request_ids,
        "item_id": pa.array(np.arange(n)),
        "position": pa.array(np.zeros(n, np.int32)),
        "ts": pa.array(np.full(n, T0)).cast(pa.timestamp("us", tz="UTC")),
        "watch_s": pa.array(np.ones(n, np.float32)),
        "duration_s": pa.array([None] * n, pa.float32()),
        "click": pa.array(np.ones(n, np.int8)),
        "valid": pa.array(np.zeros(n, np.int8)),
    } | changes
    return {name: column for name, column in columns.items() if column is not None}


def rows(settings):
    requests, feedback, _ = SpoolReader(settings.spool_dir("feed")).poll({})
    return pa.concat_tables(requests) if requests else None, pa.concat_tables(feedback) if feedback else None


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not happen within 20 s"
        time.sleep(0.05)


def test_json_round_trip_is_in_the_spool_before_the_answer(simulated):
    with running(simulated) as client:
        status, answer = client.post("/v1/rank", request())
        assert status == 200 and rows(simulated)[0].num_rows == 1
        logged = check_table(rows(simulated)[0], requests_schema(), "requests").to_pylist()[0]
        assert answer["items"] == logged["item_ids"] == [14, 13, 12]  # equal watch, so the best click comes first
        for name in ("request_id", "arm", "policy_version", "policy_sha", "fallback"):
            assert answer[name] == logged[name]
        assert logged["state"][:2] == [0.5, 0.0] and logged["n_candidates"] == 5 and logged["latency_us"] > 0
        status, answer = client.post(
            "/v1/feedback", [impression(answer["request_id"]), impression(answer["request_id"], item_id=13)]
        )
        assert (status, answer) == (200, {"accepted": 2})
        back = rows(simulated)[1].to_pylist()
        assert [(r["item_id"], r["watch_s"], r["click"], r["valid"], r["duration_s"]) for r in back] == [
            (14, 3.5, 1, 0, None),
            (13, 3.5, 1, 0, None),
        ]
        assert back[0]["received_at"] > logged["received_at"] > logged["ts"]


def test_batches_round_trip_and_a_day_of_them_can_be_sealed(simulated):
    with running(simulated) as client:
        columns = rank_columns()
        status, body = client.post("/v1/rank.arrow", to_stream(columns))
        assert status == 200
        answer, logged = from_stream(body), rows(simulated)[0]
        assert answer.schema.field("shown").type == pa.list_(pa.int32(), 3)
        assert answer.column("request_id").to_pylist() == logged.column("request_id").to_pylist()
        shown = np.array(answer.column("shown").to_pylist())
        assert logged.column("item_ids").to_pylist() == (shown + 8 * np.arange(20)[:, None]).tolist()
        names, _ = assign(read_latest(open_store(settings=simulated), "feed"), columns["user_id"].to_pylist())
        assert logged.column("arm").to_pylist() == list(names)
        status, accepted = client.post("/v1/feedback.arrow", to_stream(feedback_columns(answer.column("request_id"))))
        assert (status, accepted) == (200, {"accepted": 20})
        assert client.post("/v1/clock", {"ts": "2026-01-02T00:30:00Z"})[0] == 200
        manifest = seal_day(simulated.spool_dir("feed"), simulated.logs_dir("feed"), "2026-01-01", SPEC, surface="feed")
        assert (manifest.rows("requests"), manifest.rows("feedback")) == (20, 20)


def test_a_candidate_that_comes_twice_is_refused_whatever_would_be_shown(simulated):
    """The action decides what is shown: a refusal that followed it would leave other actions in the log than were drawn."""
    items = request()["items"]
    low = {"id": items[0]["id"], "scores": {"click": 0.0, "watch": 0.0}}
    ragged = np.arange(20 * 8).reshape(20, 8)
    ragged[:, 5:] = 0  # padding
    counts = pa.array(np.full(20, 5, np.int32))
    with running(simulated) as client:
        for _ in range(5):
            status, answer = client.post("/v1/rank", request(items=[*items, low]))
            assert status == 400 and "has the item 10 twice" in answer["error"]
        assert client.post("/v1/rank.arrow", to_stream(rank_columns(item_ids=fixed(ragged), n_candidates=counts)))[0] == 200


def test_of_an_item_that_comes_twice_in_a_call_the_last_row_counts(simulated):
    with running(simulated) as client:
        _, answer = client.post("/v1/rank", request())
        seen = [impression(answer["request_id"], watch_s=watch) for watch in (40.0, 3.0, 58.0)]
        assert client.post("/v1/feedback", seen)[0] == 200
        assert client.post("/v1/feedback", [impression(answer["request_id"], watch_s=60.0)])[0] == 200
    _, feedback = rows(simulated)
    in_order = sorted(zip(feedback.column("received_at").to_pylist(), feedback.column("watch_s").to_pylist(), strict=True))
    assert [watch for _, watch in in_order] == [40.0, 3.0, 58.0, 60.0]
    assert len({at for at, _ in in_order}) == 4


def test_rows_with_fewer_candidates_are_ranked_within_them(simulated):
    counts = np.array([3, 8, 5] + [8] * 17, np.int32)
    with running(simulated) as client:
        _, body = client.post("/v1/rank.arrow", to_stream(rank_columns(n_candidates=pa.array(counts))))
    shown = np.array(from_stream(body).column("shown").to_pylist())
    assert (shown < counts[:, None]).all() and sorted(shown[0]) == [0, 1, 2]


def test_bad_json_is_refused_by_name(simulated):
    items = request()["items"]
    cases = [
        ("/v1/rank", request(items=items[:2]), "items: 2 candidates; send at least the 3 that are shown"),
        ("/v1/rank", request(items=[{"id": 1, "scores": {"click": 0.1}}] * 3), r"items[0].scores: has click; send click, watch"),
        ("/v1/rank", request(features={"height": 1.0}), "features.height: not a feature that a caller sends; use activity"),
        ("/v1/rank", request(items=[items[0]] * 3), "has the item 10 twice"),
        ("/v1/rank", request(items=[items[0] | {"id": "x"}]), "Expected `int`, got `str`"),
        ("/v1/rank", request(user_id=""), "user_id"),
        ("/v1/rank", request(colour="red"), "unknown field `colour`"),
        ("/v1/rank", request(ts=None), "ts: missing; this server runs with MTF_CLOCK=simulated"),
        ("/v1/rank", request(ts="1960-01-01T00:00:00Z"), "before 1970"),
        ("/v1/rank", b'{"user_id": ', "body: "),
        ("/v1/feedback", [impression("nobody")], "request_id = 'nobody': not a UUIDv7"),
        ("/v1/feedback", [impression("x", behaviours={"love": 1})], "[0].behaviours.love: not a behaviour of this surface"),
        ("/v1/feedback", [impression("x", behaviours={"click": 2})], "<= 1"),
        ("/v1/clock", {"ts": "yesterday"}, "ts"),
    ]
    with running(simulated) as client:
        for path, body, message in cases:
            status, answer = client.post(path, body)
            assert status == 400 and message in answer["error"], (body, status, answer)
        assert rows(simulated) == (None, None)


def test_bad_batches_are_refused_by_column(simulated):
    known = pa.array(["017f22e2-79b0-7cc3-98c4-dc0c0c07398f"])
    floats = np.ones((20, 16), np.float32)
    cases = [
        (rank_columns(scores=None), "column `scores` is missing"),
        (rank_columns(scores=fixed(floats[:, :15])), "column `scores` is fixed_size_list<"),
        (rank_columns(scores=fixed(floats.astype(float))), "column `scores` is fixed_size_list<"),
        (rank_columns(given=fixed(floats[:, :3])), "column `given` is fixed_size_list<"),
        (rank_columns(item_ids=fixed(np.zeros((20, 2), np.int64))), "item_ids: 2 candidates a row"),
        (rank_columns(item_ids=fixed(np.zeros((20, 8), np.int64))), "has the item 0 twice"),
        (rank_columns(user_id=pa.array(["u", ""] * 10)), "user_id: row 1 is empty"),
        (rank_columns(user_id=pa.array(["u", None] * 10)), "column `user_id` holds 10 nulls"),
        (rank_columns(n_candidates=pa.array([9] * 20, pa.int32())), "n_candidates: row 0 is 9; keep it in [3, 8]"),
        (rank_columns(ts=None), "ts: missing"),
        (rank_columns(ts=pa.array(np.arange(20))), "column `ts` is int64; send timestamp[us, tz=UTC]"),
        (rank_columns(colour=pa.array(["red"] * 20)), "column `colour` is not known here"),
        (rank_columns(n=0), "batch: 0 rows"),
        (feedback_columns(known, watch_s=None), "feedback: column `watch_s` is missing"),
        (feedback_columns(known, watch_s=pa.array(["long"])), "feedback: column `watch_s` is string, needs float"),
        (feedback_columns(known, click=pa.array([None], pa.int8())), "feedback: column `click` holds 1 nulls"),
        (feedback_columns(pa.array(["nobody"])), "request_id = 'nobody': not a UUIDv7"),
        (feedback_columns(known, received_at=pa.array([T0])), "column `received_at` is not known here"),
    ]
    with running(simulated) as client:
        for columns, message in cases:
            path = "/v1/feedback.arrow" if "watch_s" in columns or "position" in columns else "/v1/rank.arrow"
            status, answer = client.post(path, to_stream(columns))
            assert status == 400 and message in answer["error"], (message, status, answer)
        good = to_stream(rank_columns())
        for body in (b"", b"hello", good[: len(good) // 2]):
            status, answer = client.post("/v1/rank.arrow", body)
            assert status == 400 and "not an Arrow IPC stream" in answer["error"]
        assert rows(simulated) == (None, None)


def test_what_is_odd_but_not_wrong_is_logged(simulated):
    """Unknown requests, negative watch times and unusable scores are the validation's business: they are kept and counted."""
    unknown = pa.array(["017f22e2-79b0-7cc3-98c4-dc0c0c07398f"])
    scores = np.ones((20, 16), np.float32)
    scores[3, 5] = np.nan
    with running(simulated) as client:
        body = to_stream(feedback_columns(unknown, watch_s=pa.array([-1.0], pa.float32())))
        assert client.post("/v1/feedback.arrow", body) == (200, {"accepted": 1})
        assert client.post("/v1/rank.arrow", to_stream(rank_columns(scores=fixed(scores))))[0] == 200
        _, text = client.get("/metrics")
        assert b'mtf_fallbacks_total{reason="scores_not_finite"} 1.0' in text
    requests, feedback = rows(simulated)
    assert feedback.column("watch_s").to_pylist() == [-1.0]
    assert [i for i, f in enumerate(requests.column("fallback").to_pylist()) if f] == [3]


def test_in_real_time_the_server_keeps_the_clock(simulated):
    settings = Settings(state_dir=simulated.state_dir, clock="real")
    with running(settings) as client:
        status, answer = client.post("/v1/rank", request())
        assert status == 400 and "this server keeps its own clock; leave ts out" in answer["error"]
        assert client.post("/v1/rank.arrow", to_stream(rank_columns()))[0] == 400
        assert client.post("/v1/clock", {"ts": TS})[0] == 409
        before = time.time_ns() // 1000
        assert SpoolReader(settings.spool_dir("feed")).watermark() <= before  # its own mark: a quiet day can be sealed too
        status, answer = client.post("/v1/rank", request(ts=None))
        assert status == 200
        assert client.post("/v1/feedback", [impression(answer["request_id"], ts=None)]) == (200, {"accepted": 1})
        assert client.post("/v1/rank.arrow", to_stream(rank_columns(ts=None)))[0] == 200
    requests, feedback = rows(settings)
    for row in (*requests.to_pylist(), *feedback.to_pylist()):
        assert before <= row["ts"].timestamp() * 1e6 <= time.time_ns() // 1000 and row["ts"] == row["received_at"]
    assert SpoolReader(settings.spool_dir("feed")).watermark() >= before


def test_a_new_generation_is_served_by_itself_and_a_broken_one_is_not(simulated):
    store = open_store(settings=simulated)
    first = read_latest(store, "feed")
    policy = random_policy(3, spec=SPEC)

    def write(generation, sha, what):
        ref = PolicyRef(sha=sha, version="2", uri="")
        change = Change(generation=generation, at="", what=what, reason="")
        write_next(store, msgspec.structs.replace(first, generation=generation, champion=ref, history=(change,)))

    with running(simulated) as client:
        assert client.get("/v1/document")[1]["generation"] == 1
        put_bundle(store, policy.sha, policy.to_files())
        write(2, policy.sha, "promoted")
        wait_for(lambda: client.get("/healthz")[1]["generation"] == 2)
        status, answer = client.post("/v1/rank", request())
        assert status == 200 and answer["policy_sha"] == policy.sha == client.get("/healthz")[1]["champion"]
        assert rows(simulated)[0].column("generation").to_pylist() == [2]

        put_bundle(store, "0" * 64, policy.to_files())  # the files of another policy under this name
        write(3, "0" * 64, "damaged")
        wait_for(lambda: client.get("/healthz")[1]["reload_error"])
        status, health = client.get("/healthz")
        assert status == 200 and health["generation"] == 2 and "expected " + "0" * 64 in health["reload_error"]
        assert client.post("/v1/rank", request())[1]["policy_sha"] == policy.sha
        text = client.get("/metrics")[1].decode()
        assert "mtf_generation 2.0" in text and "mtf_reloads 2.0" in text and "mtf_reload_failures 0.0" not in text

        other = random_policy(4, spec=msgspec.structs.replace(SPEC, gamma=0.5))
        put_bundle(store, other.sha, other.to_files())
        write(4, other.sha, "another spec")
        wait_for(lambda: "publish a policy of the surface's spec" in str(client.get("/healthz")[1]["reload_error"]))
        write(5, policy.sha, "mended")
        wait_for(
            lambda: client.get("/healthz")[1] | {"spool": None} == health | {"spool": None, "generation": 5, "reload_error": None}
        )


def test_without_a_document_it_waits_and_says_so(tmp_path):
    settings = Settings(state_dir=tmp_path / "state", clock="simulated")
    with running(settings) as client:
        status, answer = client.post("/v1/rank", request())
        assert status == 503 and "no deployment document" in answer["error"] and "mtf up" in answer["error"]
        assert client.get("/healthz")[0] == client.get("/v1/document")[0] == 503
        from mtf.rollout.document import Arms
        from mtf.rollout.start import initialise

        initialise(settings, "feed", SPEC, Arms(), 0.0)
        wait_for(lambda: client.get("/healthz")[0] == 200)
        assert client.post("/v1/rank", request())[1]["arm"] == "champion"


def test_a_server_whose_spool_keeps_nothing_is_not_well(simulated):
    with running(simulated) as client:
        (path,) = simulated.spool_dir("feed").glob("*.sqlite")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            for name, event in (("full", "insert on batch"), ("fuller", "update on spool")):
                other.execute(f"create trigger {name} before {event} begin select raise(abort, 'disk is full'); end")
            status, answer = client.post("/v1/rank", request())
            assert status == 503 and "disk is full; nothing of this append was kept" in answer["error"]
            status, health = client.get("/healthz")
            assert (status, health["status"]) == (503, "the spool keeps nothing: disk is full")
            other.execute("drop trigger full")
            other.execute("drop trigger fuller")
        wait_for(lambda: client.get("/healthz")[0] == 200)  # by itself: nobody asks a server that is not well
        assert client.post("/v1/rank", request())[0] == 200


def test_metrics_and_the_api_description(simulated):
    with running(simulated) as client:
        client.post("/v1/rank.arrow", to_stream(rank_columns()))
        client.post("/v1/rank", request(user_id=""))
        client.get("/no/such/page")
        text = client.get("/metrics")[1].decode()
        counts = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("mtf_requests_total")]
        assert sum(counts) == 20 and 'mtf_refused_total{route="/v1/rank",status="400"} 1.0' in text
        assert 'mtf_refused_total{route="unknown",status="404"} 1.0' in text and "mtf_spool_appends_total 1.0" in text
        paths = client.get("/schema/openapi.json")[1]["paths"]
        assert {"/v1/rank", "/v1/rank.arrow", "/v1/feedback", "/v1/feedback.arrow", "/v1/clock"} <= set(paths)


def test_rows_become_visible_in_the_order_in_which_they_were_received(simulated):
    """What the rollout's controller has read up to a server time can be read again, exactly, from the sealed day."""
    from concurrent.futures import ThreadPoolExecutor

    with running(simulated) as client, ThreadPoolExecutor(8) as pool:
        done = [pool.submit(client.post, "/v1/rank.arrow", to_stream(rank_columns())) for _ in range(20)]
        done += [pool.submit(client.post, "/v1/rank", request()) for _ in range(40)]
        assert {d.result()[0] for d in done} == {200}
    stamps = [t.column("received_at").cast(pa.int64()).to_numpy() for t in SpoolReader(simulated.spool_dir("feed")).poll({})[0]]
    assert all(s.min() == s.max() for s in stamps)
    assert all(a[0] < b[0] for a, b in itertools.pairwise(stamps)) and len(stamps) == 60


def test_an_append_that_fails_is_not_acknowledged(simulated):
    import sqlite3

    with running(simulated) as client:
        path = next(simulated.spool_dir("feed").glob("*.sqlite"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("create trigger full before insert on batch begin select raise(abort, 'disk is full'); end")
        status, answer = client.post("/v1/rank", request())
        assert status == 503 and "disk is full" in answer["error"]
        other.execute("drop trigger full")
        other.close()
        assert client.post("/v1/rank", request())[0] == 200


@pytest.mark.parametrize("name", ["/healthz", "/metrics"])
def test_pages_that_platforms_ask_for_need_no_body(simulated, name):
    with running(simulated) as client:
        assert client.get(name)[0] == 200
