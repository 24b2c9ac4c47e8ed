"""Power against closed forms: errors of a lift from the noise alone, and what a canary of n users sees."""

import numpy as np
import pytest
from scipy.stats import norm

from mtf.evaluation.intervals import ratio
from mtf.evaluation.power import canary_arms, describe, detection_factor, power, sequence_half_width
from mtf.evaluation.primary import primary
from mtf.evaluation.steps import make_steps
from mtf.evaluation.values import fit_action_value


@pytest.fixture(scope="module")
def noise(world):
    """One-step sessions of three dimensions: reward ~ gamma(1) times a trait, no effect of the action."""
    return world(3000, seed=0, slope=np.zeros(3), end=1.0)


def test_detection_factor():
    assert detection_factor(0.04) == pytest.approx(2.0537 + 0.8416, abs=1e-4)
    assert detection_factor(0.05, 0.5) == pytest.approx(1.95996, abs=1e-5)


def test_one_step_sessions_by_hand(noise):
    found = power(noise)
    n, reward = len(noise), noise.total_reward.astype(np.float64)
    assert (found.sessions, found.users, found.requests_per_session, found.varied_dimensions) == (n, n, 1.0, 3)
    assert found.value == pytest.approx(reward.mean())
    assert found.return_cv == pytest.approx(reward.std(ddof=1) / reward.mean())
    # reward = exp(s / 2) times a unit exponential: V takes the trait away and leaves E exp(s) as the residual's variance
    assert found.residual_sd == pytest.approx(np.exp(0.25), rel=0.15)
    # E omega^2 - 1 = 3 * 3 / 4 at half of the box's width
    assert found.se_formula_half == pytest.approx(np.sqrt(9 / 4 / n) * found.residual_sd / reward.mean(), rel=1e-6)
    assert found.se_half == pytest.approx(found.se_formula_half, rel=0.1)
    assert found.se_full == 2 * found.se_half
    assert found.detectable_lift == pytest.approx(2.8954 * found.se_half, rel=1e-4)
    assert found.detectable_lift_full == 2 * found.detectable_lift
    assert found.sessions_needed["0.01"] == pytest.approx(n * (found.detectable_lift / 0.01) ** 2, abs=1)
    assert found.sessions_needed["0.02"] == pytest.approx(found.sessions_needed["0.01"] / 4, abs=1)


def test_second_moments_are_those_of_the_weights(noise):
    found = power(noise).second_moment
    assert found["degree 1, |y| = 0.5"] == pytest.approx(1 + 3 * 3 / 4)
    assert found["degree 1, |y| = 1"] == pytest.approx(10)
    assert found["degree 2, |y| = 1"] == pytest.approx(10 + 5 * 3 + 9 * 3)


def test_the_error_is_the_one_that_the_gate_then_has(world, constant):
    """Over the signs of a policy half-way to the edge, on sessions of several steps. The gate adds what it does not know of the
    curvature, about a tenth."""
    data = world(1500, seed=2, slope=np.zeros(3))
    expected = power(data).se_half
    rng, squares = np.random.default_rng(0), []
    for _ in range(6):
        steps, _ = make_steps(data, constant(rng.choice([-0.15, 0.15], 3)), None)
        lift = primary(steps, fit_action_value(steps), 0.04)
        squares.append(ratio(lift.difference, lift.denominator, 0.04).se ** 2)
    assert np.sqrt(np.mean(squares)) == pytest.approx(expected, rel=0.1)


def test_four_times_the_sessions_halve_the_error(world):
    few, many = (power(world(n, seed=5, slope=np.zeros(2))).se_half for n in (1000, 4000))
    assert few / many == pytest.approx(2, rel=0.2)


def test_the_power_is_what_it_says(world, constant):
    """A lift of the detectable size is found about four times in five."""
    detectable = power(world(700, seed=0, slope=np.zeros(2))).detectable_lift
    slope = np.full(2, detectable / 2 / 0.15)
    found = []
    for seed in range(60):
        steps, _ = make_steps(world(700, seed=seed, slope=slope), constant(np.full(2, 0.15)), None)
        found.append(primary(steps, fit_action_value(steps), 0.04).lift.low > 0)
    assert np.mean(found) == pytest.approx(0.8, abs=0.17)


def test_a_canary_reads_each_users_first_session(changed, world):
    data = world(400, seed=1, slope=np.zeros(1), end=1.0)
    # two sessions a user, the second one ten times as good
    user = np.repeat(np.arange(200), 2)
    reward = np.where(np.arange(400) % 2, 10.0, 1.0) * np.where(user % 2, 3.0, 1.0)
    data = changed(data, user=user, reward=reward[:, None].astype(np.float32), ts=np.arange(400))
    arms, cv = canary_arms(data)
    assert cv == pytest.approx(np.std(np.repeat([1.0, 3.0], 100), ddof=1) / 2)
    by_users = {arm.users: arm for arm in arms}
    assert by_users[5000].detectable == pytest.approx((1.95996 + 0.84162) * cv * np.sqrt(2 / 5000), rel=1e-5)
    assert by_users[500].detectable == pytest.approx(by_users[50000].detectable * 10)
    assert all(arm.detectable_any_time > arm.detectable for arm in arms)
    assert canary_arms(changed(data, reward=np.zeros((400, 1), np.float32))) == ([], None)
    assert canary_arms(data.select(data.session < 20)) == ([], None)


def test_the_sequences_half_width_is_that_of_its_formula_at_its_own_size():
    # t = t* = 1000, sigma = 1, alpha = .05: .09599 (docs/rollout.md), in standard errors sqrt(1 / 1000)
    assert sequence_half_width(1000, 0.05) == pytest.approx(0.09599 * np.sqrt(1000), rel=1e-4)
    assert sequence_half_width(1000, 0.05) > norm.ppf(0.975)


def test_without_exploration_it_says_why_and_still_sizes_the_canary(world):
    found = power(world(300, seed=0, slope=np.zeros(2), half_width=0.0))
    assert found.se_half is None
    assert found.sessions == 0
    assert "explored" in found.reason
    assert found.arms
    assert "nothing to detect with" in describe(found)


def test_with_too_few_users_it_says_so(world):
    found = power(world(12, seed=0, slope=np.zeros(2)))
    assert found.reason == "only 12 users explored; no error can be told from fewer than 20"
    assert found.detectable_lift is None


def test_the_text_names_what_a_person_decides_on(noise):
    found = power(noise)
    text = describe(found)
    assert f"smallest lift found four times in five: {found.detectable_lift:.2%} half-way" in text
    assert f"2%: {found.sessions_needed['0.02']:,}" in text
    assert f"{found.arms[0].detectable:.1%} at a fixed time" in text
