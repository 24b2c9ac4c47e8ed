"""Variances and levels of effects on logistic responses, against simulation with known ones."""

import numpy as np
import pytest
from scipy.special import expit

from mtf.world.fit_moments import VARIANCE_LOW, Residuals, conditional_level, effect_variances, smoothed, user_covariance


@pytest.mark.parametrize("variance", [0.2, 2.0])
def test_a_smoothed_sigmoid_and_its_slopes(variance):
    level, z = np.array([-4.0, -1.0, 0.0, 2.0]), np.random.default_rng(0).standard_normal(400_000)
    found = smoothed(level, variance, 3)
    sampled = expit(level[:, None] + np.sqrt(variance) * z).mean(axis=1)
    np.testing.assert_allclose(found[0], sampled, atol=0.001)
    h = 1e-3
    for k in range(3):
        slope = (smoothed(level + h, variance, k)[k] - smoothed(level - h, variance, k)[k]) / (2 * h)
        np.testing.assert_allclose(found[k + 1], slope, atol=2e-4)


def test_the_level_behind_an_average_chance():
    eta = np.random.default_rng(0).normal(-3.0, 0.8, 5000)
    a, b = conditional_level(eta, expit(eta), 1.5)
    back = smoothed(a + b * eta, 1.5, 0)[0]
    assert back.mean() == pytest.approx(expit(eta).mean(), rel=1e-6)
    assert np.cov(back, eta)[0, 1] == pytest.approx(np.cov(expit(eta), eta)[0, 1], rel=1e-6)
    # small chances: exp(a + variance / 2) = 1
    rare = eta - 5
    assert conditional_level(rare, expit(rare), 1.0) == pytest.approx((-0.5, 1.0), abs=0.02)
    assert conditional_level(eta, expit(eta), 0.0) == pytest.approx((0.0, 1.0), abs=0.002)
    # one level for all: nothing to scale
    assert conditional_level(np.zeros(10), np.full(10, 0.5), 1.0)[0] == pytest.approx(0.0, abs=1e-9)


@pytest.fixture(scope="module")
def design():
    """(user, item, day, tag, bucket) of 120,000 rows of 6,000 users."""
    rng = np.random.default_rng(3)
    user, item = np.repeat(np.arange(6000), 20), rng.integers(0, 400, 120_000)
    return user, item, rng.integers(0, 5, len(user)), item % 4, item % 3


def test_variances_that_made_a_log_are_found(design):
    user, item, day, tag, bucket = design
    rng = np.random.default_rng(4)
    true = {"user": 1.0, "user_tag": 0.4, "user_duration": 0.2, "day": 0.3, "item": 0.2}
    keys = {"user": user, "user_tag": user * 4 + tag, "user_duration": user * 3 + bucket, "day": user * 5 + day, "item": item}
    found = []
    for _ in range(4):
        eta = np.full(len(user), -3.5)
        for name, key in keys.items():
            eta += np.sqrt(true[name]) * rng.standard_normal(key.max() + 1)[key]
        y = (rng.random(len(user)) < expit(eta)).astype(float)
        marginal = np.full(len(y), np.log(y.mean() / (1 - y.mean())))
        found.append(effect_variances(y, marginal, *design, logistic=True))
    for name, value in true.items():
        assert np.mean([f[name] for f in found]) == pytest.approx(value, abs=0.12), name


def test_variances_of_a_normal_head(design):
    user, item, _, tag, bucket = design
    rng = np.random.default_rng(5)
    y = 0.7 * rng.standard_normal(6000)[user] + 0.5 * rng.standard_normal(400)[item] + rng.standard_normal(len(user))
    found = effect_variances(y, np.zeros(len(y)), *design, logistic=False)
    assert found["user"] == pytest.approx(0.49, abs=0.03)
    assert found["item"] == pytest.approx(0.25, abs=0.06)
    assert max(found["user_tag"], found["user_duration"], found["day"]) < 0.02


def test_how_a_users_effects_go_together(design):
    user, _, day, _, _ = design
    rng = np.random.default_rng(6)
    cov = np.array([[0.8, 0.36, 0.0], [0.36, 0.5, -0.1], [0.0, -0.1, 0.2]])
    effects = rng.multivariate_normal(np.zeros(3), cov, 6000)
    heads = []
    for k, level in enumerate((-0.2, -2.5)):
        y = (rng.random(len(user)) < expit(level + effects[user, k])).astype(float)
        marginal = np.full(len(y), np.log(y.mean() / (1 - y.mean())))
        heads.append(Residuals.of(y, marginal, user, day, {"user": cov[k, k]}, True))
    third = effects[user, 2] + rng.standard_normal(len(user))
    heads.append(Residuals.of(third, np.zeros(len(user)), user, day, {"user": cov[2, 2]}, False))
    np.testing.assert_allclose(user_covariance(heads), cov, atol=0.05)
    # in other units of one head
    scaled = user_covariance([*heads[:2], heads[2].scaled(2.0)])
    assert scaled[1, 2] == pytest.approx(2 * user_covariance(heads)[1, 2], rel=0.02)
    assert scaled[2, 2] == pytest.approx(4 * cov[2, 2], rel=1e-9)


def test_what_a_day_does_to_two_heads_is_not_the_users(design):
    """One mood a day for both heads, and users whose own effects have nothing to do with each other."""
    user, _, day, _, _ = design
    rng = np.random.default_rng(8)
    mood, own = 0.8 * rng.standard_normal(6000 * 5)[user * 5 + day], 0.7 * rng.standard_normal((6000, 2))
    heads = [
        Residuals.of(own[user, k] + mood + rng.standard_normal(len(user)), np.zeros(len(user)), user, day, {"user": 0.49}, False)
        for k in range(2)
    ]
    assert user_covariance(heads)[0, 1] == pytest.approx(0.0, abs=0.03)


def test_heads_of_which_nothing_is_known_together_are_apart():
    user, day = np.repeat(np.arange(50), 4), np.zeros(200, np.int64)
    y = np.random.default_rng(9).standard_normal(200)
    one_day = Residuals.of(y, np.zeros(200), user, day, {"user": 0.3}, False)
    np.testing.assert_allclose(user_covariance([one_day, one_day]), np.diag([0.3, 0.3]), atol=1e-12)
    flat = Residuals.of(y, np.zeros(200), user, np.arange(200) % 4, {"user": VARIANCE_LOW}, False)
    assert user_covariance([flat, flat])[0, 1] == 0.0


def test_a_covariance_is_one_of_something():
    """Heads that would be the same by their residuals stay apart enough to be drawn."""
    user, day = np.repeat(np.arange(300), 4), np.tile(np.arange(4), 300)
    y = np.repeat(np.random.default_rng(7).standard_normal(300), 4)
    head = Residuals.of(y, np.zeros(len(y)), user, day, {"user": 0.3}, False)
    found = user_covariance([head, head, head])
    assert np.linalg.eigvalsh(found).min() > 0.001
    np.testing.assert_allclose(np.diag(found), 0.3)
