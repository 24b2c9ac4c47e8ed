import json

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtf.errors import InputError
from mtf.quality.flatten import COLUMNS, create_views
from mtf.quality.rules import LEVELS, clean_predicates, mark_broken, read_suite
from tests.quality import rows

BETWEEN = "expect_column_values_to_be_between"


@pytest.fixture(scope="module")
def tables():
    return rows.day(users=12)


def look(folder, requests, feedback):
    """A connection that has the flat views of these rows."""
    pq.write_table(requests, folder / "requests.parquet")
    pq.write_table(feedback, folder / "feedback.parquet")
    con = duckdb.connect()
    create_views(con, requests=[folder / "requests.parquet"], feedback=[folder / "feedback.parquet"], spec=rows.SPEC)
    return con


def broken(con, table):
    """{row: rules that it breaks}."""
    mark_broken(con, table, clean_predicates(rows.EXPECTATIONS, table))
    return {row: set(names) for row, names in con.execute(f"SELECT file_row, broken FROM {table}_broken").fetchall()}


def one_rule(folder, table="requests", **changes):
    expectation = {
        "type": BETWEEN,
        "kwargs": {"column": "action_max", "max_value": 1.0},
        "severity": "warning",
        "meta": {"level": "row", "rule": "r", "reason": "why"},
    } | changes
    folder.mkdir(exist_ok=True)
    (folder / f"{table}.json").write_text(json.dumps({"name": table, "expectations": [expectation]}))
    return folder


def test_what_the_engine_writes_is_clean(tmp_path, tables):
    con = look(tmp_path, *tables)
    assert broken(con, "requests") == {}
    assert broken(con, "feedback") == {}


def test_every_column_of_the_contract_is_in_the_view(tmp_path, tables):
    con = look(tmp_path, *tables)
    for table in ("requests", "feedback"):
        con.execute(f"SELECT {', '.join(COLUMNS[table])} FROM {table}_flat").fetchall()


def test_derived_columns_against_numpy(tmp_path, tables):
    requests, feedback = tables
    con = look(tmp_path, requests, feedback)
    action, center, lower, upper = (np.array(requests[c].to_pylist(), np.float32) for c in ("action", "center", "lower", "upper"))
    found = con.execute(
        "SELECT action_min, action_max, box_width, box_excess, log_propensity_error FROM requests_flat ORDER BY file_row"
    ).fetchnumpy()
    np.testing.assert_array_equal(found["action_min"], action.min(1))
    np.testing.assert_array_equal(found["action_max"], action.max(1))
    np.testing.assert_allclose(found["box_width"], (upper - lower).sum(1), atol=1e-6)
    excess = np.maximum(action - (center + upper), (center + lower) - action).max(1)
    np.testing.assert_allclose(found["box_excess"], excess, atol=1e-7)
    assert found["box_excess"].max() <= 0
    explored = np.array(requests["exploring"].to_pylist())
    assert np.nanmax(np.ma.filled(found["log_propensity_error"].astype(float), np.nan)) < 1e-6
    np.testing.assert_array_equal(np.ma.getmaskarray(found["log_propensity_error"]), ~explored)


NAN = float("nan")
SPOILT_REQUESTS = {
    "nan action": ("action", [NAN, 0.0, 0.0, 0.0], "action_finite"),
    "infinite action": ("action", [float("inf"), 0.0, 0.0, 0.0], "action_finite"),
    "null in action": ("action", [None, 0.0, 0.0, 0.0], "action_finite"),
    "short action": ("action", [0.0, 0.0], "widths"),
    "outside the space": ("action", [1.4, 0.0, 0.0, 0.0], "action_high"),
    "outside its box": ("action", [-0.99, -0.99, -0.99, -0.99], "action_in_box"),
    "nan state": ("state", [NAN, 0.0, 0.0], "state_finite"),
    "nan center": ("center", [NAN, 0.0, 0.0, 0.0], "box_finite"),
    "box upside down": ("upper", [-0.1, 0.0, 0.0, 0.0], "box_upper"),
    "negative score": ("scores", [-1.0] * 6, "scores_positive"),
    "nothing shown": ("item_ids", [], "items"),
    "wrong propensity": ("log_propensity", 12.0, "propensity_agrees"),
    "lost propensity": ("log_propensity", None, "propensity_logged"),
    "no such arm": ("arm", "red", "arm"),
    "no id": ("request_id", "r1", "id_form"),
    "other spec": ("spec_version", "0", "spec"),
    "other schema": ("schema_version", 9, "schema_version"),
    "bucket": ("bucket", 10_000, "bucket"),
    "candidates": ("cand_scores", b"\0\0", "candidate_bytes"),
}


