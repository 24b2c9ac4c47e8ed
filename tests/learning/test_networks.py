import numpy as np
import pytest
import torch

from mtf.learning.networks import Actor, AdvantageCritics, JointCritics, Stack, soft_update


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_stack_is_m_networks_side_by_side():
    stack = Stack(3, (4, 5, 2), generator())
    x = torch.randn(7, 4, generator=generator(1))
    found = stack(x)
    assert found.shape == (3, 7, 2)
    for m in range(3):
        hidden = torch.relu(x @ stack.weights[0][m] + stack.biases[0][m])
        torch.testing.assert_close(found[m], hidden @ stack.weights[1][m] + stack.biases[1][m])
    # an input for each
    own = torch.randn(3, 7, 4, generator=generator(2))
    torch.testing.assert_close(stack(own)[1], stack(own[1])[1])
    assert len(set(found[:, 0, 0].tolist())) == 3


@pytest.mark.parametrize("hidden", [(), (5,), (5, 6)])
def test_a_stack_shares_the_part_of_its_input_that_many_inputs_have_in_common(hidden):
    stack = Stack(3, (4, *hidden, 1), generator())
    shared, own = torch.randn(7, 3, generator=generator(1)), torch.randn(2, 7, 1, generator=generator(2))
    found = stack.over(shared, own)
    assert found.shape == (3, 2, 7, 1)
    for k in range(2):
        torch.testing.assert_close(found[:, k], stack(torch.cat([shared, own[k]], dim=1)))


def test_the_first_network_of_a_stack_is_computed_alone():
    stack = Stack(3, (4, 5, 1), generator())
    x = torch.randn(7, 4, generator=generator(1))
    torch.testing.assert_close(stack.first(x), stack(x)[0])
    hidden = torch.relu(x @ stack.weights[0][0] + stack.biases[0][0])
    torch.testing.assert_close(stack.first(x), hidden @ stack.weights[1][0] + stack.biases[1][0])


def test_an_action_is_worth_nothing_until_data_say_so():
    critics = AdvantageCritics(4, 3, 5, 2, (8,), generator())
    seen = (torch.randn(6, 3, generator=generator(1)), torch.randn(6, 5, generator=generator(2)))
    u = torch.rand(6, 2, generator=generator(3)) * 2 - 1
    assert (critics.action_part(seen, u) == 0).all()
    torch.testing.assert_close(critics(seen, u), critics.value(seen))


def test_the_advantage_is_its_formula_and_v_the_mean_over_the_box():
    critics = AdvantageCritics(2, 3, 5, 2, (8,), generator())
    with torch.no_grad():
        critics.slope.copy_(torch.randn(critics.slope.shape, generator=generator(4)))
        critics.curve.copy_(torch.randn(critics.curve.shape, generator=generator(5)))
        seen = (torch.randn(1, 3, generator=generator(1)), torch.randn(1, 5, generator=generator(2)))
        u = torch.tensor([[0.5, -0.2]])
        for m in range(2):
            slope, curve = critics.slope[m] @ seen[1][0], critics.curve[m]
            expected = (u[0] * slope).sum() + (curve * (u[0] ** 2 - 1 / 3)).sum()
            torch.testing.assert_close(critics.action_part(seen, u)[m, 0], expected)
        # Gauss-Legendre over the box: exact for squares
        nodes, mass = np.polynomial.legendre.leggauss(2)
        grid = torch.tensor([[a, b] for a in nodes for b in nodes], dtype=torch.float32)
        many = tuple(v.expand(4, -1) for v in seen)
        torch.testing.assert_close(critics(many, grid).mean(1), critics.value(seen)[:, 0])
        # cut to .6 and .25 of its half-widths it has less to average
        cut = torch.tensor([0.6, 0.25])
        torch.testing.assert_close(critics(many, grid * cut, (cut**2 / 3).expand(4, 2)).mean(1), critics.value(seen)[:, 0])


def test_joint_critics_have_no_part_of_their_own_for_the_action():
    critics = JointCritics(2, 5, 3, (8,), generator())
    seen = (torch.zeros(4, 1), torch.randn(4, 5, generator=generator(2)))
    u = torch.randn(4, 3, generator=generator(3))
    torch.testing.assert_close(critics.value(seen), critics(seen, torch.zeros(4, 3)))
    torch.testing.assert_close(critics.action_part(seen, u), critics(seen, u))
    assert (critics(seen, u) != critics.value(seen)).any()


def test_the_actor_starts_at_the_deployed_policy():
    actor = Actor(5, 3, (8,), generator())
    z = torch.randn(4, 5, generator=generator(1))
    assert (actor(z) == 0).all()
    with torch.no_grad():
        actor.skip += 1
    torch.testing.assert_close(actor(z), z.sum(1, keepdim=True).expand(4, 3))


@pytest.mark.parametrize("rate", [0.0, 0.08, 1.0])
def test_targets_follow_softly(rate):
    source, target = Stack(1, (2, 1), generator(0)), Stack(1, (2, 1), generator(1))
    before = target.weights[0].detach().clone()
    soft_update(target, source, rate)
    torch.testing.assert_close(target.weights[0].detach(), (1 - rate) * before + rate * source.weights[0].detach())
