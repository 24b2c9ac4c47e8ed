from dataclasses import replace

import numpy as np
import pytest
import torch

from mtf.learning.actor_critic import boxed
from mtf.learning.networks import Actor, JointCritics
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.td3 import critic_loss
from mtf.learning.td3_bc import TD3BCConfig, actor_loss, learn
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions
from tests.learning.test_integrated_rl import actor_at, batch

UNIT = torch.tensor([0.15])


def linear(*slopes, at_zero=0.0):
    """A critic Q = slope a + at_zero for each of `slopes`."""
    made = JointCritics(len(slopes), 1, 1, (), torch.Generator())
    with torch.no_grad():
        made.net.weights[0].zero_()
        made.net.weights[0][:, 1, 0] = torch.tensor(slopes)
        made.net.biases[0].copy_(torch.as_tensor(at_zero, dtype=torch.float32).expand(len(slopes)).reshape(-1, 1, 1).clone())
    return made


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_with_a_linear_q_the_step_does_not_depend_on_its_scale(c):
    """Q = c a, data action 0, weight .5: a = .5 for every c > 0."""
    actor = actor_at(0.1)
    for _ in range(400):
        loss = actor_loss(linear(c, 0.0), actor, batch(), UNIT, 0.5, 1)
        (gradient,) = torch.autograd.grad(loss, [actor.mlp.biases[0]])
        with torch.no_grad():
            actor.mlp.biases[0] -= 0.05 * gradient
    u = boxed(actor, torch.ones(1, 1), batch().box, UNIT).detach()
    assert float(u) == pytest.approx(0.5, abs=1e-3)


def test_cloning_weighs_the_same_in_one_dimension_and_in_two():
    """A flat Q of 1 and a policy .5 from the data in each dimension: -alpha + .25, as F.mse_loss has it, not .5."""
    flat = JointCritics(2, 1, 2, (), torch.Generator())
    with torch.no_grad():
        flat.net.weights[0].zero_()
        flat.net.biases[0].fill_(1.0)
    rows = batch(3)
    wide = replace(
        rows,
        u=torch.full((3, 2), -0.5),
        box=tuple(v.expand(3, 2) for v in rows.box),
    )
    still = Actor(1, 2, (4,), torch.Generator())
    found = actor_loss(flat, still, wide, UNIT.expand(2), 0.5, 2)
    assert float(found.detach()) == pytest.approx(-0.5 + 0.25)


def test_the_target_is_the_smaller_of_the_two_and_both_learn_from_it():
    target = linear(0.0, 0.0, at_zero=[10.0, 4.0])
    loss = critic_loss(linear(0.0, 0.0, at_zero=[1.0, 2.0]), target, actor_at(0.0), batch(3), UNIT, 0.9, torch.zeros(3, 1))
    y = 1 + 0.9 * 4
    assert float(loss.detach()) == pytest.approx((1 - y) ** 2 + (2 - y) ** 2, rel=1e-5)
    ended = critic_loss(linear(0.0, 0.0), target, actor_at(0.0), batch(done=1.0), UNIT, 0.9, torch.zeros(1, 1))
    assert float(ended.detach()) == pytest.approx(2.0)


def test_the_noise_of_the_targets_action_is_kept_in_the_box():
    target = linear(1.0, 1.0)
    found = [
        float(
            critic_loss(
                linear(0.0, 0.0),
                target,
                actor_at(float(np.arctanh(0.8))),
                batch(reward=0.0),
                UNIT,
                0.9,
                torch.full((1, 1), noise),
            )
        )
        for noise in (0.0, 0.1, 0.5)
    ]
    assert found == pytest.approx([2 * (0.9 * u) ** 2 for u in (0.8, 0.9, 1.0)], rel=1e-4)


def test_it_trains_inside_the_box_towards_what_pays():
    problem = prepare(make_sessions(2500, seed=1, slope=np.array([2.0, 0.0]), end=1.0), "logged")
    config = TD3BCConfig(steps=500, batch=256)
    found = learn(problem, fit_value(problem), config, seed=0, progress=Progress(False))
    assert (np.abs(found.action) <= 0.3 + 1e-6).all()
    move = found.action.mean(axis=0)
    assert move[0] > 0.05
    assert abs(move[1]) < move[0]
    y = found.action / 0.3
    assert np.sqrt(np.square(y).mean()) <= 0.5 * 1.001