@pytest.mark.parametrize(("column", "value", "rule"), SPOILT_REQUESTS.values(), ids=SPOILT_REQUESTS)
def test_a_spoilt_request_is_set_aside(tmp_path, tables, column, value, rule):
    requests, feedback = tables
    row = int(np.flatnonzero(requests["exploring"].to_pylist())[3])
    found = broken(look(tmp_path, rows.put(requests, column, row, value), feedback), "requests")
    assert set(found) == {row} and rule in found[row]


def test_an_unexplored_row_that_moved_is_set_aside(tmp_path, tables):
    requests, feedback = tables
    row = int(np.flatnonzero(~np.array(requests["exploring"].to_pylist()))[0])
    moved = [a + 0.01 for a in requests["center"][row].as_py()]
    found = broken(look(tmp_path, rows.put(requests, "action", row, moved), feedback), "requests")
    assert set(found) == {row} and {"unexplored_is_center", "action_in_box"} <= found[row]


SPOILT_FEEDBACK = {
    "negative watch": ("watch_s", -1.0, "watch_range"),
    "nan watch": ("watch_s", NAN, "watch_finite"),
    "no length": ("duration_s", 0.0, "duration_positive"),
    "unknown request": ("request_id", rows.unknown_id(), "known_request"),
    "other item": ("item_id", -5, "shown_there"),
    "other position": ("position", 7, "shown_there"),
    "flag": ("click", 2, "flags_high"),
}


@pytest.mark.parametrize(("column", "value", "rule"), SPOILT_FEEDBACK.values(), ids=SPOILT_FEEDBACK)
def test_spoilt_feedback_is_set_aside(tmp_path, tables, column, value, rule):
    requests, feedback = tables
    found = broken(look(tmp_path, requests, rows.put(feedback, column, 5, value)), "feedback")
    assert found == {5: {rule}}


def test_unknown_length_is_no_fault(tmp_path, tables):
    requests, feedback = tables
    assert broken(look(tmp_path, requests, rows.put(feedback, "duration_s", 5, None)), "feedback") == {}


def test_of_repeated_requests_the_first_by_received_at_and_content_stays(tmp_path, tables):
    requests, feedback = tables
    import pyarrow as pa

    later = requests["received_at"][0].as_py() + __import__("datetime").timedelta(seconds=1)
    again = pa.concat_tables([rows.put(requests.slice(0, 1), "received_at", 0, later), requests.slice(3, 1)])
    both = pa.concat_tables([again, requests])
    found = broken(look(tmp_path, both, feedback), "requests")
    # the later copy of row 0 goes though it is stored first; of the two equal copies of row 3 one goes
    assert found[0] == {"duplicate_request"} and len(found) == 2
    assert set(found) - {0} <= {1, 5}
    # a repeated request does not repeat its feedback
    con = look(tmp_path, both, feedback)
    assert con.execute("SELECT count(*) FROM feedback_flat").fetchall() == [(feedback.num_rows,)]


def test_the_same_rows_in_another_order_lose_the_same_copy(tmp_path, tables):
    requests, feedback = tables
    import pyarrow as pa

    other = rows.put(requests.slice(0, 1), "latency_us", 0, 77)
    kept = []
    for order in ([other, requests], [requests, other]):
        con = look(tmp_path, pa.concat_tables(order), feedback)
        kept += con.execute("SELECT latency_us FROM requests_flat WHERE copy = 0 ORDER BY request_id").fetchall()
    half = len(kept) // 2
    assert kept[:half] == kept[half:]


