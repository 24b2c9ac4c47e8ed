"""How far the evidence carries: closed forms, and that nothing of the same length gains more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf.learning.step import Slopes, Step, blocks, evidence_step, linear_slopes, shorten, sure_of_the_whole

BOTH = np.ones(2, bool)


def slopes(mean, sd=1e-9):
    mean = np.atleast_2d(np.asarray(mean, np.float32))
    return Slopes(mean, np.broadcast_to(np.asarray(sd, np.float32), mean.shape))


def step(mean, sd=1e-9, **changes):
    return evidence_step(slopes(mean, sd), **({"kappa": 2.0, "threshold": 0.0, "max_rms": 10.0, "varied": BOTH} | changes))


def test_no_further_than_the_posterior_is_sure_of_the_sign():
    found = step([0.6, -0.2], sd=[0.5, 0.2])
    # .6 / (2 * .5) and .2 / (2 * .2)
    np.testing.assert_allclose(found.y, [[0.6, -0.5]], rtol=1e-6)
    assert found.rms == found.rms_wanted == pytest.approx(np.sqrt((0.36 + 0.25) / 2))
    # ten times the evidence: the whole half-width and not more
    np.testing.assert_allclose(step([6.0, -2.0], sd=[0.5, 0.2]).y, [[1.0, -1.0]])
    # more careful: a third of the step
    np.testing.assert_allclose(step([0.6, -0.2], sd=[0.5, 0.2], kappa=6.0).y, [[0.2, -1 / 6]], rtol=1e-6)


def test_what_is_less_sure_than_the_threshold_earns_nothing():
    # 3, 1.5 and .9 standard deviations, the threshold 1, and two more for the whole half-width
    mean, sd = [1.5, -0.3, 0.9], [0.5, 0.2, 1.0]
    found = step(mean, sd, threshold=1.0, varied=np.ones(3, bool))
    np.testing.assert_allclose(found.y, [[1.0, -0.25, 0.0]], rtol=1e-5)


def test_what_gains_least_is_cut_first():
    found = step([2.0, -1.0], max_rms=0.5)
    # y = slope / rho with sqrt((4 + 1) / 2) / rho = .5
    np.testing.assert_allclose(found.y, np.array([[2.0, -1.0]]) / 3.16228, rtol=1e-4)
    assert (found.rms, found.rms_wanted) == (pytest.approx(0.5, rel=1e-4), 1.0)


def test_curvature_stops_at_the_top_of_the_parabola():
    np.testing.assert_allclose(step([0.3, -0.2], curvature=np.array([1.0, 0.4])).y, [[0.3, -0.5]], rtol=1e-5)
    # a parabola that opens upwards is no reason to go further than the evidence
    np.testing.assert_allclose(step([0.3, -0.2], curvature=np.array([-1.0, -9.0])).y, [[1.0, -1.0]])


def test_a_fixed_dimension_stays_and_does_not_count():
    found = step([2.0, -1.0], varied=np.array([True, False]), max_rms=0.5)
    np.testing.assert_allclose(found.y, [[0.5, 0.0]], rtol=1e-4)
    assert found.rms == pytest.approx(0.5, rel=1e-4)


def whole(mean, cov, y=1.0, phi=1.0, threshold=2.0, **changes):
    """Of a step of y in every dimension, at states whose phi is one number."""
    mean = np.atleast_1d(mean).astype(float)[:, None]
    phi = np.full((50, 1), phi, np.float32)
    moved = Step(np.full((50, len(mean)), y, np.float32), y, y)
    return sure_of_the_whole(moved, phi, mean, np.atleast_2d(cov), threshold=threshold, **changes)


def test_risks_that_average_out_are_taken_and_one_that_is_shared_is_not():
    """Nine slopes, each 1.2 standard deviations sure: together 3.6 if each errs for itself, 1.2 if they err together."""
    mean = np.full(9, 1.2)
    apart, found = whole(mean, np.eye(9))
    assert found.gain == pytest.approx(9 * 1.2)
    assert found.sd == pytest.approx(3)
    assert found.share == 1
    np.testing.assert_allclose(apart.y, 1)
    together, found = whole(mean, np.ones((9, 9)))
    assert found.sd == pytest.approx(9)
    assert found.share == 0
    assert (together.y == 0).all()
    assert (together.rms, together.rms_wanted) == (0, 1)


def test_between_the_thresholds_a_share_is_taken_and_curvature_counts_against_the_gain():
    half, found = whole(2.5, 1.0, y=0.4, phi=2.0)
    assert (found.gain, found.sd, found.share) == (pytest.approx(2.0), pytest.approx(0.8), pytest.approx(0.5))
    np.testing.assert_allclose(half.y, 0.2)
    # .4 * 2 * 2.5 less 5 * .4^2 / 2
    assert whole(2.5, 1.0, y=0.4, phi=2.0, curvature=np.array([5.0]))[1].gain == pytest.approx(1.6)
    assert whole(2.5, 1.0, y=0.0)[1].share == 0


def test_the_whole_gains_error_is_what_draws_of_the_coefficients_give():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    phi, y = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(40, 2)).astype(np.float32)
    mean = rng.normal(size=(2, 3))
    _, found = sure_of_the_whole(Step(y, 1, 1), phi, mean, root @ root.T, threshold=0)
    drawn = (mean.ravel() + rng.normal(size=(20_000, 6)) @ root.T).reshape(-1, 2, 3)
    gain = np.einsum("nd,np,kdp->k", y, phi, drawn) / 40
    assert found.gain == pytest.approx(gain.mean(), abs=4 * found.sd / np.sqrt(20_000))
    assert found.sd == pytest.approx(gain.std(), rel=0.02)
    np.testing.assert_array_equal(blocks(root, 2), [root[:3, :3], root[3:, 3:]])


rows = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6)


@given(rows, st.floats(0.1, 0.7), st.integers(0, 10_000))
def test_no_step_of_that_length_within_the_evidence_gains_more(mean, longest, seed):
    mean = np.array(mean, np.float32)
    found = step(mean, sd=0.7, max_rms=longest)
    assert found.rms <= longest * 1.0001
    gate = np.minimum(1, np.abs(mean) / 1.4)
    assert (np.abs(found.y) <= gate + 1e-6).all()
    rng = np.random.default_rng(seed)
    other = rng.uniform(-1, 1, (200, *mean.shape)) * gate
    length = np.sqrt((other**2).mean((1, 2)))
    other *= np.minimum(1, found.rms / np.maximum(length, 1e-12))[:, None, None]
    assert (other * mean).sum((1, 2)).max() <= (found.y * mean).sum() + 1e-4


def test_shorten_keeps_the_direction():
    y = np.array([[0.9, -0.3], [0.3, 0.9]], np.float32)
    found = shorten(y, 0.3, BOTH)
    assert found.rms_wanted == pytest.approx(np.sqrt(0.45))
    assert found.rms == pytest.approx(0.3)
    np.testing.assert_allclose(found.y, y * 0.3 / np.sqrt(0.45), rtol=1e-6)
    np.testing.assert_array_equal(shorten(y, 0.7, BOTH).y, y)
    assert shorten(np.zeros((2, 2), np.float32), 0.3, BOTH).rms == 0.0


def test_slopes_of_a_linear_form_and_their_sd():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(5, 3)).astype(np.float32)
    mean = rng.normal(size=(2, 3))
    root = rng.normal(size=(2, 3, 3))
    cov = root @ root.transpose(0, 2, 1)
    found = linear_slopes(phi, mean, cov)
    np.testing.assert_allclose(found.mean, phi @ mean.T, rtol=1e-5)
    np.testing.assert_allclose(found.sd, np.sqrt(np.einsum("np,dpq,nq->nd", phi, cov, phi)), rtol=1e-4)
