"""Gradients written out, beside autograd's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf.learning.actor_critic import boxed
from mtf.learning.backprop import ActorPass, Flat, Pass, squared_error
from mtf.learning.networks import Actor, Stack


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


widths = st.lists(st.integers(1, 6), min_size=0, max_size=3)


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 3), n=st.integers(1, 5), ends=st.tuples(st.integers(1, 4), st.integers(1, 3)), hidden=widths)
def test_a_pass_has_the_outputs_and_the_gradients_of_autograd(m, n, ends, hidden):
    stack = Stack(m, (ends[0], *hidden, ends[1]), generator(n)).double()
    x = torch.randn(n, ends[0], generator=generator(1), dtype=torch.double)
    by = torch.randn(m, n, ends[1], generator=generator(2), dtype=torch.double)
    apart = x.expand(m, n, -1).clone().requires_grad_()
    expected = stack(apart)
    slopes = torch.autograd.grad(expected, [*stack.parameters(), apart], by)
    with torch.no_grad():
        found = Pass(stack, x)
        torch.testing.assert_close(found.out, expected)
        for a, b in zip([*found.parameters(by), found.last(ends[0], by)], slopes, strict=True):
            torch.testing.assert_close(a, b)
        # asked again, it says the same: nothing that it keeps is written over
        torch.testing.assert_close(found.last(ends[0], by), slopes[-1])
        torch.testing.assert_close(found.last(1, by), slopes[-1][..., -1:])
        first = Pass(stack, x, 1)
        torch.testing.assert_close(first.out[0], expected[0])
        torch.testing.assert_close(first.last(ends[0], by[:1])[0], slopes[-1][0])


def test_an_actors_pass_stays_in_a_box_that_is_cut_and_knows_its_slopes():
    actor = Actor(4, 2, (5,), generator())
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(3)))
    z, by = torch.randn(6, 4, generator=generator(1)), torch.randn(6, 2, generator=generator(2))
    # the second dimension is cut to a fifth, and fixed in the last row
    lower, upper = torch.full((6, 2), -0.3), torch.tensor([[0.3, -0.18]] * 5 + [[0.3, -0.3]])
    box, unit = (torch.zeros(6, 2), lower, upper), torch.tensor([0.3, 0.3])
    expected = boxed(actor, z, box, unit)
    slopes = torch.autograd.grad(expected, list(actor.parameters()), by)
    with torch.no_grad():
        found = ActorPass(actor, z, box, unit)
        torch.testing.assert_close(found.u, expected)
        assert (found.u.abs() <= found.reach).all()
        for a, b in zip(found.parameters(by), slopes, strict=True):
            torch.testing.assert_close(a, b)


def test_the_squared_error_comes_with_its_slope():
    q, y = torch.tensor([[1.0, 2.0], [0.0, 4.0]], requires_grad=True), torch.tensor([1.0, 0.0])
    loss, slope = squared_error(q, y)
    assert float(loss.detach()) == pytest.approx((0 + 4) / 2 + (1 + 16) / 2)
    torch.testing.assert_close(slope, *torch.autograd.grad(loss, q))


def test_parameters_in_one_vector_step_as_apart_and_stay_where_they_are():
    flat_one, apart = (Stack(2, (3, 4, 1), generator()) for _ in range(2))
    flat, adam = Flat(flat_one.parameters(), 0.1), torch.optim.Adam(apart.parameters(), lr=0.1)
    for step in range(3):
        gradients = [torch.randn(p.shape, generator=generator(step)) for p in apart.parameters()]
        # of other strides, as a transposed product has
        flat.step([g.transpose(1, 2).contiguous().transpose(1, 2) for g in gradients])
        for parameter, gradient in zip(apart.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        for a, b in zip(flat_one.parameters(), apart.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    # a state that is loaded is what the next step starts from
    flat_one.load_state_dict(Stack(2, (3, 4, 1), generator(9)).state_dict())
    start = [p.detach().clone() for p in flat_one.parameters()]
    flat.step([torch.zeros_like(p) + 1 for p in start])
    for before, after in zip(start, flat_one.parameters(), strict=True):
        assert 0 < float((before - after).detach().abs().max()) < 0.2
