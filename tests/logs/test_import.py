"""Other people's logs: what the contract holds comes back whole from foreign columns, what is missing is filled and said."""

import datetime
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mtf.commands.logs import logs as logs_command
from mtf.errors import InputError
from mtf.logs.days import day_files, list_days, read_manifest
from mtf.logs.importing import MAPS, import_logs, map_of
from mtf.spec import FusionSpec
from tests.quality import rows

T0 = 1_767_225_600_000  # 2026-01-01, milliseconds


def write(folder: Path, name: str, columns: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), folder / name)


def a_map(folder: Path, document: dict, spec: FusionSpec = rows.SPEC) -> Path:
    """The map's file, its spec beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    spec.write(folder / "spec.json")
    (folder / "map.json").write_text(json.dumps({"spec": "spec.json"} | document))
    return folder / "map.json"


def sealed(out: Path, kind: str) -> pa.Table:
    (dt,) = list_days(out)
    return pa.concat_tables([pq.read_table(p) for p in day_files(out, dt, kind)])


# --- a log that holds everything ---

NAMES = {
    "request_id": "req", "user_id": "member", "ts": "at", "received_at": "got", "action": "weights", "center": "base",
    "lower": "below", "upper": "above", "log_propensity": "logp", "policy_sha": "model", "policy_version": "model_version",
    "arm": "bucket_name", "item_ids": "shown", "scores": "preds", "cand_item_ids": "pool", "cand_scores": "pool_preds",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, map, requests, feedback): the contract's rows under foreign names, requests with lists and boxes."""
    requests, feedback = rows.day(40)
    folder = tmp_path_factory.mktemp("whole")
    foreign = {}
    for name, theirs in NAMES.items():
        column = requests[name]
        if name == "cand_scores":
            column = pa.array([None if b is None else np.frombuffer(b, "<f2").astype(float).tolist() for b in column.to_pylist()])
        foreign[theirs] = column
    state = np.array(requests["state"].to_pylist())
    foreign |= {"age_band": state[:, 0], "recent_valid": state[:, 1], "mean_click": state[:, 2]}
    write(folder, "exposure-1.parquet", pa.table(foreign).slice(0, 100))
    write(folder, "exposure-2.parquet", pa.table(foreign).slice(100))
    told = {"req": feedback["request_id"], "item": feedback["item_id"], "end": feedback["ts"], "got": feedback["received_at"]}
    told |= {c: feedback[c] for c in ("watch_s", "duration_s", "click", "valid")}
    write(folder, "feedback.parquet", told)
    columns = dict(NAMES) | {
        "state:activity": "age_band",
        "state:recent:valid": "recent_valid",
        "state:score_mean:click": "mean_click",
    }
    document = {
        "exposures": {"files": "exposure-*.parquet", "rows": "requests", "columns": columns},
        "feedback": {
            "files": "feedback.parquet",
            "columns": {"request_id": "req", "item_id": "item", "ts": "end", "received_at": "got"}
            | {c: c for c in ("watch_s", "duration_s", "click", "valid")},
        },
    }
    return folder, document, requests, feedback


def test_the_contracts_own_rows_come_back_from_foreign_columns(whole, tmp_path):
    folder, document, requests, feedback = whole
    found = import_logs(folder, a_map(tmp_path / "map", document), tmp_path / "out")
    assert found.dropped == {} and found.filled == {}
    assert found.unused == {"exposures": [], "feedback": []}
    assert found.explored == sum(requests["exploring"].to_pylist()) == found.with_candidates
    back = sealed(tmp_path / "out", "requests")
    server = {"bucket", "generation", "exploration_sha", "rollout_id", "latency_us", "n_candidates"}  # not of a company's log
    same = {f.name for f in requests.schema} - server
    order = requests.sort_by([("ts", "ascending"), ("request_id", "ascending")])
    for name in sorted(same):
        assert back[name].combine_chunks().equals(order[name].combine_chunks()), name
    back = sealed(tmp_path / "out", "feedback")
    order = feedback.sort_by([("request_id", "ascending"), ("item_id", "ascending")])
    assert back.sort_by([("request_id", "ascending"), ("item_id", "ascending")]).equals(order)


