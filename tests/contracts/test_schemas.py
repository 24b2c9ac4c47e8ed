"""The contracts' schemas, and the check at every door."""

import pyarrow as pa
import pytest

from mtf.contracts import check_table, feedback_schema, requests_schema, transitions_schema
from mtf.errors import InputError
from mtf.transitions.table import REQUIRED
from tests.logs.rows import SPEC, feedback, requests


def test_what_the_engine_writes_is_in_the_contracts_form():
    asked = requests()
    assert check_table(asked, requests_schema(), "requests").equals(asked)
    answered = feedback(asked)
    assert check_table(answered, feedback_schema(SPEC.behaviours), "feedback").equals(answered)


def test_columns_are_brought_into_order_and_type_and_unknown_ones_left_out():
    asked = requests(3)
    mixed = asked.select(asked.column_names[::-1]).append_column("colour", pa.array(["red"] * 3))
    i = mixed.column_names.index("bucket")
    mixed = mixed.set_column(i, "bucket", mixed["bucket"].cast(pa.int64()))
    found = check_table(mixed, requests_schema(), "requests")
    assert found.schema.equals(requests_schema(), check_metadata=True)
    assert found.equals(asked)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.drop_columns(["action"]), r"requests of X: column `action` is missing; it holds request_id"),
        (lambda t: change(t, "user_id", pa.array(["u", None, "v"])), "column `user_id` holds 1 nulls"),
        (lambda t: change(t, "action", pa.array([1.0, 2.0, 3.0])), "column `action` is double, needs list"),
        (lambda t: change(t, "bucket", pa.array(["one", "2", "3"])), "column `bucket` is string, needs int32"),
        # a value that does not fit is refused, not wrapped
        (lambda t: change(t, "bucket", pa.array([1, 2, 2**40])), "column `bucket` is int64, needs int32"),
    ],
)
def test_a_column_that_is_not_the_contracts_is_named(spoil, says):
    with pytest.raises(InputError, match=says):
        check_table(spoil(requests(3)), requests_schema(), "requests of X")


def change(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def test_nulls_are_allowed_where_the_contract_says_so():
    nullable = {f.name for f in requests_schema() if f.nullable}
    assert nullable == {"log_propensity", "exploration_sha", "rollout_id", "cand_item_ids", "cand_scores", "fallback"}
    answered = feedback(requests(2))
    assert answered["duration_s"].null_count == 2
    assert check_table(answered, feedback_schema(SPEC.behaviours), "feedback").num_rows == 2


def test_feedback_has_a_column_for_each_behaviour_and_watch_time_in_seconds():
    schema = feedback_schema(("watch", "like", "share"))
    assert schema.names[-2:] == ["like", "share"]
    assert schema.field("like").type == pa.int8()
    assert schema.field("watch_s").type == pa.float32()
    assert "watch" not in schema.names


def test_transitions_hold_what_learning_needs_and_every_request_column_that_it_repeats_has_the_same_type():
    schema = transitions_schema()
    assert set(REQUIRED) <= set(schema.names)
    for name in set(schema.names) & set(requests_schema().names):
        assert schema.field(name).type == requests_schema().field(name).type, name
    for name in ("state", "center", "lower", "upper"):
        assert schema.field(f"next_{name}").type == schema.field(name).type
