"""The one network that is served: it answers what was wanted, inside the box, and needs no parent."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.learning.config import Config
from mtf.learning.distil import act, distil
from mtf.learning.problem import prepare
from mtf.policy import Lineage
from mtf.transitions import arrays
from tests.evaluation.conftest import make_sessions

LINEAGE = Lineage(algorithm="test")


@pytest.fixture(scope="module")
def problem():
    return prepare(make_sessions(150, seed=0, slope=np.zeros(2)), "logged")


def wanted(problem, function):
    return (problem.center + function(problem.z) * problem.half_width).astype(np.float32)


def test_a_linear_policy_is_exact_and_has_no_hidden_layer(problem):
    action = wanted(problem, lambda z: 0.2 * z[:, :2] - 0.1)
    found = distil(problem, action, Config(), LINEAGE, seed=0)
    np.testing.assert_allclose(act(found.policy, problem.data.state), action, atol=2e-4)
    assert set(found.policy.arrays) == {"mean", "scale", "skip", "weight_0", "bias_0"}
    assert found.outside_share == 0
    assert found.clipped_share == 0


def test_a_bent_one_is_followed_by_the_network(problem):
    action = wanted(problem, lambda z: np.stack([0.5 * np.abs(z[:, 0]) - 0.5, 0.4 * np.sign(z[:, 1])], axis=1))
    found = distil(problem, action, Config(), LINEAGE, seed=0)
    assert found.residual_rms < 0.12
    linear = distil(problem, action, replace(Config(), distil_steps=1), LINEAGE, seed=0)
    assert found.residual_rms < linear.residual_rms / 2


def test_what_lies_outside_is_brought_inside_by_the_margin(problem):
    action = wanted(problem, lambda z: np.full((len(z), 2), 3.0))
    found = distil(problem, action, replace(Config(), margin=0.05), LINEAGE, seed=0)
    # the box is 2 half-widths wide: 5 % of it is a tenth
    y = (act(found.policy, problem.data.state) - problem.center) / problem.half_width
    np.testing.assert_allclose(y, 0.9, atol=1e-3)
    assert found.clipped_share == 1.0
    assert found.margin == 0.05
    assert found.outside_share == 0


def test_states_leave_the_box_in_fewer_than_one_of_a_hundred(problem):
    action = wanted(problem, lambda z: np.sign(np.sin(4 * z[:, :2])))  # hardly learnable, at the edge everywhere
    found = distil(problem, action, Config(), LINEAGE, seed=0)
    assert found.outside_share <= 0.01
    assert found.margin >= 0.02


def test_chunks_change_nothing(problem, monkeypatch):
    policy = distil(problem, wanted(problem, lambda z: 0.1 * z[:, :2]), Config(), LINEAGE, seed=0).policy
    monkeypatch.setattr(arrays, "CHUNK", 7)
    np.testing.assert_array_equal(act(policy, problem.data.state), policy.act(problem.data.state))
