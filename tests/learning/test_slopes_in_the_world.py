"""One-step slopes beside the simulator: the TD residual's slope on the action is the gradient of the policy's true value."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mtf.learning.problem import prepare
from mtf.learning.value import fit_value
from mtf.policy import bootstrap_policy
from mtf.world.explore import explore, join
from mtf.world.truth import true_value
from mtf.world.world import World

HALF_WIDTH, USERS = 0.3, 4000
DIMENSIONS = [0, 3, 4]
STEP = 0.5
"""Of the half-width, up and down: the value's gradient by central differences."""


class Shifted:
    """The start, one dimension of its action moved."""

    def __init__(self, start, dimension, by):
        self.start, self.dimension, self.by = start, dimension, by

    def act(self, states):
        action = self.start.act(states).copy()
        action[:, self.dimension] += self.by
        return action


def slopes(data):
    """[sessions, A]: sum over a session of gamma^t u_t delta_t / E[u^2], whose mean is the gradient a half-width."""
    width = np.full(data.action_width, HALF_WIDTH, np.float32)
    problem = prepare(data, "bootstrap", half_width=width)
    value = fit_value(problem)
    weighted = problem.u * (value.residual * problem.gamma**data.step)[:, None] * 3
    out = np.zeros((data.n_sessions, data.action_width))
    np.add.at(out, data.session, weighted)
    return out[:, DIMENSIONS]


def mean_and_error(x):
    return x.mean(axis=0), x.std(axis=0) / np.sqrt(len(x))


@pytest.fixture(scope="module")
def world(world_dir):
    return World.load(world_dir)


@pytest.fixture(scope="module")
def data(world):
    start = bootstrap_policy(world.spec)
    days = [explore(world, start, USERS, f"2026-01-0{day}", day, HALF_WIDTH, candidates=False) for day in (1, 2, 3, 4)]
    return join(days)


@pytest.fixture(scope="module")
def gradient(world):
    """(mean, standard error) a half-width, on users and days that the log does not hold."""
    start, by = bootstrap_policy(world.spec), STEP * HALF_WIDTH

    def value(dimension, shift):
        return true_value(world, Shifted(start, dimension, shift), USERS, 77, dt="2026-07-01", width=USERS).sessions_discounted

    return mean_and_error(np.column_stack([(value(d, by) - value(d, -by)) / (2 * STEP) for d in DIMENSIONS]))


def test_one_step_slopes_are_the_gradient_of_the_true_value(data, gradient):
    (found, error), (true, true_error) = mean_and_error(slopes(data)), gradient
    surprising = stats.chi2.ppf(0.999, len(DIMENSIONS))
    # there is something to see, or agreement would say nothing
    assert np.square(found / error).sum() > surprising
    assert np.square(true / true_error).sum() > surprising
    assert (np.square(found - true) / (error**2 + true_error**2)).sum() < surprising


def test_a_value_that_reads_what_actions_move_gives_false_credit(data, gradient):
    """The same sessions, so the two differ by what V reads alone; what it adds leads away from the truth."""
    right, wrong = slopes(data), slopes(replace(data, value_mask=np.ones_like(data.value_mask)))
    added, error = mean_and_error(wrong - right)
    assert np.square(added / error).sum() > stats.chi2.ppf(0.999, len(DIMENSIONS))
    true = gradient[0]
    assert np.square(wrong.mean(axis=0) - true).sum() > np.square(right.mean(axis=0) - true).sum()
