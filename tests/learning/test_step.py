"""How far the evidence carries: closed forms, and that nothing of the same length gains more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf.learning.step import Slopes, Step, blocks, confirmed, evidence_step, linear_slopes, shorten

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
    # y = slope / rho with sqrt((4 + 1) / 2) / rho = .5; before the limit both went to the edge
    assert found.wanted_edge_share == 1.0
    np.testing.assert_allclose(found.y, np.array([[2.0, -1.0]]) / 3.16228, rtol=1e-4)
    assert (found.rms, found.rms_wanted) == (pytest.approx(0.5, rel=1e-4), 1.0)


def test_curvature_stops_at_the_top_of_the_parabola():
    np.testing.assert_allclose(step([0.3, -0.2], curvature=np.array([1.0, 0.4])).y, [[0.3, -0.5]], rtol=1e-5)
    # a parabola that opens upwards is no reason to go further than the evidence
    np.testing.assert_allclose(step([0.3, -0.2], curvature=np.array([-1.0, -9.0])).y, [[1.0, -1.0]])


def test_a_step_starts_where_the_policy_is_and_not_in_the_middle_of_its_box():
    """.95 in a box of .3 that is cut at 1: .417 half-widths above its middle. A = .1 u - .2 u^2 is best at .25: back by .167."""
    start = np.float32([[0.417, 0.0]])

    def from_there(sd, curvature):
        return step([0.1, 0.1], sd=sd, kappa=1.0, curvature=np.array(curvature), start=lambda rows: start[rows]).y

    np.testing.assert_allclose(from_there(1e-9, [0.4, 0.4]), [[0.25 - 0.417, 0.25]], rtol=1e-5)
    # an sd of 1 lets pass what the slope there is: .1 - .4 * .417
    np.testing.assert_allclose(from_there(1.0, [0.4, 0.4]), [[0.1 - 0.4 * 0.417, 0.1]], rtol=1e-5)
    # a parabola that opens upwards is taken for a line
    np.testing.assert_array_equal(from_there(1.0, [-1.0, 0.0]), np.float32([[0.1, 0.1]]))


def test_a_fixed_dimension_stays_and_does_not_count():
    found = step([2.0, -1.0], varied=np.array([True, False]), max_rms=0.5)
    np.testing.assert_allclose(found.y, [[0.5, 0.0]], rtol=1e-4)
    assert found.rms == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("z", "share"), [(-3.0, 0), (0.0, 0), (1.0, 0), (1.25, 0.25), (2.0, 1), (9.0, 1)])
def test_a_step_is_taken_as_far_as_other_users_confirm_it(z, share):
    y = np.array([[0.4, -0.2], [0.0, 1.0]], np.float32)
    found, taken = confirmed(Step(y, 0.9, 0.5, 0.1), z, threshold=1.0)
    assert taken == share
    np.testing.assert_allclose(found.y, share * y)
    assert (found.rms_wanted, found.rms, found.wanted_edge_share) == (0.9, share * 0.5, 0.1)


def test_blocks_are_those_of_each_dimension():
    root = np.random.default_rng(0).normal(size=(6, 6))
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
    assert found.wanted_edge_share == 0.0
    assert shorten(np.array([[0.95, -0.3], [-1.0, 0.95]], np.float32), 0.3, BOTH).wanted_edge_share == 0.75
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
