"""A group of critics for each reward head: whose reward, whose next value, whose weight in the actor's loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtf.learning import integrated_rl
from mtf.learning.integrated_rl import actor_loss, critic_loss
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.registry import algorithm
from mtf.learning.trainer import fit
from mtf.learning.unified_rl import UnifiedRLConfig
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions
from tests.learning.test_integrated_rl import actor_at, batch, critics

CONFIG = UnifiedRLConfig()
UNIT = torch.tensor([0.15])


def two_heads():
    """Three rows, the last of them an end, two rewards each."""
    return replace(batch(3), reward=torch.tensor([[1.0, 3.0], [0.5, 5.0], [2.0, -4.0]]), done=torch.tensor([0.0, 0.0, 1.0]))


# outside, the next value counts exp(-.045 / .09)
@pytest.mark.parametrize(("step", "phi"), [(0.5, 1.0), (1.3, 0.606531)])
def test_a_critic_learns_its_own_heads_reward_and_its_own_next_value(step, phi):
    now, then, slope = [4.0, 7.0, 1.0, 2.0], [10.0, 20.0, 30.0, 40.0], [2.0, 4.0, 6.0, 8.0]
    rows = two_heads()
    found = critic_loss(critics(*now), critics(*then, slope=slope), actor_at(step), rows, UNIT, 0.9, CONFIG)
    targets = np.zeros((4, 3))
    for g in range(2):
        for i in range(2):
            c = 2 * g + i
            for row in range(3):
                after = 0.0 if row == 2 else 0.9 * phi * (then[c] + slope[c] * step)
                targets[c, row] = float(rows.reward[row, g]) + after
    expected = np.square(np.array(now)[:, None] - targets).mean(axis=1)
    np.testing.assert_allclose(found.each, expected, rtol=1e-4)
    assert float(found.total.detach()) == pytest.approx(expected.sum(), rel=1e-4)
    assert float(found.target) == pytest.approx(targets.mean(), rel=1e-4)


def test_by_hand_one_row():
    """y = 1 + 9, 1 + 18 of the first head, 3 + 27, 3 + 36 of the second."""
    rows = replace(batch(), reward=torch.tensor([[1.0, 3.0]]))
    found = critic_loss(critics(0.0, 0.0, 0.0, 0.0), critics(10.0, 20.0, 30.0, 40.0), actor_at(0.0), rows, UNIT, 0.9, CONFIG)
    assert found.each.tolist() == pytest.approx([10.0**2, 19.0**2, 30.0**2, 39.0**2])


def test_the_actor_weighs_each_groups_mean_and_spread():
    """At .5 the groups' A are {.5, 1.5} and {1, 4}: means 1 and 2.5, spreads .5 and 1.5. All four together have spread 1.39."""
    made = critics(5.0, 5.0, 5.0, 5.0, slope=[1.0, 3.0, 2.0, 8.0])
    found = actor_loss(made, actor_at(0.5), two_heads(), UNIT, CONFIG)
    assert float(found.advantage.detach()) == pytest.approx(3.5)
    assert float(found.disagreement.detach()) == pytest.approx(2.0)
    assert float(found.total.detach()) == pytest.approx(-3.5 + 0.2 * 2.0)
    outside = actor_loss(made, actor_at(1.3), two_heads(), UNIT, CONFIG)
    assert float(outside.total.detach()) == pytest.approx(-2.6 * 3.5 + 0.2 * 2.6 * 2.0 + 1.2 * 1.64872, abs=1e-3)


def test_each_group_finds_the_dimension_that_its_head_pays_for(monkeypatch):
    """The first head pays for the first dimension, the second for the second, the other way."""
    data = make_sessions(1200, seed=1, slope=np.array([2.0, 0.0]))
    second = 1 - 3 * data.action[:, 1:] + np.random.default_rng(0).normal(0, 0.3, (len(data), 1))
    problem = prepare(replace(data, reward=np.concatenate([data.reward, second], axis=1).astype(np.float32)), "logged")
    made = []

    def watched(agent, *arguments, **settings):
        made.append(agent)
        return fit(agent, *arguments, **settings)

    monkeypatch.setattr(integrated_rl, "fit", watched)
    config = replace(CONFIG, steps=300, batch=256, critics=2, critic_hidden=(16,), head_lr=1e-2, value_lr=1e-2)
    learned = algorithm("unified_rl").learn(problem, fit_value(problem), config, seed=0, progress=Progress(False))
    assert (np.abs(learned.action) <= 0.3 + 1e-6).all()
    slope = made[0].critics.slope.detach().unflatten(0, (2, 2)).mean(1)[..., 0] * learned.report["reward_scale"]
    # a half-width is .3, and E exp(.5 s) = 1.133
    np.testing.assert_allclose(slope, [[0.3 * 2 * 1.133, 0], [0, -0.3 * 3]], atol=0.2)
    move = learned.action.mean(axis=0)
    assert move[0] > 0.05 > -0.05 > move[1]
