"""Additive models by conjugate gradients against the same models by plain linear algebra."""

import numpy as np
import pytest
from scipy import sparse

from mtf.world.fit_glm import Block, draw, fit, pair_covariance, pair_sums


@pytest.fixture(scope="module")
def rows():
    """(cells of users, cells of items, attributes of items, y real, y 0/1) of 3,000 rows."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 30, 3000), rng.integers(0, 20, 3000)
    attributes = sparse.csr_matrix(np.eye(4)[rng.integers(0, 4, 20)])
    eta = -0.3 + 0.8 * rng.normal(size=30)[user] + attributes.toarray()[item] @ [1.0, 0, -1.0, 0.5]
    return user, item, attributes, eta + rng.normal(size=3000), (rng.random(3000) < 1 / (1 + np.exp(-eta))).astype(float)


def blocks(user, item, attributes):
    return [
        Block("intercept", np.zeros(len(user), np.int64), 1, 100.0),
        Block("user", user, 30, 0.5),
        Block("attributes", item, 20, 0.3, attributes),
    ]


def dense(user, item, attributes):
    """(X, prior precisions) of the same model."""
    x = np.hstack([np.ones((len(user), 1)), np.eye(30)[user], attributes.toarray()[item]])
    return x, np.r_[1 / 100.0, np.full(30, 1 / 0.5), np.full(4, 1 / 0.3)]


def test_a_normal_model_is_ridge_regression(rows):
    user, item, attributes, y, _ = rows
    found = fit(y, blocks(user, item, attributes), noise_variance=2.0)
    x, precision = dense(user, item, attributes)
    theta = np.linalg.solve(x.T @ x / 2 + np.diag(precision), x.T @ y / 2)
    np.testing.assert_allclose(np.concatenate(list(found.theta.values())), theta, atol=5e-3)
    np.testing.assert_allclose(found.eta, x @ theta, atol=5e-3)
    np.testing.assert_allclose(found.values("attributes"), attributes @ theta[-4:], atol=5e-3)


def test_a_logistic_model_is_at_its_mode(rows):
    user, item, attributes, _, y = rows
    found = fit(y, blocks(user, item, attributes))
    x, precision = dense(user, item, attributes)
    theta = np.zeros(35)
    for _ in range(20):  # plain Newton
        p = 1 / (1 + np.exp(-x @ theta))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(precision)
        theta += np.linalg.solve(hessian, x.T @ (y - p) - precision * theta)
    np.testing.assert_allclose(np.concatenate(list(found.theta.values())), theta, atol=0.01)
    np.testing.assert_allclose(found.mean, 1 / (1 + np.exp(-found.eta)), atol=0.01)


def test_an_offset_is_part_of_the_predictor(rows):
    user, item, attributes, _, y = rows
    offset = np.linspace(-1, 1, len(y))
    found = fit(y, blocks(user, item, attributes), offset=offset)
    x, precision = dense(user, item, attributes)
    theta = np.zeros(35)
    for _ in range(20):  # plain Newton
        p = 1 / (1 + np.exp(-offset - x @ theta))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(precision)
        theta += np.linalg.solve(hessian, x.T @ (y - p) - precision * theta)
    np.testing.assert_allclose(np.concatenate(list(found.theta.values())), theta, atol=0.01)
    np.testing.assert_allclose(found.eta, offset + x @ theta, atol=0.02)
    drawn = draw(found, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.eta - x @ np.concatenate(list(drawn.theta.values())), offset, atol=1e-9)


def test_draws_have_the_posteriors_mean_and_covariance(rows):
    user, item, attributes, y, _ = rows
    few = slice(0, 400)
    mode = fit(y[few], blocks(user[few], item[few], attributes), noise_variance=3.0)
    x, precision = dense(user[few], item[few], attributes)
    cov = np.linalg.inv(x.T @ x / 3 + np.diag(precision))
    rng = np.random.default_rng(1)
    drawn = np.array([np.concatenate(list(draw(mode, rng).theta.values())) for _ in range(600)])
    centre = np.concatenate(list(mode.theta.values()))
    z = (drawn - centre) / np.sqrt(np.diag(cov))
    assert np.abs(z.mean(axis=0)).max() < 4.5 / np.sqrt(600)
    np.testing.assert_allclose(z.var(axis=0), 1, atol=0.3)
    # also how coefficients go together: intercept and attributes against each other
    found = np.cov(drawn.T)
    assert found[0, -1] == pytest.approx(cov[0, -1], abs=5 * np.sqrt(cov[0, 0] * cov[-1, -1] / 600))


def test_pairs_by_hand():
    residual, weight = np.array([1.0, 2.0, -1.0, 3.0]), np.array([1.0, 1.0, 2.0, 1.0])
    group = np.array([0, 0, 0, 1])
    # (1 + 2 - 1)^2 + 3^2, (1 + 1 + 2)^2 + 1
    assert pair_sums(residual, weight, group) == (13.0, 17.0)
    # without a row's product with itself: pairs 1 2, 1 -1, 2 -1, each twice
    assert pair_covariance(residual, weight, group) == pytest.approx((2 * (2 - 1 - 2)) / (2 * (1 + 2 + 2)))
    # pairs on different days alone: (1, -1) and (2, -1)
    assert pair_covariance(residual, weight, group, np.array([0, 0, 1, 0])) == pytest.approx((-1 - 2) / (2 + 2))
    assert pair_covariance(residual, weight, np.arange(4)) == 0.0


@pytest.mark.parametrize("sd", [0.0, 0.5])
def test_the_variance_of_a_shared_effect_is_found(sd):
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(2000), 6)
    p = 1 / (1 + np.exp(-(-0.5 + sd * rng.normal(size=2000)[user])))
    y = rng.random(len(user)) < p
    mean = np.full(len(user), y.mean())
    found = pair_covariance(y - mean, mean * (1 - mean), user)
    assert found == pytest.approx(sd**2, abs=0.06)
