import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtf import box

halves = st.floats(0, 0.5, width=32)
centres = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)


@given(centres, halves, st.integers(0, 100))
def test_samples_stay_in_the_box_and_in_the_space(centre, half, seed):
    center = np.repeat(np.array([centre], np.float32), 50, axis=0)
    lower, upper = box.offsets(center, half)
    action = box.sample(np.random.default_rng(seed), center, lower, upper)
    assert box.contains(action, center, lower, upper).all()
    assert (np.abs(action) <= 1 + 1e-6).all()
    # an action near 1 is rounded by 1.2e-7 at most, which is more of a box the smaller that is
    narrowest = np.min((upper - lower)[upper > lower], initial=1.0)
    assert (np.abs(box.position(action, center, lower, upper)) <= 1 + 1e-6 + 4.8e-7 / narrowest).all()


def test_density_is_exact_and_leaves_out_fixed_dimensions():
    lower = np.array([[-0.2, -0.1, 0.0]], np.float32)
    upper = np.array([[0.2, 0.0, 0.0]], np.float32)
    assert np.isclose(box.log_density(lower, upper)[0], -np.log(0.4) - np.log(0.1), atol=1e-6)


def test_position_at_a_clipped_edge_is_relative_to_the_middle_of_what_was_sampled():
    center = np.array([[0.95]], np.float32)
    lower, upper = box.offsets(center, 0.15)
    assert np.allclose([lower[0, 0], upper[0, 0]], [-0.15, 0.05], atol=1e-6)
    mid = center + (lower + upper) / 2
    assert np.isclose(box.position(mid, center, lower, upper)[0, 0], 0, atol=1e-5)
    assert np.isclose(box.position(np.array([[1.0]], np.float32), center, lower, upper)[0, 0], 1, atol=1e-4)


def test_position_is_uniform_under_the_box_also_where_it_is_clipped():
    center = np.tile(np.array([[0.95, 0.0, 0.3]], np.float32), (40_000, 1))
    lower, upper = box.offsets(center, np.array([0.15, 0.2, 0.0]))
    x = box.position(box.sample(np.random.default_rng(0), center, lower, upper), center, lower, upper)
    assert (x[:, 2] == 0).all()
    # uniform on [-1, 1]: mean 0 (se .0029), second moment 1/3 (se .0015)
    assert np.abs(x[:, :2].mean(axis=0)).max() < 0.012
    assert np.abs((x[:, :2] ** 2).mean(axis=0) - 1 / 3).max() < 0.006
