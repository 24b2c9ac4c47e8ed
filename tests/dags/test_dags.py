"""The DAGs as a fresh process parses them."""

from __future__ import annotations

import pytest

CHAIN = (
    "seal_day",
    "validate_logs",
    "build_transitions",
    "train_policy",
    "evaluate_policy",
    "refresh_exploration",
    "deploy_canary",
)
EXPECTED = {*CHAIN, "reconcile_registry"}
ASSETS = ["sealed_day", "valid_day", "dataset", "candidate", "verdict", "box"]


def test_there_is_no_import_error(parse):
    assert parse()["errors"] == {}


def test_exactly_the_expected_dags(parse):
    assert set(parse()["dags"]) == {f"{name}__feed" for name in EXPECTED}


def test_the_dags_are_generated_for_each_surface(parse):
    found = set(parse("real", ("feed", "search"))["dags"])
    assert found == {f"{name}__{surface}" for name in EXPECTED for surface in ("feed", "search")}


def test_nothing_heavy_is_imported_at_parse(parse):
    assert parse()["heavy"] == []


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_dag_says_what_it_is(parse, name):
    dag = parse()["dags"][f"{name}__feed"]
    assert dag["doc"].startswith("## ")
    assert {"mtf", "feed"} <= set(dag["tags"])


def test_the_list_in_the_user_interface_is_in_the_order_of_the_chain(parse):
    names = sorted(dag["name"] for dag in parse()["dags"].values())
    assert names == [f"{i} · {name}__feed" for i, name in enumerate((*CHAIN, "reconcile_registry"), start=1)]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_task_has_an_owner_retries_and_a_timeout(parse, name):
    for task in parse()["dags"][f"{name}__feed"]["tasks"].values():
        assert task["owner"] == "fusion"
        assert task["retries"] >= 1
        assert task["timeout"] and task["timeout"] <= 5 * 3600


def test_the_chain_is_made_of_assets(parse):
    dags = parse()["dags"]
    made = [a for name in CHAIN for task in dags[f"{name}__feed"]["tasks"].values() for a in task["outlets"]]
    assert made == [f"{asset}__feed" for asset in ASSETS]
    assert {dags[f"{name}__feed"]["schedule"] for name in CHAIN[1:]} == {"PartitionedAssetTimetable"}


def test_the_day_is_given_on_a_simulated_clock_and_yesterday_on_a_real_one(parse):
    assert parse()["dags"]["seal_day__feed"]["schedule"] == "PartitionedAtRuntime"
    assert parse("real", ("feed", "search"))["dags"]["seal_day__feed"]["schedule"] == "CronPartitionTimetable"


def test_the_forms_of_the_user_interface(parse):
    dags = parse()["dags"]
    for name in ("seal_day", "validate_logs", "build_transitions"):
        assert dags[f"{name}__feed"]["params"] == ["dt"]
    assert dags["train_policy__feed"]["params"] == ["algorithm", "steps", "seed", "force"]
