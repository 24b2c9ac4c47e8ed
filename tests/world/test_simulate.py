"""A day in the contract's form comes from `test_world.py`; here, what a day of logs on disk and other deployments are."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.errors import InputError
from mtf.fusion import rank
from mtf.logs.days import day_files, list_days, read_manifest
from mtf.policy import Lineage, bootstrap_policy, constant_policy
from mtf.world.simulate import deployment, simulate, simulate_day
from mtf.world.world import World
from tests.conftest import random_policy, small_spec

DT = "2026-03-02"


@pytest.fixture(scope="module")
def world(world_dir):
    return World.load(world_dir)


@pytest.fixture(scope="module")
def logs(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("logs")
    simulate_day(world, bootstrap_policy(world.spec), 80, DT, 1, 0.3, out)
    return out


def rows(logs, kind, dt=DT):
    return pa.concat_tables([pq.read_table(path) for path in day_files(logs, dt, kind)])


def test_a_second_day_extends_the_folder_and_the_same_day_changes_nothing(world, logs):
    policy = bootstrap_policy(world.spec)
    first = read_manifest(logs, DT)
    assert simulate_day(world, policy, 80, DT, 1, 0.3, logs) == first
    simulate_day(world, policy, 30, "2026-03-03", 2, 0.0, logs)
    assert list_days(logs) == [DT, "2026-03-03"]
    still = rows(logs, "requests", "2026-03-03")
    assert not any(still["exploring"].to_pylist())
    assert still["action"].to_pylist() == still["center"].to_pylist()
    assert set(still["arm"].to_pylist()) == {"champion"}


def test_a_users_session_lies_in_its_day_and_ends_with_time_to_close(world, logs):
    asked = rows(logs, "requests")
    ts = asked["ts"].cast(pa.int64()).to_numpy()
    start = np.datetime64(DT, "us").astype(int)
    assert start <= ts.min() < ts.max() < start + 86_400_000_000 - int(world.spec.session_gap_s * 1e6)
    assert len(set(asked["user_id"].to_pylist())) == 80
    seen = rows(logs, "feedback")
    at = dict(zip(asked["request_id"].to_pylist(), ts.tolist(), strict=True))
    after = seen["ts"].cast(pa.int64()).to_numpy() - np.array([at[r] for r in seen["request_id"].to_pylist()])
    assert (after >= 0).all()
    assert after.max() <= 1_500_000_000  # a request's items are left after 25 minutes at the most


def test_what_was_shown_is_what_the_logged_action_ranks_first(world, logs):
    asked = rows(logs, "requests")
    asked = asked.filter(asked["exploring"]).slice(0, 50)
    candidates = np.array(asked["cand_item_ids"].to_pylist())
    scores = np.stack([np.frombuffer(b, np.float16).reshape(-1, 5) for b in asked["cand_scores"].to_pylist()]).astype(np.float32)
    shown = rank(world.spec, np.array(asked["action"].to_pylist(), np.float32), scores)
    found, logged = np.take_along_axis(candidates, shown, 1), np.array(asked["item_ids"].to_pylist())
    # candidates are logged in half precision, so near ties may fall the other way
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found, logged, strict=True)]) > 0.95 * world.spec.n_shown


def test_two_policies_meet_the_same_users_at_the_same_moments(world):
    arrivals, shown = [], []
    for level in (-0.5, 0.5):
        policy = constant_policy(np.full(10, level), world.spec.state_width, spec=world.spec, lineage=Lineage(algorithm="t"))
        asked, _ = simulate(world, policy, 30, DT, 5)
        rows_ = zip(asked["user_id"].to_pylist(), asked["ts"].to_pylist(), asked["cand_item_ids"].to_pylist(), strict=True)
        first = {}
        for user, ts, candidates in rows_:
            first.setdefault(user, (ts, candidates))
        arrivals.append(first)
        shown.append(asked["item_ids"].to_pylist()[:30])
    assert arrivals[0] == arrivals[1]
    assert shown[0] != shown[1]


def test_the_deployment_explores_with_nine_in_ten_or_not_at_all(world):
    policy = bootstrap_policy(world.spec)
    document, policies = deployment(world, policy, 0.2, DT)
    assert document.arms.explore == 0.9
    assert document.exploration.half_width == (0.2,) * 10
    assert set(policies) == {policy.sha}
    assert deployment(world, policy, 0.0, DT)[0].exploration is None


def test_a_policy_of_another_spec_and_an_impossible_box_are_refused(world):
    with pytest.raises(InputError, match="simulate it in its own world"):
        simulate(world, random_policy(spec=small_spec()), 10, DT, 1)
    with pytest.raises(InputError, match=r"half-width -0\.1"):
        simulate(world, bootstrap_policy(world.spec), 10, DT, 1, -0.1)