def test_an_action_off_its_center_without_a_box_is_not_mended_in_silence(whole, tmp_path):
    folder, document, requests, _ = whole
    row = int(np.flatnonzero(~np.array(requests["exploring"].to_pylist()))[0])
    for number, part in ((1, slice(0, 100)), (2, slice(100, None))):
        table = pq.read_table(folder / f"exposure-{number}.parquet")
        if part.start <= row < part.start + table.num_rows:
            table = rows.put(table, "weights", row - part.start, [0.7, 0.7, 0.7, 0.7])
        write(tmp_path / "theirs", f"exposure-{number}.parquet", table)
    write(tmp_path / "theirs", "feedback.parquet", pq.read_table(folder / "feedback.parquet"))
    import_logs(tmp_path / "theirs", a_map(tmp_path / "map", document), tmp_path / "out")
    (found,) = (
        r for r in sealed(tmp_path / "out", "requests").to_pylist() if r["request_id"] == requests["request_id"][row].as_py()
    )
    np.testing.assert_allclose(found["action"], 0.7, rtol=1e-6)
    assert found["center"] == requests["center"][row].as_py() and found["log_propensity"] is None


def test_a_file_that_is_no_parquet_is_named(whole, tmp_path):
    _, document, *_ = whole
    (tmp_path / "theirs").mkdir()
    for name in ("exposure-1.parquet", "feedback.parquet"):
        (tmp_path / "theirs" / name).write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"exposures\.files: exposure-\*\.parquet in .* is not readable Parquet"):
        import_logs(tmp_path / "theirs", a_map(tmp_path / "map", document), None)


def test_importing_again_changes_nothing(whole, tmp_path):
    folder, document, *_ = whole
    path = a_map(tmp_path / "map", document)
    first = import_logs(folder, path, tmp_path / "out").manifests
    assert import_logs(folder, path, tmp_path / "out", threads=1).manifests == first


def test_what_the_candidates_give_is_computed_and_a_density_that_is_not_logged(whole, tmp_path):
    folder, document, requests, _ = whole
    columns = {k: v for k, v in document["exposures"]["columns"].items() if k not in ("state:score_mean:click", "log_propensity")}
    changed = document | {"exposures": document["exposures"] | {"columns": columns}}
    found = import_logs(folder, a_map(tmp_path / "map", changed), tmp_path / "out")
    assert found.filled["log_propensity"] == "the density of a uniform draw in the box"
    assert found.filled["state:score_mean:click"].startswith("computed from the candidates' scores")
    back = sealed(tmp_path / "out", "requests")
    order = requests.sort_by([("ts", "ascending"), ("request_id", "ascending")])
    explored = np.array(order["exploring"].to_pylist())
    ours, theirs = (np.array(t["state"].to_pylist())[:, 2] for t in (back, order))
    np.testing.assert_allclose(ours[explored], theirs[explored], atol=2e-3)  # candidates are kept as float16
    assert (ours[~explored] == 0).all()
    density = np.array([p for p in back["log_propensity"].to_pylist() if p is not None])
    np.testing.assert_allclose(density, [p for p in order["log_propensity"].to_pylist() if p is not None], atol=1e-6)


# --- a log of impressions, as most companies have it ---

IMPRESSIONS = {
    "user": ["a", "a", "a", "a", "b", "b", None, "a"],
    "video": ["x", "y", "x", "z", "x", "w", "x", "x"],
    "at": [T0, T0 + 400, T0, T0 + 90_000, T0 + 5000, T0 + 5000, T0, T0],
    "play_ms": [12_000, 3_000, 12_000, 0, 500, 60_000, 1, 7],
    "length_ms": [30_000, 0, 30_000, 15_000, 9_000, 61_000, 5, 5],
    "comment": [0, 0, 0, 1, 0, 0, 0, 0],
    "follow": [0, 1, 0, 1, 0, 0, 0, 0],
    "tab": [1, 1, 1, 1, 1, 1, 1, 2],
}
USERS = {"id": ["a", "c"], "level": ["gold", "gold"]}
OUTCOMES = {
    "watch_s": {"column": "play_ms", "scale": 0.001},
    "duration_s": {"column": "length_ms", "scale": 0.001, "missing": [0]},
    "click": {"any_of": ["comment", "follow"]},
    "valid": {"column": "play_ms", "above": 10_000},
}


