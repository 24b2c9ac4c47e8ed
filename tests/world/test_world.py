"""The simulated feed: determinism, common random numbers, the rates it was calibrated to, and what is unknown to logs."""

from __future__ import annotations

import numpy as np
import pytest

from mtf.contracts import check_table, feedback_schema, requests_schema
from mtf.errors import InputError
from mtf.policy import Lineage, bootstrap_policy, constant_policy
from mtf.world.simulate import simulate
from mtf.world.truth import true_value
from mtf.world.world import World

SMALL = {"users": 4000, "items": 1500}


@pytest.fixture(scope="module")
def world(world_dir):
    return World.load(world_dir)


@pytest.fixture(scope="module")
def day(world):
    return simulate(world, bootstrap_policy(world.spec), 1200, "2026-03-02", 1, 0.3)


def test_a_day_is_in_the_contracts_form(world, day):
    requests, feedback = day
    check_table(requests, requests_schema(), "requests")
    check_table(feedback, feedback_schema(world.spec.behaviours), "feedback")
    assert feedback.num_rows == 6 * requests.num_rows
    explored = np.mean(requests.column("exploring").to_pylist())
    assert abs(explored - 0.9) < 0.05


def test_rates_are_near_the_published_ones(world, day):
    requests, feedback = day
    for name in ("click", "valid"):
        found = feedback.column(name).to_numpy().mean()
        assert found == pytest.approx(world.params.targets[name]["value"], rel=0.15)
    assert requests.num_rows / 1200 == pytest.approx(13.55, rel=0.12)


def test_same_seed_same_day_whatever_the_batch(world, day):
    again = simulate(world, bootstrap_policy(world.spec), 1200, "2026-03-02", 1, 0.3)
    assert all(a.equals(b) for a, b in zip(day, again, strict=True))
    policy = bootstrap_policy(world.spec)
    wide, narrow = (true_value(world, policy, 300, 5, width=width) for width in (300, 64))
    assert np.allclose(wide.sessions, narrow.sessions)


def test_policies_meet_the_same_users_so_differences_are_paired(world):
    start = bootstrap_policy(world.spec)
    near = constant_policy(
        np.asarray(world.spec.start) * 0.98, world.spec.state_width, spec=world.spec, lineage=Lineage(algorithm="t")
    )
    a, b = (true_value(world, policy, 1500, 5) for policy in (start, near))
    _, se = b.lift_over(a)
    alone = np.hypot(a.se, b.se) / a.mean
    assert se < 0.8 * alone
    assert a.lift_over(a) == (0.0, 0.0)


def test_a_world_comes_back_from_its_folder(world, tmp_path):
    world.save(tmp_path / "w")
    again = World.load(tmp_path / "w")
    assert again.spec == world.spec
    policy = bootstrap_policy(world.spec)
    assert (true_value(again, policy, 100, 3).sessions == true_value(world, policy, 100, 3).sessions).all()
    with pytest.raises(InputError, match="does not exist"):
        World.load(tmp_path / "none")


def test_in_the_null_world_no_policy_is_better():
    null = World.make("null", **SMALL)
    width = null.spec.state_width
    start = true_value(null, bootstrap_policy(null.spec), 1500, 5)
    for seed in range(3):
        action = np.random.default_rng(seed).uniform(-1, 1, null.spec.action_width)
        other = true_value(null, constant_policy(action, width, spec=null.spec, lineage=Lineage(algorithm="t")), 1500, 5)
        lift, se = other.lift_over(start)
        assert abs(lift) < 4 * se + 1e-9


def test_without_elasticity_actions_do_not_change_how_long_sessions_last(world):
    still = World(world.params.with_scalars(leave_elasticity=0.0))
    width = still.spec.state_width
    low, high = (constant_policy(np.full(10, a), width, spec=still.spec, lineage=Lineage(algorithm="t")) for a in (-0.8, 0.8))
    requests = [true_value(still, policy, 800, 5).metrics["requests"] for policy in (low, high)]
    # the day's end may still cut a session that watching made longer
    assert requests[0] == pytest.approx(requests[1], rel=0.01)


def test_more_users_than_the_pool_are_refused(world):
    with pytest.raises(InputError, match="4000"):
        world.sample_users(5000, "2026-03-02", 1)
