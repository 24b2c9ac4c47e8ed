"""Anybody's files in the schema of docs/transitions.md: what is read, what is taken for granted, and what is refused."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.errors import InputError
from mtf.evaluation.run import evaluate
from mtf.learning.run import train
from mtf.transitions.table import REQUIRED, from_table, is_gate_user, load_transitions
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions
from tests.transitions.files import to_table, write_transitions

A, S, H = 2, 3, 2


@pytest.fixture
def table():
    """Two sessions, of two and of one request, last row first; two heads, no spec."""
    rows = [("b", 0, "v", True), ("a", 1, "u", False), ("a", 0, "u", False)]
    lists = {"state": S, "next_state": S, "action": A, "center": A, "lower": A, "upper": A, "reward": H}
    columns = {
        "session_id": pa.array([r[0] for r in rows]),
        "step": pa.array([r[1] for r in rows]),
        "user_id": pa.array([r[2] for r in rows]),
        "terminal": pa.array([r[3] for r in rows]),
    }
    for name, width in lists.items():
        fill = {"lower": -0.1, "upper": 0.1}.get(name)
        values = [[fill if fill is not None else (10 * i + j) / 100 for j in range(width)] for i in range(3)]
        columns[name] = pa.array(values, pa.list_(pa.float32()))
    return pa.table(columns)


def change(table, name, values, kind=None):
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


def test_rows_are_sorted_and_what_is_not_given_is_assumed(table):
    data = from_table(table.select(REQUIRED))
    np.testing.assert_array_equal(data.session, [0, 0, 1])
    np.testing.assert_array_equal(data.step, [0, 1, 0])
    np.testing.assert_allclose(data.state[:, 0], [0.2, 0.1, 0.0])
    np.testing.assert_array_equal(data.terminal, [False, False, True])
    assert list(data.user_ids[data.user]) == ["u", "u", "v"]
    assert (data.state_width, data.action_width, data.n_heads, data.n_sessions, len(data)) == (S, A, H, 2, 3)
    np.testing.assert_allclose(data.total_reward, [0.41, 0.21, 0.01], atol=1e-6)
    assert not data.truncated.any()
    assert data.exploring.all()
    assert data.value_mask.all()
    assert data.spec is None
    assert [data.policy_sha[0], data.arm[0], data.dt[0], data.fallback[0]] == [None] * 4
    # the successor's centre is the next row's
    np.testing.assert_allclose(data.next_center[0], data.center[1])


def test_a_box_without_width_is_no_exploration(table):
    still = change(table, "lower", [[0.0, 0.0], [-0.1, 0.0], [0.0, 0.0]])
    still = change(still, "upper", [[0.0, 0.0], [0.1, 0.0], [0.0, 0.0]])
    data = from_table(still.append_column("exploring", pa.array([True, True, True])))
    np.testing.assert_array_equal(data.exploring, [False, True, False])
    np.testing.assert_array_equal(data.position[:, 1], 0)


@pytest.mark.parametrize(("state", "action", "heads"), [(1, 1, 1), (7, 3, 4), (16, 8, 1)], ids=["narrow", "some heads", "wide"])
def test_any_width_trains_and_evaluates_without_a_spec(tmp_path, state, action, heads):
    data = make_sessions(500, seed=1, slope=np.linspace(0.8, -0.8, action))
    rng = np.random.default_rng(0)
    table = to_table(data)
    noise = rng.normal(size=(len(data), state)).astype(np.float32)
    table = change(table, "state", noise.tolist(), pa.list_(pa.float32()))
    table = change(table, "next_state", np.roll(noise, -1, axis=0).tolist(), pa.list_(pa.float64()))
    parts = rng.dirichlet(np.ones(heads), len(data)) * data.reward
    table = change(table, "reward", parts.tolist())
    pq.write_table(table, tmp_path / "anything.parquet")
    loaded = load_transitions(tmp_path / "anything.parquet")
    assert (loaded.state_width, loaded.action_width, loaded.n_heads) == (state, action, heads)
    trained = train(tmp_path, tmp_path / "policy", algorithm="linear_advantage", baseline="logged", progress=False)
    assert (trained.policy.state_width, trained.policy.action_width) == (state, action)
    report = evaluate(tmp_path / "anything.parquet", tmp_path / "policy", "logged", tmp_path / "report")
    assert report.sessions > 200
    assert len(report.dimensions) == action


def test_other_types_of_the_same_meaning_are_read(table):
    table = change(table, "reward", [1.0, 2.0, 3.0], pa.float64())  # one head, a plain number
    table = change(table, "step", [0, 1, 0], pa.int8())
    table = change(table, "user_id", [2, 1, 1], pa.int64())
    table = change(table, "session_id", ["b", "a", "a"], pa.dictionary(pa.int8(), pa.string()))
    table = change(table, "state", [[i] * S for i in range(3)], pa.list_(pa.int64(), S))
    table = change(table, "action", [[0.0] * A] * 3, pa.large_list(pa.float64()))
    table = table.append_column("dt", pa.array([datetime.date(2026, 1, 2)] * 3))
    table = table.append_column("ts", pa.array([3, 2, 1], pa.timestamp("s", tz="UTC")))
    table = table.append_column("fallback", pa.array([None] * 3, pa.null()))
    data = from_table(table)
    np.testing.assert_array_equal(data.total_reward, [3, 2, 1])
    assert set(data.user_ids) == {"1", "2"}
    np.testing.assert_array_equal(data.state[:, 0], [2, 1, 0])
    assert set(data.dt) == {"2026-01-02"}
    # whatever the unit, microseconds
    np.testing.assert_array_equal(data.ts, [1_000_000, 2_000_000, 3_000_000])
    assert list(data.fallback) == [None] * 3


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_column_is_named(table, tmp_path, name):
    pq.write_table(table.drop_columns([name]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=rf"lacks the column\(s\) {name}; see docs/transitions.md"):
        load_transitions(tmp_path)


BAD = {
    "nan action": ("action", [[0.0, 0.0], [0.0, float("nan")], [0.0, 0.0]], r"`action`\[1\] is nan in row 1"),
    "infinite reward": ("reward", [[0.0, 0.0], [0.0, 0.0], [float("-inf"), 0.0]], r"`reward`\[0\] is -inf in row 0"),
    "null in a state": ("state", [[0.0, None, 0.0]] + [[0.0] * 3] * 2, r"`state`\[1\] is nan in row 2"),
    "no list": ("state", [None, [0.0] * 3, [0.0] * 3], "`state` has lists of lengths"),
    "unequal lists": ("center", [[0.0], [0.0, 0.0], [0.0, 0.0]], r"`center` has lists of lengths \['1', '2'\]"),
    "text": ("state", ["a", "b", "c"], "`state` is string, needs a list of numbers"),
    "list of text": ("action", [["a", "b"]] * 3, "`action` is list<.*string>, needs a list of numbers"),
    "another width": ("upper", [[0.1] * 3] * 3, "`upper` has width 3, `action` has 2"),
    "another next state": ("next_state", [[0.1] * 2] * 3, "`next_state` has width 2, `state` has 3"),
    "raw action": ("action", [[0.0, 0.0], [0.0, 0.0], [35.0, 0.0]], r"`action`\[0\] is 35.0 in row 0; normalise actions"),
    "raw centre": ("center", [[0.0, -1.2], [0.0, 0.0], [0.0, 0.0]], r"`center`\[1\] is -1.2.* in row 2; normalise"),
    "box upside down": ("lower", [[0.0, 0.0], [0.2, 0.0], [0.0, 0.0]], r"`lower`\[0\] is 0.2.* in row 1; keep it at most"),
    "a step twice": ("step", [0, 1, 1], r"session 'a' has step 1 twice \(1 such rows\)"),
    "no user": ("user_id", ["v", None, "u"], "`user_id` holds 1 nulls"),
    "no session": ("session_id", [None, None, "a"], "`session_id` holds 2 nulls"),
    "no end": ("terminal", [True, None, False], "`terminal` holds 1 nulls"),
    "step in words": ("step", ["one", "2", "3"], "`step` is string, needs int64"),
    "a step below 0": ("step", [-1, 0, 1], r"session '.' has step -1 \(1 such rows\); number the steps of a session 0, 1"),
    "a step left out": ("step", [0, 0, 2], r"session 'a' goes from step 0 to 2 \(1 such places\); its returns would miss"),
    "an end on the way": ("terminal", [True] * 3, r"session 'a' is `terminal` at step 0 and goes on \(1 such rows\)"),
    "end in words": ("terminal", ["maybe", "no", "no"], "`terminal` is string, needs bool"),
}


@pytest.mark.parametrize(("name", "values", "says"), BAD.values(), ids=BAD)
def test_a_value_that_cannot_be_learned_from_is_named(table, name, values, says):
    with pytest.raises(InputError, match=says) as error:
        from_table(change(table, name, values), where="logs.parquet")
    assert "logs.parquet" in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("ts", pa.array(["yesterday"] * 3), "`ts` is string"),
        ("ts", pa.array([None, 1, 2]), "`ts` holds 1 nulls"),
        ("truncated", pa.array(["x"] * 3), "`truncated` is string, needs bool"),
        ("next_center", pa.array([[0.0]] * 3), "`next_center` has width 1"),
        ("spec_version", pa.array(["s1", "s2", None]), "rows are of the specs s1, s2: their actions do not mean the same"),
    ],
)
def test_so_is_one_in_a_column_that_need_not_be_there(table, name, values, says):
    with pytest.raises(InputError, match=says):
        from_table(table.append_column(name, values))


def test_what_is_no_parquet_or_not_there_is_named(table, tmp_path):
    with pytest.raises(InputError, match="no Parquet file at"):
        load_transitions(tmp_path)
    with pytest.raises(InputError, match="no Parquet file at"):
        load_transitions(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match="cannot read"):
        load_transitions(tmp_path)
    pq.write_table(table, tmp_path / "bad.parquet")
    data = bytearray((tmp_path / "bad.parquet").read_bytes())
    data[4:400] = bytes(396)
    (tmp_path / "bad.parquet").write_bytes(data)
    with pytest.raises(InputError, match="cannot read"):
        load_transitions(tmp_path)
    pq.write_table(table.slice(0, 0), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="no rows of all users"):
        load_transitions(tmp_path)


def test_files_of_two_kinds_are_refused_and_hidden_and_carried_ones_left_alone(table, tmp_path):
    pq.write_table(table, tmp_path / "a.parquet")
    for name in (".hidden", "carry", "_temporary"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.parquet").write_bytes(b"no parquet")
    assert len(load_transitions(tmp_path)) == 3
    pq.write_table(change(table, "state", ["x", "y", "z"]), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="cannot read"):
        load_transitions(tmp_path)


def test_the_spec_beside_the_files_says_what_a_value_may_read(tmp_path):
    spec = small_spec()
    data = make_sessions(30, seed=0, slope=np.zeros(4))
    folder = write_transitions(tmp_path / "t", data, spec)
    loaded = load_transitions(folder)
    assert loaded.spec == spec
    np.testing.assert_array_equal(loaded.value_mask, [True, False, True])
    write_transitions(tmp_path / "other", make_sessions(30, seed=0, slope=np.zeros(3)), spec)
    with pytest.raises(InputError, match=f"widths 3 and 3; spec {spec.version} has 3 and 4"):
        load_transitions(tmp_path / "other")
    assert load_transitions(folder / "part.parquet").spec is None
    assert load_transitions(folder / "part.parquet", spec=spec).spec == spec


def test_gate_users_are_a_half_for_ever():
    # sha256("mtf-gate:a") starts with 6, of b with c; a change here would mix training and gate users of old datasets
    import hashlib

    for user in ("a", "b", "u1", "17", "user-9"):
        assert is_gate_user(user) is (hashlib.sha256(f"mtf-gate:{user}".encode()).digest()[0] >> 7 == 1)
    share = np.mean([is_gate_user(f"u{i}") for i in range(20_000)])
    assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(20_000))


@pytest.mark.parametrize("kind", ["string", "dictionary", "int"])
def test_train_and_gate_part_the_users(tmp_path, kind):
    data = make_sessions(200, seed=0, slope=np.zeros(2))
    table = to_table(data)
    if kind == "int":
        table = change(table, "user_id", data.user)
    if kind == "dictionary":
        table = change(table, "user_id", table["user_id"].to_pylist(), pa.dictionary(pa.int32(), pa.string()))
    pq.write_table(table, tmp_path / "x.parquet")
    everyone, training, gate = (load_transitions(tmp_path, users=users) for users in ("all", "train", "gate"))
    assert len(training) + len(gate) == len(everyone) == len(data)
    assert {*training.user_ids} | {*gate.user_ids} == {*everyone.user_ids}
    assert all(is_gate_user(u) for u in gate.user_ids)
    assert not any(is_gate_user(u) for u in training.user_ids)


def test_a_table_of_gate_users_alone_has_nothing_to_train_on(tmp_path):
    data = make_sessions(40, seed=0, slope=np.zeros(2))
    table = to_table(data)
    gate = [is_gate_user(u) for u in table["user_id"].to_pylist()]
    pq.write_table(table.filter(pa.array(gate)), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no rows of train users"):
        load_transitions(tmp_path, users="train")


def test_returns_by_the_plain_loop():
    data = make_sessions(60, seed=2, slope=np.zeros(2), end=0.3)
    expected = np.zeros(len(data))
    for i in range(len(data) - 1, -1, -1):
        same = i + 1 < len(data) and data.session[i + 1] == data.session[i]
        expected[i] = data.total_reward[i] + (0.9 * expected[i + 1] if same else 0)
    np.testing.assert_allclose(data.returns(0.9), expected, rtol=1e-6)
    ones = data.select(data.session < 1)
    assert data.returns(0.0)[0] == pytest.approx(float(ones.total_reward[0]))


def test_eight_steps_of_one_are_worth_what_they_are():
    data = make_sessions(3, seed=0, slope=np.zeros(1), end=0.0, longest=8)
    data = type(data)(**data.__dict__ | {"reward": np.ones((len(data), 1), np.float32)})
    assert data.returns(0.9)[data.starts] == pytest.approx(5.69533, abs=1e-5)


def test_selecting_keeps_sessions_and_numbers_them_anew():
    data = make_sessions(20, seed=0, slope=np.zeros(2))
    chosen = data.select(data.session % 2 == 1)
    assert chosen.n_sessions == 10
    np.testing.assert_array_equal(np.unique(chosen.session), np.arange(10))
    np.testing.assert_array_equal(chosen.state, data.state[data.session % 2 == 1])
    assert list(chosen.user_ids) == list(data.user_ids)
    assert len(data.select(np.zeros(len(data), bool))) == 0


def test_candidates_of_unequal_number_are_padded(table):
    spec = small_spec()
    scores = [np.arange(2 * c, dtype=np.float16) + 100 * c for c in (4, 2, 3)]
    payload = pa.array([s.tobytes() for s in scores], pa.binary())
    wide = change(table, "action", [[0.0] * 4] * 3)
    for name, value in (("center", 0.0), ("lower", -0.1), ("upper", 0.1)):
        wide = change(wide, name, [[value] * 4] * 3)
    data = from_table(wide.append_column("cand_scores", payload), spec=spec)
    # rows by (session, step): those of 3, 2 and 4 candidates
    found, count = data.candidates(np.array([2, 1]))
    np.testing.assert_array_equal(count, [4, 2])
    assert found.shape == (2, 4, 2)
    np.testing.assert_array_equal(found[0].ravel(), scores[0])
    np.testing.assert_array_equal(found[1].ravel(), [*scores[1], 0, 0, 0, 0])
    np.testing.assert_array_equal(data.has_candidates, [True, True, True])
    part = from_table(wide.append_column("cand_scores", pa.array([None, *payload[1:]], pa.binary())), spec=spec)
    np.testing.assert_array_equal(part.has_candidates, [True, True, False])
    with pytest.raises(InputError, match="1 of 2 rows have none"):
        part.candidates(np.array([0, 2]))
    # a slice of a larger table reads its own bytes
    np.testing.assert_array_equal(data.select(data.session == 1).candidates(np.array([0]))[0].ravel(), scores[0])
    for bad in (np.nan, -1.0, np.inf):
        scores[1][3] = bad
        payload = pa.array([s.tobytes() for s in scores], pa.binary())
        spoilt = from_table(wide.append_column("cand_scores", payload), spec=spec)
        with pytest.raises(InputError, match=f"cand_scores: row 1 has a score of {bad}"):
            spoilt.candidates(np.array([0, 1, 2]))
        assert len(spoilt.candidates(np.array([0, 2]))[0]) == 2
    with pytest.raises(InputError, match="carry no candidates"):
        from_table(wide).candidates(np.array([0]))