def impressions_map(**exposures):
    columns = {"user_id": "user", "item_id": "video", "ts": {"column": "at", "unit": "ms"}} | OUTCOMES
    changed = {"files": "log.parquet", "where": {"tab": [1]}, "request_gap_s": 1.0, "columns": columns} | exposures
    users = {"files": "users.parquet", "key": "id", "columns": {"state:activity": {"column": "level", "values": {"gold": 3.0}}}}
    return {"exposures": changed, "users": users}


@pytest.fixture
def impressions(tmp_path):
    folder = tmp_path / "theirs"
    write(folder, "log.parquet", IMPRESSIONS)
    write(folder, "users.parquet", USERS)
    return folder


def test_impressions_without_requests_or_weights_are_made_into_days(impressions, tmp_path):
    found = import_logs(impressions, a_map(tmp_path / "map", impressions_map()), tmp_path / "out")
    assert found.dropped == {
        "exposures: left out by `where`": 1,
        "exposures: without a user, time, item or request": 1,
        "exposures: repeats of (user, item, time)": 1,
    }
    assert found.read == {"exposures": 8, "users": 2}
    requests, feedback = sealed(tmp_path / "out", "requests"), sealed(tmp_path / "out", "feedback")
    # a: x and y within a second, z later; b: x and w at one time, in the order of the file
    assert requests["user_id"].to_pylist() == ["a", "b", "a"]
    assert [len(i) for i in requests["item_ids"].to_pylist()] == [2, 2, 1]
    assert requests["ts"].to_pylist()[0] == datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    x = requests["item_ids"][0].as_py()[0]
    assert requests["item_ids"][1].as_py()[0] == x and 0 <= x < 2**60
    assert requests["state"].to_pylist()[0] == [3.0, 0.0, 0.0] and requests["state"].to_pylist()[1] == [0.25, 0.0, 0.0]
    assert requests["scores"].to_pylist()[2] == [0.0, 0.0]
    assert set(requests["exploring"].to_pylist()) == {False} and set(requests["arm"].to_pylist()) == {"champion"}
    first = requests["request_id"][0].as_py()
    mine = {r["position"]: r for r in feedback.to_pylist() if r["request_id"] == first}
    assert (mine[0]["watch_s"], mine[0]["duration_s"], mine[0]["click"], mine[0]["valid"]) == (12.0, 30.0, 0, 1)
    assert (mine[1]["watch_s"], mine[1]["duration_s"], mine[1]["click"], mine[1]["valid"]) == (3.0, None, 1, 0)
    assert mine[1]["ts"] == datetime.datetime(2026, 1, 1, 0, 0, 3, 400_000, tzinfo=datetime.UTC)
    assert "made: impressions of a user within 1 s, at most 3" in found.filled["request_id"]
    assert found.filled["action"].startswith("the spec's start")


