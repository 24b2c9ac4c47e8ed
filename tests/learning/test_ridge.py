"""Regression from moments against the same regression on rows, and the variances that it finds by itself."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.learning.result import calibration
from mtf.learning.ridge import Moments, empirical_bayes, left_out, ridge, total


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)).astype(np.float32), rng.normal(size=(300, 2)).astype(np.float32)
    return x, y, rng.uniform(0.2, 2, 300).astype(np.float32)


def test_moments_add_up_over_chunks_and_columns(rows):
    x, y, weight = rows
    whole = Moments.of(x, y, weight)
    parts = Moments.zero(4, 2) + Moments.of(x[:100], y[:100], weight[:100]) + Moments.of(x[100:], y[100:], weight[100:])
    for name in ("xx", "xy", "yy", "n"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5)
    np.testing.assert_allclose(whole.xx, (x * weight[:, None]).T @ x, rtol=1e-4)
    np.testing.assert_allclose(whole.yy, (weight[:, None] * y**2).sum(axis=0), rtol=1e-5)
    assert whole.n == pytest.approx(weight.sum(), rel=1e-6)
    keep = np.array([3, 1])
    np.testing.assert_allclose(whole.columns(keep).xy, Moments.of(x[:, keep], y, weight).xy, rtol=1e-5)


def test_ridge_is_the_solution_on_rows(rows):
    x, y, weight = rows
    found = ridge(Moments.of(x, y, weight), 0.1)
    penalty = 0.1 * weight.sum() * np.eye(4)
    np.testing.assert_allclose(
        found, np.linalg.solve((x * weight[:, None]).T @ x + penalty, (x * weight[:, None]).T @ y), rtol=1e-4
    )
    # an own penalty for each coefficient: what is held at 0 is 0, what is free is least squares on the rest
    held = ridge(Moments.of(x, y), np.array([1e9, 0, 0, 0]))
    np.testing.assert_allclose(held[1:], np.linalg.lstsq(x[:, 1:], y, rcond=None)[0], rtol=1e-3, atol=1e-5)
    assert np.abs(held[0]).max() < 1e-6


def test_squared_error_without_the_rows(rows):
    x, y, _ = rows
    b = np.array([0.3, -0.2, 0.0, 1.0])
    found = Moments.of(x, y).squared_error(b, response=1)
    assert found == pytest.approx(float(((y[:, 1] - x @ b) ** 2).sum()), rel=1e-5)


def drawn(tau, noise, n=4000, p=60, seed=0, prior=0.0):
    """(moments, true coefficients) of y = x b + e with b ~ N(prior, tau^2)."""
    rng = np.random.default_rng(seed)
    b = prior + tau * rng.normal(size=p)
    x = rng.normal(size=(n, p))
    return Moments.of(x, (x @ b + noise * rng.normal(size=n))[:, None]), b


def test_the_variances_are_found_and_the_posterior_covers():
    z, errors = [], []
    for seed in range(4):
        moments, b = drawn(0.1, 2.0, seed=seed)
        found = empirical_bayes(moments, np.zeros(60, int))
        assert np.sqrt(found.noise) == pytest.approx(2.0, rel=0.1)
        assert np.sqrt(found.tau2[0]) == pytest.approx(0.1, rel=0.35)
        z.append((b - found.mean) / np.sqrt(np.diag(found.cov)))
        least_squares = np.linalg.solve(moments.xx, moments.xy[:, 0])
        errors.append((np.square(found.mean - b).sum(), np.square(least_squares - b).sum()))
    assert np.concatenate(z).std() == pytest.approx(1, abs=0.15)
    shrunk, plain = np.mean(errors, axis=0)
    assert shrunk < 0.95 * plain


def test_without_signal_coefficients_go_to_their_prior():
    found = empirical_bayes(drawn(0.0, 1.0)[0], np.zeros(60, int))
    assert found.tau2[0] < 1e-4
    assert np.abs(found.mean).max() < 0.02
    prior = np.full(60, 0.7)
    again = empirical_bayes(drawn(0.0, 1.0, prior=0.7)[0], np.zeros(60, int), prior)
    np.testing.assert_allclose(again.mean, 0.7, atol=0.02)


def test_what_the_prior_is_worth_is_learned_too():
    """Against the dense formula: prior covariance `tau2 I + prior prior'`, at the variances that were found."""
    moments, b = drawn(0.1, 2.0, prior=0.5)
    prior = np.full(60, 0.7)
    found = empirical_bayes(moments, np.zeros(60, int), prior)
    precision = np.linalg.inv(found.tau2[0] * np.eye(60) + np.outer(prior, prior))
    cov = np.linalg.inv(moments.xx / found.noise + precision)
    mean = cov @ (moments.xy[:, 0] / found.noise + precision @ prior)
    # the variances settle to 1e-3
    np.testing.assert_allclose(found.mean, mean, atol=1e-4)
    np.testing.assert_allclose(found.cov, cov, rtol=0.01, atol=1e-5)
    assert np.abs(found.mean - b).mean() < 0.1


def test_a_prior_that_data_contradict_is_dropped_and_one_without_data_is_one_deviation_sure():
    prior = np.full(60, 0.7)
    found = empirical_bayes(drawn(0.0, 1.0)[0], np.zeros(60, int), prior)
    assert np.abs(found.mean).max() < 0.02
    assert found.worth == pytest.approx({"value": 0, "sd": 0}, abs=0.02)
    few = empirical_bayes(Moments.zero(60), np.zeros(60, int), prior)
    np.testing.assert_allclose(few.mean, prior, atol=1e-6)
    direction = np.random.default_rng(0).random(60)
    assert direction @ few.mean == pytest.approx(np.sqrt(direction @ few.cov @ direction), rel=1e-3)


@pytest.mark.parametrize("n", [70, 100, 300])
def test_with_as_many_columns_as_rows_noise_is_still_noise(n):
    """A fit that leaves nothing of its rows has not found that there is no noise."""
    found = [empirical_bayes(drawn(0.0, 1.0, n=n, seed=seed)[0], np.zeros(60, int)) for seed in range(4)]
    assert np.mean([of.noise for of in found]) == pytest.approx(1, abs=0.25)
    assert max(np.abs(of.mean / np.sqrt(np.diag(of.cov))).max() for of in found) < 3


def test_uneven_noise_is_no_signal():
    """Noise that grows with a column, as rewards do with their users: e ~ exp(z / 2) N(0, 1), columns [z u, u]."""
    uneven, largest = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        z, u = rng.normal(size=(6000, 1)), rng.uniform(-1, 1, (6000, 20))
        moments = Moments.of(np.hstack([z * u, u]), np.exp(z / 2) * rng.normal(size=z.shape))
        uneven.append(moments.unevenness())
        fit = empirical_bayes(moments, np.repeat([0, 1], 20), uneven=True)
        largest.append(np.abs(fit.mean / np.sqrt(np.diag(fit.cov)))[:20].max())
    # E z^2 exp(z) / E exp(z) = 1 + 1
    assert np.mean(uneven, axis=0)[:20] == pytest.approx(np.full(20, 2), rel=0.2)
    assert np.mean(uneven, axis=0)[20:] == pytest.approx(np.ones(20), abs=0.1)
    # read as even, the largest of 20 slopes is 1.8 standard deviations in the mean
    assert np.mean(largest) < 1


def test_nearly_collinear_columns_with_uneven_noise_stay_without_signal():
    """Two columns of each pair correlate by .98, and noise grows with the first alone."""
    largest = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        z, u = rng.normal(size=(6000, 1)), rng.uniform(-1, 1, (6000, 20))
        twin = 0.98 * z + 0.2 * rng.normal(size=z.shape)
        fit = empirical_bayes(
            Moments.of(np.hstack([z * u, twin * u]), np.exp(z / 2) * rng.normal(size=z.shape)), np.zeros(40, int), uneven=True
        )
        largest.append(np.abs(fit.mean / np.sqrt(np.diag(fit.cov))).max())
    assert np.mean(largest) < 1.2, largest


def test_uneven_noise_does_not_bend_coefficients_of_columns_that_correlate():
    """y = .3 z u + exp(.7 z) e, beside a twin of z that correlates by .9 and has no part: both as sure as their spread says."""
    fits = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        z, u = rng.normal(size=(10_000, 1)), rng.uniform(-1, 1, (10_000, 1))
        twin = 0.9 * z + np.sqrt(0.19) * rng.normal(size=z.shape)
        moments = Moments.of(np.hstack([z * u, twin * u]), 0.3 * z * u + np.exp(0.7 * z) * rng.normal(size=z.shape))
        fits.append(moments)
    pooled = empirical_bayes(total(fits), np.zeros(2, int), uneven=True)
    assert np.abs((pooled.mean - [0.3, 0]) / np.sqrt(np.diag(pooled.cov))).max() < 2.5
    each = np.array([empirical_bayes(of, np.full(2, -1), uneven=True).mean for of in fits])
    said = np.sqrt(np.diag(pooled.cov) * len(fits))
    # a tail of exp(1.4 z): spreads of 30 fits are themselves rough
    assert said == pytest.approx(each.std(axis=0), rel=0.5)


@pytest.mark.parametrize("unit", [1e-8, 1e-3, 1e5])
def test_the_unit_of_the_response_changes_nothing(unit):
    plain = drawn(0.3, 1.0)[0]
    scaled = replace(plain, xy=plain.xy * unit, yy=plain.yy * unit**2)
    one, other = (empirical_bayes(of, np.zeros(60, int)) for of in (plain, scaled))
    np.testing.assert_allclose(other.mean / unit, one.mean, rtol=1e-6)
    np.testing.assert_allclose(other.cov / unit**2, one.cov, rtol=1e-6)


def test_weights_alone_are_not_uneven():
    """A row of weight w has w times its squares in the moments, and w^2 in what `unevenness` compares."""
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(20_000, 3)), rng.normal(size=(20_000, 1)), rng.uniform(0.1, 1, 20_000)
    assert Moments.of(x, y, weight).unevenness() == pytest.approx(np.ones(3), abs=0.05)
    twice = Moments.of(np.repeat(x, 2, axis=0), np.repeat(y, 2, axis=0))
    assert twice.unevenness() == pytest.approx(Moments.of(x, y).unevenness(), rel=1e-5)
    by_hand = np.maximum((weight**2 @ (x * y) ** 2) * (weight**2).sum() / (weight**2 @ x**2) / (weight**2 @ y**2), 1)
    assert Moments.of(x, y, weight).unevenness() == pytest.approx(by_hand, rel=1e-5)


def test_free_coefficients_are_least_squares_and_groups_have_their_own_variance():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, 41))
    b = np.concatenate([[5.0], 0.5 * rng.normal(size=20), np.zeros(20)])
    y = x @ b + rng.normal(size=3000)
    group = np.r_[-1, np.zeros(20, int), np.ones(20, int)]
    found = empirical_bayes(Moments.of(x, y[:, None]), group)
    assert found.mean[0] == pytest.approx(5, abs=4 / np.sqrt(3000))
    assert np.sqrt(found.tau2[0]) == pytest.approx(0.5, rel=0.4)
    assert found.tau2[1] < 0.01 * found.tau2[0]


def test_calibration_is_the_regression_on_held_out_rows():
    """A fit that is twice too large has slope 1/2; noise explains less than nothing."""
    rng = np.random.default_rng(1)
    n = 4000
    nuisance, action = np.column_stack([np.ones(n), rng.normal(size=n)]), rng.normal(size=(n, 2))
    y = nuisance @ [3.0, -1.0] + action @ [0.4, 0.0] + rng.normal(size=n)
    held = Moments.of(np.hstack([nuisance, action]), y[:, None])
    columns = np.arange(2), np.array([2, 3])
    twice = calibration([(np.array([9.0, 9.0, 0.8, 0.0]), held)], *columns)
    assert twice["slope"] == pytest.approx(0.5, abs=0.05)
    assert twice["explained_share"] == pytest.approx(0, abs=0.06)
    right = calibration([(np.array([0, 0, 0.4, 0.0]), held)], *columns)
    assert right["slope"] == pytest.approx(1, abs=0.1)
    assert right["explained_share"] == pytest.approx(0.16 / 1.16, abs=0.02)
    assert calibration([(np.array([0, 0, 0.0, 0.5]), held)], *columns)["explained_share"] < -0.1
    nothing = calibration([(np.zeros(4), held)], *columns)
    assert np.isnan(nothing["slope"])
    assert nothing["z"] == 0


def parts_of(rng, effect=0.0, noise=lambda x: 1.0, weight=None):
    """Five parts of 300 rows: an intercept, twenty columns, and a response."""
    parts = []
    for _ in range(5):
        x = rng.normal(size=(300, 20))
        y = effect * x[:, :1] + noise(x) * rng.normal(size=(300, 1))
        parts.append(Moments.of(np.column_stack([np.ones(300), x]).astype(np.float32), y, weight))
    return parts


def held_out_z(parts):
    fits = [(ridge(others, 0.2)[:, 0], part) for others, part in left_out(parts)]
    return calibration(fits, np.array([0]), 1 + np.arange(20))["z"]


@pytest.mark.parametrize("weight", [None, np.repeat([1.0, 0.3], 150)], ids=["even", "weighted"])
def test_without_an_effect_the_held_out_slopes_z_has_a_standard_deviation_of_one(weight):
    """Each pair of parts is met twice; counted once, it would be 1.4."""
    rng = np.random.default_rng(5)
    z = [held_out_z(parts_of(rng, weight=weight)) for _ in range(300)]
    assert np.std(z) == pytest.approx(1, abs=0.13)
    # leaving a part out turns what it holds against the rest: below 0, never above
    assert -0.5 < np.mean(z) < 0.1
    assert np.mean([held_out_z(parts_of(rng, effect=0.3, weight=weight)) for _ in range(10)]) > 5


def test_uneven_noise_does_not_pass_for_confirmation():
    rng = np.random.default_rng(6)
    z = [held_out_z(parts_of(rng, noise=lambda x: np.exp(0.5 * x[:, :1]))) for _ in range(300)]
    assert np.std(z) < 1.15


def test_users_of_no_more_rows_than_nuisance_columns_say_nothing():
    """Their refit leaves rounding errors, whose slope would be anything."""
    rng = np.random.default_rng(8)
    held = Moments.of(rng.normal(size=(8, 15)).astype(np.float32), rng.normal(size=(8, 1)))
    found = calibration([(rng.normal(size=15), held)], np.arange(12), np.arange(12, 15))
    assert (found["z"], found["explained_share"]) == (0, 0)
    assert np.isnan(found["slope"])


def test_how_sure_held_out_rows_are_does_not_depend_on_the_unit_of_weights():
    rng = np.random.default_rng(9)
    x, y, b = rng.normal(size=(60, 40)).astype(np.float32), rng.normal(size=(60, 1)), rng.normal(size=40)
    one, half = (calibration([(b, Moments.of(x, y, np.full(60, w)))], np.arange(30), np.arange(30, 40))["z"] for w in (1.0, 0.49))
    assert one == pytest.approx(half, rel=1e-3)


def test_a_part_is_left_out_of_the_sum_of_the_others():
    parts = parts_of(np.random.default_rng(7))
    for (others, part), given in zip(left_out(parts), parts, strict=True):
        assert part is given
        np.testing.assert_allclose(others.xx + part.xx, sum((p.xx for p in parts), np.zeros((21, 21))))
        assert others.n == 1200