@given(
    values=st.lists(st.one_of(st.none(), st.floats(-2, 2, width=32), st.just(NAN)), min_size=1, max_size=8),
    low=st.none() | st.floats(-1, 0),
    high=st.floats(0, 1),
    strict=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_predicate_says_what_great_expectations_says(tmp_path, values, low, high, strict):
    import pandas as pd
    from great_expectations.expectations.metrics.column_map_metrics.column_values_between import ColumnValuesBetween

    kwargs = {"column": "watch_s", "min_value": low, "max_value": high, "strict_max": strict}
    (rule,) = clean_predicates(one_rule(tmp_path / "suites", "feedback", kwargs=kwargs), "feedback")
    con = duckdb.connect()
    con.execute("CREATE TABLE t (i INTEGER, watch_s FLOAT)")
    con.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(values)))
    mine = [good for (good,) in con.execute(f"SELECT {rule.sql} FROM t ORDER BY i").fetchall()]
    column = pd.Series(values, dtype=np.float32).astype(float)
    theirs = ColumnValuesBetween._pandas_vectorized(column, low, high, False, strict) | column.isna()
    assert mine == theirs.tolist()


@pytest.mark.parametrize(("regex", "matched"), [("b|c", [True, True, True, False]), ("^(b|c)", [False, True, True, False])])
def test_a_text_is_matched_as_great_expectations_does(tmp_path, regex, matched):
    folder = one_rule(tmp_path, type="expect_column_values_to_match_regex", kwargs={"column": "arm", "regex": regex})
    import great_expectations as gx
    import pandas as pd

    (rule,) = clean_predicates(folder, "requests")
    con = duckdb.connect()
    found = con.execute(f"SELECT {rule.sql} FROM (VALUES ('abc'), ('bca'), ('c'), ('a'), (NULL)) t(arm)").fetchall()
    assert [good for (good,) in found] == [*matched, True]
    data = pd.DataFrame({"arm": ["abc", "bca", "c", "a", None]})
    asset = gx.get_context(mode="ephemeral").data_sources.add_pandas("frames").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": data})
    theirs = batch.validate(gx.expectations.ExpectColumnValuesToMatchRegex(column="arm", regex=regex), result_format="COMPLETE")
    assert theirs.result["unexpected_index_list"] == [row for row, good in enumerate(matched) if not good]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": "expect_column_values_to_be_increasing"}, "is not a rule about one row"),
        ({"kwargs": {"column": "colour", "max_value": 1}}, "column = 'colour'; requests has request_id"),
        ({"kwargs": {"column": "action_max"}}, "needs min_value, max_value or both"),
        ({"kwargs": {"column": "action_max", "max_value": 1, "row_condition": "x"}}, "does not take row_condition"),
        ({"kwargs": {"column": "action_max", "max_value": {"$PARAMETER": "p"}}}, "is not a number"),
        ({"meta": {"level": "table", "rule": "r", "reason": "w"}}, 'must be "row"'),
        ({"meta": {"level": "row", "rule": "R 1", "reason": "w"}}, "meta.rule"),
        ({"meta": {"level": "row", "rule": "r"}}, "meta.reason is missing"),
        ({"severity": "info"}, "severity = 'info'"),
    ],
)
def test_a_rule_that_cannot_be_one_is_refused_by_name(tmp_path, changes, says):
    with pytest.raises(InputError, match=r"requests\.json, expectation 0") as error:
        clean_predicates(one_rule(tmp_path, **changes), "requests")
    assert says in str(error.value)


def test_names_are_used_once_and_files_exist(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_suite(tmp_path, "day")
    (tmp_path / "day.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_suite(tmp_path, "day")


def test_the_suites_of_the_repository_are_great_expectations_own_form():
    import great_expectations as gx

    for name in LEVELS:
        expectations = read_suite(rows.EXPECTATIONS, name)
        suite = gx.ExpectationSuite(name=name, expectations=expectations)
        assert [e.configuration.type for e in suite.expectations] == [e["type"] for e in expectations]
        assert len({e["meta"]["rule"] for e in expectations}) == len(expectations)