def test_a_long_run_of_impressions_is_cut_where_a_page_is_full(tmp_path):
    n = 8
    log = {"user": ["a"] * n, "video": list(range(n)), "at": [T0 + i for i in range(n)]}
    log |= {"play_ms": [0] * n, "length_ms": [1] * n, "comment": [0] * n, "follow": [0] * n, "tab": [1] * n}
    write(tmp_path / "theirs", "log.parquet", log)
    document = impressions_map()
    document.pop("users")
    import_logs(tmp_path / "theirs", a_map(tmp_path / "map", document), tmp_path / "out")
    assert sealed(tmp_path / "out", "requests")["item_ids"].to_pylist() == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_raw_weights_and_scores_and_silent_impressions(tmp_path):
    folder = tmp_path / "theirs"
    log = {"rid": ["r1", "r1", "r2", "r2", "r3"], "user": ["a", "a", "b", "c", "d"], "video": [1, 2, 1, 2, 1]}
    log |= {"at": [T0 / 1000] * 5, "rank": [1, 0, 0, 1, 0], "p1": [0.1, 0.2, 0.3, 0.4, 0.5], "p2": [1.0, 2.0, 3.0, 4.0, 5.0]}
    log |= {"w1": [1.0] * 5, "w2": [2.0] * 5, "b1": [0.001] * 5, "b2": [10.0] * 5}
    write(folder, "log.parquet", log)
    write(folder, "events.parquet", {"rid": ["r1", "r9", "r3", None], "video": [1, 1, 7, 1], "s": [4.0] * 4, "c": [True] * 4})
    columns = {
        "request_id": "rid",
        "user_id": "user",
        "item_id": "video",
        "ts": {"column": "at", "unit": "s"},
        "position": "rank",
    }
    columns |= {"score:click": "p1", "score:watch": "p2"}
    columns |= {"power:click": "w1", "power:watch": "w2", "bias:click": "b1", "bias:watch": "b2"}
    feedback = {"request_id": "rid", "item_id": "video", "watch_s": "s", "click": "c", "valid": {"column": "s", "above": 10}}
    document = {
        "exposures": {"files": "log.parquet", "columns": columns},
        "feedback": {"files": "events.parquet", "columns": feedback},
    }
    found = import_logs(folder, a_map(tmp_path / "map", document), tmp_path / "out")
    assert found.dropped == {
        "exposures: of requests with several users": 2,
        "feedback: without a request or item": 1,
        "feedback: of requests that the exposures do not hold": 1,
        "feedback: on items that the request did not show": 1,
    }
    requests = {r["user_id"]: r for r in sealed(tmp_path / "out", "requests").to_pylist()}
    assert requests["a"]["item_ids"] == [2, 1]
    np.testing.assert_allclose(requests["a"]["scores"], [0.2, 2.0, 0.1, 1.0], rtol=1e-6)
    np.testing.assert_allclose(requests["a"]["action"], [0.0, 1.0, -1.0, 1.0], atol=1e-6)
    assert requests["a"]["center"] == requests["a"]["action"] and requests["a"]["log_propensity"] is None
    answers = {(r["item_id"], r["position"]): r for r in sealed(tmp_path / "out", "feedback").to_pylist()}
    # item 1 was clicked; item 2 of r1, and item 1 of r3, were shown and nothing is told of them: zeros
    assert len(answers) == 3 and sum(r["click"] for r in answers.values()) == 1
    assert answers[(2, 0)]["watch_s"] == 0 and answers[(1, 1)]["watch_s"] == 4.0
    assert found.filled["request_id"] == "a UUIDv7 made of its time and the log's own id"


def change(document, section, **changes):
    found = json.loads(json.dumps(document))
    found[section] |= changes
    return found


LOG = impressions_map()
COLUMNS = LOG["exposures"]["columns"]
WRONG = {
    "unknown target": ({"columns": COLUMNS | {"colour": "tab"}}, "exposures.columns.colour: no such column; it takes"),
    "unknown setting": ({"columns": COLUMNS | {"click": {"column": "tab", "factor": 2}}}, "unknown field `factor`"),
    "no user": ({"columns": {k: v for k, v in COLUMNS.items() if k != "user_id"}}, "exposures.columns: user_id must be mapped"),
    "no behaviour": ({"columns": {k: v for k, v in COLUMNS.items() if k != "valid"}}, "columns.valid: is not mapped; map it, or"),
    "half the scores": ({"columns": COLUMNS | {"score:click": "tab"}}, "score:watch: is not mapped, others of its kind are"),
    "half a box": ({"columns": COLUMNS | {"lower": "tab"}}, "a box needs action, center, lower and upper"),
    "no such file": ({"files": "lag.parquet"}, "exposures.files: .* holds no lag.parquet"),
    "no such column": ({"columns": COLUMNS | {"user_id": "usr"}}, "has no column 'usr'; it has user, video"),
    "no unit": ({"columns": COLUMNS | {"ts": "at"}}, 'column \'at\' is BIGINT; give a timestamp, or a number with its "unit"'),
    "text as number": ({"columns": COLUMNS | {"watch_s": "video"}}, "a column's values are not what .* says: .*'x'"),
    "nothing left": ({"where": {"tab": [9]}}, "no request is left; dropped: .*left out by `where`"),
    "requests without lists": ({"rows": "requests"}, "exposures.columns.item_id: no such column"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), WRONG.values(), ids=WRONG)
