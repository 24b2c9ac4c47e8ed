"""Exploration in memory says what the whole way through logs says."""

from __future__ import annotations

import numpy as np
import pytest

from mtf.policy import bootstrap_policy
from mtf.settings import ROOT
from mtf.transitions.build import build_all
from mtf.transitions.table import is_gate_user, load_transitions
from mtf.world.explore import Exploring, explore, join
from mtf.world.simulate import simulate_day
from mtf.world.world import World

DT = "2026-03-02"


@pytest.fixture(scope="module")
def world():
    return World.make("default", users=2000, items=400, scalars={"n_candidates": 15})


@pytest.fixture(scope="module")
def explored(world):
    return explore(world, bootstrap_policy(world.spec), 300, DT, 4, 0.2)


def test_it_is_what_simulation_and_building_give(world, tmp_path):
    policy = bootstrap_policy(world.spec)
    simulate_day(world, policy, 200, DT, 4, 0.0, tmp_path / "logs")
    build_all(tmp_path / "logs", tmp_path / "out", spec=world.spec, expectations_dir=ROOT / "expectations")
    logged = load_transitions(tmp_path / "out")
    # exploring too little to change a ranking
    direct = explore(world, policy, 200, DT, 4, 1e-6)
    assert len(direct) == len(logged)
    a, b = (np.lexsort((t.step, t.user_ids[t.user].astype(str))) for t in (direct, logged))
    assert (direct.user_ids[direct.user][a] == logged.user_ids[logged.user][b]).all()
    for name in ("step", "terminal", "ts"):
        np.testing.assert_array_equal(getattr(direct, name)[a], getattr(logged, name)[b], err_msg=name)
    for name in ("state", "next_state", "center", "next_center", "reward", "behaviour"):
        np.testing.assert_allclose(getattr(direct, name)[a], getattr(logged, name)[b], rtol=1e-4, atol=1e-5, err_msg=name)


def test_actions_are_uniform_in_their_boxes(explored):
    x = explored.position
    assert np.abs(x).max() <= 1 + 1e-4
    assert np.abs(x.mean(axis=0)).max() < 5 / np.sqrt(3 * len(x))
    assert np.square(x).mean() == pytest.approx(1 / 3, abs=0.01)


def test_gaussian_noise_has_its_spread_and_its_ends(world):
    data = explore(world, bootstrap_policy(world.spec), 200, DT, 4, 0.1, noise="gaussian")
    away = data.action - data.center
    middle = np.abs(data.center).max(axis=0) < 0.6
    assert away[:, middle].std() == pytest.approx(0.1, rel=0.03)
    assert (np.abs(away) <= 0.3 + 1e-6).all()
    np.testing.assert_array_equal(data.lower, -data.upper)
    wide = explore(world, bootstrap_policy(world.spec), 50, DT, 4, 0.1, noise="uniform")
    np.testing.assert_allclose(wide.center + wide.lower, -1, atol=1e-6)


def test_the_halves_are_those_of_the_gate_and_candidates_are_the_scores_that_ranked(world, explored):
    policy = bootstrap_policy(world.spec)
    train = explore(world, policy, 300, DT, 4, 0.2, of="train")
    assert not any(is_gate_user(u) for u in train.user_ids)
    assert 0.3 < train.n_sessions / explored.n_sessions < 0.7
    scores, count = explored.candidates(np.arange(10))
    assert scores.shape == (10, 15, 5)
    assert (count == 15).all()
    assert explored.has_candidates.all()


def test_days_are_joined_session_by_session(world, explored):
    policy = bootstrap_policy(world.spec)
    other = explore(world, policy, 100, "2026-03-03", 4, 0.2)
    both = join([explored, other])
    assert both.n_sessions == explored.n_sessions + other.n_sessions
    assert len(both) == len(explored) + len(other)
    assert both.user_ids[both.user[-1]] == other.user_ids[other.user[-1]]
    np.testing.assert_allclose(both.returns(0.9)[-len(other) :], other.returns(0.9))


def test_the_noisy_policy_explores_as_a_day_does(world):
    policy = bootstrap_policy(world.spec)
    state = np.zeros((4000, world.spec.state_width), np.float32)
    noisy = Exploring(policy, 0.1, seed=3)
    first, second = noisy.act(state), noisy.act(state)
    away = first - policy.act(state)
    assert np.abs(away).max() <= 0.1 + 1e-6
    assert np.square(away / 0.1).mean() == pytest.approx(1 / 3, abs=0.02)
    assert (first != second).mean() > 0.99
