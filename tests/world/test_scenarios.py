"""Each scenario changes what it says, and nothing else that it could be taken for."""

from __future__ import annotations

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.policy import bootstrap_policy
from mtf.world import scenarios
from mtf.world.truth import true_value
from mtf.world.world import World


@pytest.fixture(scope="module")
def world():
    return World.make("default", users=3000, items=800)


def means(world, users=1500):
    return true_value(world, bootstrap_policy(world.spec), users, 11).metrics


def test_a_group_comes_more_often(world):
    changed = scenarios.shifted_population(world, group=1, factor=5.0)
    before, after = ((w.params.user_group[w.sample_users(400, "2026-03-02", 1)] == 1).mean() for w in (world, changed))
    assert after > 2 * before
    assert changed.params.name != world.params.name


def test_new_items_have_new_ids_and_scores_that_know_the_average_alone(world):
    changed = scenarios.new_items(world, share=0.4)
    fresh = changed.params.item_key != world.params.item_key
    assert fresh.mean() == pytest.approx(0.4, abs=0.01)
    assert len(np.unique(changed.params.item_key)) == world.n_items
    assert np.ptp(changed.params.score_item[fresh], axis=0).max() == 0
    assert (changed.params.score_item[~fresh] == world.params.score_item[~fresh]).all()


def test_a_broken_head_says_the_same_of_every_candidate_and_the_truth_stays(world):
    changed = scenarios.broken_head(world, "like")
    users = np.arange(50)
    items = world.candidates(np.arange(50, dtype=np.uint64))
    scores = changed.scores(users, items)
    assert np.ptp(scores[..., 3]) < 1e-6
    assert np.ptp(scores[..., 0]) > 0.1
    np.testing.assert_array_equal(changed.truth(users, items), world.truth(users, items))
    with pytest.raises(InputError, match="click, valid"):
        scenarios.broken_head(world, "share")


def test_a_holiday_has_more_clicks_and_longer_sessions(world):
    usual, holiday = means(world), means(scenarios.seasonal(world, 0.4))
    assert holiday["requests"] > 1.2 * usual["requests"]
    assert holiday["click"] / holiday["requests"] > 1.1 * usual["click"] / usual["requests"]


def test_users_of_a_circle_share_their_day(world):
    changed = scenarios.correlated_users(world, size=10, factor=3.0)
    cohort = changed.cohort(np.arange(100), dt="2026-03-02", seed=1, width=100)
    assert np.ptp(cohort.mood.reshape(10, 10, -1), axis=1).max() == 0
    own = world.cohort(np.arange(100), dt="2026-03-02", seed=1, width=100)
    assert np.ptp(own.mood[:, 0]) > 0
    assert cohort.mood[::10, 0].std() > 1.5 * own.mood[:, 0].std()


def test_a_policy_is_made_worse_by_the_amount(world):
    policy, lift, se = scenarios.worse_policy(world, 0.05, users=2000)
    assert lift == pytest.approx(-0.05, abs=0.01)
    assert se < 0.05
    start = true_value(world, bootstrap_policy(world.spec), 2000, 313)
    assert true_value(world, policy, 2000, 313).lift_over(start)[0] == pytest.approx(lift)
    with pytest.raises(InputError, match="ask for less"):
        scenarios.worse_policy(world, 0.99, users=500)