def test_a_map_or_a_file_that_cannot_be_used_is_named(impressions, tmp_path, changes, says):
    path = a_map(tmp_path / "map", change(LOG, "exposures", **changes))
    with pytest.raises(InputError, match=says):
        import_logs(impressions, path, tmp_path / "out")
    assert list_days(tmp_path / "out") == []


def test_a_time_without_a_zone_is_not_guessed(tmp_path):
    naive = [datetime.datetime(2026, 1, 1, 8, 0)]
    log = {"user": ["a"], "video": [1], "at": naive, "play_ms": [1], "length_ms": [1], "comment": [0], "follow": [0], "tab": [1]}
    write(tmp_path / "theirs", "log.parquet", log)
    document = impressions_map(columns=COLUMNS | {"ts": "at"})
    document.pop("users")
    path = a_map(tmp_path / "map", document)
    with pytest.raises(InputError, match='has times without a zone; give "zone"'):
        import_logs(tmp_path / "theirs", path, None)
    document["exposures"]["columns"] = COLUMNS | {"ts": {"column": "at", "zone": "Asia/Shanghai"}}
    import_logs(tmp_path / "theirs", a_map(tmp_path / "map", document), tmp_path / "out")
    assert sealed(tmp_path / "out", "requests")["ts"].to_pylist() == [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)]


def test_a_dry_run_says_what_would_happen_and_writes_nothing(impressions, tmp_path):
    path = a_map(tmp_path / "map", impressions_map())
    command = ["import", str(impressions), "--format", "parquet", "--map", str(path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(logs_command, [*command, "--dry-run"])
    assert done.exit_code == 0, done.output
    for line in (
        "dropped  1 rows of exposures: left out by `where`",
        "filled   scores: 0",
        "makes    3 requests and 5 feedback rows of 2 users on 1 days, 2026-01-01 to 2026-01-01",
        "0.0% of the requests explored",
        "nothing was written (--dry-run)",
    ):
        assert line in done.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(logs_command, command)
    assert done.exit_code == 0 and "2026-01-01  r1" in done.output
    assert read_manifest(tmp_path / "out", "2026-01-01").rows("feedback") == 5


def test_the_formats_have_the_maps_that_they_say(tmp_path):
    with pytest.raises(InputError, match="--format parquet knows no columns by itself"):
        map_of("parquet", None)
    assert map_of("kuairand", None) == MAPS / "kuairand.json"
    spec = FusionSpec.read(MAPS / "kuairand_spec.json")
    assert spec.behaviours == ("watch", "click", "valid", "like", "interact")
    with pytest.raises(InputError, match=r"nothing\.json does not exist"):
        import_logs(tmp_path, tmp_path / "nothing.json", None)


@pytest.mark.kuairand
def test_kuairand_comes_in_with_its_published_rates(tmp_path):
    folder = os.environ.get("MTF_KUAIRAND")
    if not folder:
        pytest.skip("MTF_KUAIRAND does not name the folder of the KuaiRand Parquet files")
    found = import_logs(Path(folder), map_of("kuairand", None), tmp_path / "out")
    assert (found.feedback, found.users, len(found.days)) == (173_008, 23_569, 15)
    feedback = pa.concat_tables([pq.read_table(p) for dt in found.days for p in day_files(tmp_path / "out", dt, "feedback")])
    assert feedback["click"].to_numpy().mean() == pytest.approx(0.494, abs=0.001)
    assert feedback["watch_s"].to_numpy().mean() == pytest.approx(24.49, abs=0.05)
    assert 0.005 < feedback["duration_s"].null_count / feedback.num_rows < 0.05
