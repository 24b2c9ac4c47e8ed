import numpy as np
import pytest

from mtf.evaluation.importance import importance, running_product, step_ratio
from mtf.evaluation.steps import make_steps


def test_products_start_again_with_each_session():
    rho = np.array([2.0, 3.0, 5.0, 7.0, 0.0, 11.0])
    np.testing.assert_array_equal(running_product(rho, np.array([0, 2, 3])), [2, 6, 5, 7, 0, 0])
    assert len(running_product(np.zeros(0), np.zeros(0, int))) == 0


@pytest.mark.parametrize(("dims", "end"), [(1, 0.7), (2, 1.0)])
def test_the_lift_of_the_smaller_box_is_found_without_bias(world, constant, dims, end):
    """E r = 1 + slope . a whatever came before: the boxes of half the width around +-.15 have their means there."""
    slope = np.array([0.8, -0.5])[:dims]
    target = np.sign(slope) * 0.15
    found = [
        importance(make_steps(world(4000, seed=seed, slope=slope, end=end), constant(target), None)[0], 0.04)
        for seed in range(12)
    ]
    mean, se = np.mean([f.mean for f in found]), np.std([f.mean for f in found], ddof=1) / np.sqrt(12)
    assert mean == pytest.approx(float(np.abs(slope).sum() * 0.15), abs=3.5 * se)
    assert se < 0.03


def test_later_steps_carry_the_weights_of_the_earlier_ones(world, constant, changed):
    """Two steps, and only the second one's reward moves with its action: `gamma slope y / (1 + gamma)`."""
    data = world(40_000, seed=1, slope=np.array([0.0]), end=0.0, longest=2)
    reward = 1 + 2 * data.action * (data.step == 1)[:, None]
    data = changed(data, reward=reward.astype(np.float32), terminal=data.step == 1, truncated=False)
    found = importance(make_steps(data, constant([0.15]), None)[0], 0.04)
    assert found.mean == pytest.approx(0.9 * 2 * 0.15 / 1.9, abs=3 * found.se)
    assert found.se < 0.015


def test_a_target_at_the_edge_keeps_its_box_inside(world, constant):
    """Around y = 1 the box of half width reaches from 0 to 1: its middle is y = 1/2."""
    slope = np.array([1.0])
    lifts = []
    for seed in range(12):
        steps, _ = make_steps(world(3000, seed=seed, slope=slope, end=0.6), constant([0.3]), None)
        lifts.append(importance(steps, 0.04).mean)
    assert np.mean(lifts) == pytest.approx(0.15, abs=3.5 * np.std(lifts, ddof=1) / np.sqrt(12))


def test_it_is_silent_where_it_would_lie(world, constant):
    many, _ = make_steps(world(300, seed=0, slope=np.zeros(4)), constant(np.zeros(4)), None)
    assert importance(many, 0.04) is None  # more than three dimensions
    few, _ = make_steps(world(60, seed=0, slope=np.zeros(3)), constant(np.full(3, 0.15)), None)
    assert importance(few, 0.04) is None  # hardly a session keeps weight
    nothing, _ = make_steps(world(60, seed=0, slope=np.zeros(2), half_width=0.0), constant(np.zeros(2)), None)
    assert importance(nothing, 0.04) is None


def test_a_dimension_fixed_in_a_row_counts_one_there():
    x = np.array([[0.2, 0.3], [0.2, 0.0], [0.9, 0.0], [0.2, -0.6]])
    y = np.where(x != 0, 0.1, 0)
    np.testing.assert_array_equal(step_ratio(x, y), [4, 2, 0, 0])
