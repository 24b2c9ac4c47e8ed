"""The replay that a search works on: expectations of what play does, and the policy that it ends in."""

import numpy as np
import pytest

from mtf.fusion import normalised_action, raw_action
from mtf.policy import bootstrap_policy
from mtf.world.calibrate import measure
from mtf.world.headroom import REACH, _clipped_linear, _Constant, best_global, best_linear, sample
from mtf.world.truth import reward_weights
from mtf.world.world import World


@pytest.fixture(scope="module")
def world(world_dir):
    return World.load(world_dir)


@pytest.fixture(scope="module")
def replay(world):
    return sample(world, 3000, 0)


def test_expected_outcomes_under_the_start_are_those_of_play(world, replay):
    reward, hazard = replay.outcome(bootstrap_policy(world.spec))
    level = measure(world.params, 1200)
    means = [level.watch_s, level.click, level.valid, level.like, level.interact]
    assert reward.mean() == pytest.approx(world.spec.n_shown * float(reward_weights(world) @ means), rel=0.06)
    # the expectation is taken of the hazard's logarithm, so it lies a little below that of the hazard
    assert 0.85 * level.mean_hazard < hazard.mean() < level.mean_hazard
    assert len(reward) == pytest.approx(3000, rel=0.25)


def test_a_further_request_is_worth_a_geometric_series(world, replay):
    start = bootstrap_policy(world.spec)
    reward, hazard = replay.outcome(start)
    value = replay.value(start, 0.9)
    session = replay.session == replay.session[0]
    expected = reward[session].mean() / (1 - 0.9 * (1 - hazard[session].mean()))
    np.testing.assert_allclose(value[session], expected, rtol=1e-5)
    one = replay.value(start, 0.0)[session]
    np.testing.assert_allclose(one, reward[session].mean(), rtol=1e-5)


def test_scaling_all_powers_changes_nothing(world, replay):
    raw = raw_action(world.spec, np.array([world.spec.start], np.float32)).astype(np.float64)
    scaled = normalised_action(world.spec, raw * np.r_[np.full(5, 0.6), np.ones(5)])
    a, b = (replay.first(800).outcome(_Constant(action)) for action in (np.array(world.spec.start), scaled[0]))
    np.testing.assert_allclose(a[0].mean(), b[0].mean(), rtol=1e-3)


def test_a_search_does_not_end_below_its_start_nor_beyond_its_reach(world, replay):
    few, start = replay.first(800), bootstrap_policy(world.spec)

    def worth(policy, gamma):
        reward, hazard = few.outcome(policy)
        return float((reward - gamma * hazard * few.value(start, gamma)).mean())

    action = best_global(few, start, gamma=0.0, seed=0, generations=8)
    assert (np.abs(action - np.array(world.spec.start)) <= REACH + 1e-6).all()
    assert worth(_Constant(action), 0.0) >= worth(start, 0.0)
    linear = best_linear(few, start, gamma=0.0, seed=0, steps=40)
    moved = np.abs(linear.act(few.state) - np.array(world.spec.start, np.float32))
    assert moved.max() <= REACH + 1e-4
    assert worth(linear, 0.0) > worth(start, 0.0)


def test_the_bundle_of_a_clipped_linear_policy_is_its_formula(world):
    rng = np.random.default_rng(0)
    s, a = world.spec.state_width, world.spec.action_width
    mean, scale = rng.normal(size=s), rng.uniform(0.5, 2, s)
    weight, bias = rng.normal(size=(s, a)) * 0.3, rng.normal(size=a) * 0.3
    low, high = np.full(a, -0.4), np.full(a, 0.5)
    policy = _clipped_linear(world.spec, mean, scale, weight, bias, low, high)
    states = rng.normal(size=(20, s)).astype(np.float32)
    z = np.clip((states - mean) / scale, -5, 5)
    np.testing.assert_allclose(policy.act(states), np.clip(z @ weight + bias, low, high), atol=1e-4)
