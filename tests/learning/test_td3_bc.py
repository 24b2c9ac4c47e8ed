from functools import partial

import numpy as np
import pytest
import torch

from mtf.learning.actor_critic import boxed
from mtf.learning.networks import JointCritics
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.rows import tensors
from mtf.learning.td3 import policy_gradient, target_value
from mtf.learning.td3_bc import TD3BC, TD3BCConfig, actor_loss, learn
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
    with torch.no_grad():
        for _ in range(400):
            loss = partial(actor_loss, logged=batch().u, hold=torch.ones(1), alpha=0.5, varied=1)
            *_, gradient = policy_gradient(linear(c, 0.0), actor, batch(), UNIT, loss)[1]
            actor.mlp.biases[-1] -= 0.05 * gradient
        u = boxed(actor, torch.ones(1, 1), batch().box, UNIT)
    assert float(u) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("scale", [1e-9, 0.1, 10.0])
def test_the_actors_slopes_are_those_of_its_loss(scale):
    """In one dimension that varies and one that does not; below 1e-6 the size of Q is taken as that."""
    q = scale * torch.tensor([1.0, -3.0, 2.0])
    u, logged = torch.tensor([[0.5, 0.0], [-0.2, 0.0], [0.9, 0.0]]), torch.tensor([[0.0, 0.0], [0.3, 0.0], [-0.4, 0.0]])
    q.requires_grad_(), u.requires_grad_()
    hold = torch.tensor([0.0, 1.5, 1.5])
    loss = -2.5 * q.mean() / q.detach().abs().mean().clamp(min=1e-6) + (hold * (u - logged).square()[:, 0]).mean()
    found, *slopes = actor_loss(q, u, logged, hold, 2.5, 1)
    torch.testing.assert_close(found, loss)
    for slope, expected in zip(slopes, torch.autograd.grad(loss, [q, u]), strict=True):
        torch.testing.assert_close(slope, expected)


def test_cloning_weighs_the_same_in_one_dimension_and_in_two():
    """As F.mse_loss has it: the square is a mean over the dimensions that vary."""
    found = [actor_loss(torch.ones(3), torch.full((3, k), 0.5), torch.zeros(3, k), torch.ones(3), 0.5, k) for k in (1, 2)]
    assert [float(loss) for loss, _, _ in found] == pytest.approx([-0.5 + 0.25] * 2)
    assert [float(by_u.sum()) for _, _, by_u in found] == pytest.approx([0.5 * 2] * 2)


def test_the_target_is_the_smaller_of_the_two():
    target = linear(0.0, 0.0, at_zero=[10.0, 4.0])
    with torch.no_grad():
        y = target_value(target, actor_at(0.0), batch(3), UNIT, 0.9, torch.zeros(3, 1))
        torch.testing.assert_close(y, torch.full((3,), 1 + 0.9 * 4))
        ended = target_value(target, actor_at(0.0), batch(done=1.0), UNIT, 0.9, torch.zeros(1, 1))
    assert float(ended) == pytest.approx(1.0)


def test_all_critics_together_say_what_the_logged_actions_are_worth(problem):
    rows = tensors(problem, 1.0, joint=True)
    agent, some = TD3BC(problem, rows.all, TD3BCConfig(), torch.Generator().manual_seed(3)), rows.take(torch.arange(200))
    with torch.no_grad():
        one, other = agent.critics(some.now, some.u)
        torch.testing.assert_close(agent.values(some), (one + other) / 2)


def test_the_noise_of_the_targets_action_is_kept_in_the_box():
    target, there = linear(1.0, 1.0), actor_at(float(np.arctanh(0.8)))
    with torch.no_grad():
        found = [
            float(target_value(target, there, batch(reward=0.0), UNIT, 0.9, torch.full((1, 1), noise)))
            for noise in (0.0, 0.1, 0.5)
        ]
    assert found == pytest.approx([0.9 * u for u in (0.8, 0.9, 1.0)], rel=1e-4)


@pytest.fixture(scope="module")
def problem():
    return prepare(make_sessions(2500, seed=1, slope=np.array([2.0, 0.0]), end=1.0), "logged")


def test_an_update_is_what_autograd_makes_of_the_paper(problem):
    """Ten updates of a copy whose gradients are autograd's, of losses written here; the delay, and the targets, too."""
    rows = tensors(problem, 1.0, joint=True)
    config = TD3BCConfig(batch=64, critic_hidden=(8, 8), actor_hidden=(8,), noise=0.0, lr=1e-2)
    agent, other = (TD3BC(problem, rows.all, config, torch.Generator().manual_seed(3)) for _ in range(2))
    adam = {name: torch.optim.Adam(other.modules[name].parameters(), lr=config.lr) for name in ("critics", "actor")}
    for step in range(1, 11):
        some = rows.take(torch.arange(64 * step, 64 * step + 64))
        found = agent.update(some, step)
        with torch.no_grad():
            next_q = other.target(some.next, boxed(other.target_actor, some.next_z, some.next_box, other.unit)).min(0).values
            y = some.reward.sum(1) + 0.9 * (1 - some.done) * next_q
        adam["critics"].zero_grad()
        sum(torch.nn.functional.mse_loss(q, y) for q in other.critics(some.now, some.u)).backward()
        adam["critics"].step()
        if step % 2 == 0:
            u = boxed(other.actor, some.z, some.box, other.unit)
            q = other.critics(some.now, u)[0]
            adam["actor"].zero_grad()
            loss = -2.5 * q.mean() / q.detach().abs().mean() + torch.nn.functional.mse_loss(u, some.u)
            assert float(found["actor"]) == pytest.approx(float(loss.detach()), abs=1e-5)
            loss.backward()
            adam["actor"].step()
            for target, source in ((other.target, other.critics), (other.target_actor, other.actor)):
                for a, b in zip(target.parameters(), source.parameters(), strict=True):
                    a.data.mul_(1 - config.tau).add_(config.tau * b.data)
    for (name, a), b in zip(agent.modules.named_parameters(), other.modules.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)
    assert not torch.equal(agent.actor.skip, torch.zeros_like(agent.actor.skip))


def test_it_trains_inside_the_box_towards_what_pays(problem):
    config = TD3BCConfig(steps=500, batch=256)
    found = learn(problem, fit_value(problem), config, seed=0, progress=Progress(False))
    assert (np.abs(found.action) <= 0.3 + 1e-6).all()
    move = found.action.mean(axis=0)
    assert move[0] > 0.05
    assert abs(move[1]) < move[0]
    y = found.action / 0.3
    assert np.sqrt(np.square(y).mean()) <= 0.5 * 1.001
