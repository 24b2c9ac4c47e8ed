"""Gradients written out: passes that keep their layers, and losses that come with their slopes in the networks' outputs.

At width 64 autograd takes a quarter of a training step. Where a loss is a few sums of outputs its slopes are as short as itself,
and what is left of a gradient is one product a layer. All of it is for use under `torch.no_grad()`; tests hold it to autograd.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mtf.learning import parallel
from mtf.learning.networks import Actor, Stack, layer
from mtf.learning.rows import Box


class Pass:
    """A pass of x [n, in] through the first `m` networks of a stack (None: all of them); `out` [m, n, o].

    What is asked below is a loss' slope in something, given `by_out` [m, n, o], its slope in `out`. The weights are the
    stack's own: ask before they take a step.
    """

    def __init__(self, stack: Stack, x: torch.Tensor, m: int | None = None) -> None:
        self.weights = [weight[:m] for weight in stack.weights]
        self.inputs: list[torch.Tensor] = []
        h = x.expand(len(self.weights[0]), *x.shape)
        for weight, bias in zip(self.weights, stack.biases, strict=True):
            self.inputs.append(torch.relu_(h) if self.inputs else h)
            h = layer(self.inputs[-1], weight, bias[:m])
        self.out = h

    def parameters(self, by_out: torch.Tensor) -> list[torch.Tensor]:
        """In the parameters of the stack, or of its first m networks, in their order."""
        by_weight: list[torch.Tensor] = []
        by_bias: list[torch.Tensor] = []
        by = by_out
        for depth in reversed(range(len(self.weights))):
            h = self.inputs[depth]
            by_weight.insert(0, (h * by).sum(1).unsqueeze(2) if by.shape[2] == 1 else torch.bmm(h.transpose(1, 2), by))
            by_bias.insert(0, by.sum(1, keepdim=True))
            if depth:
                by = self._below(depth, by)
        return by_weight + by_bias

    def input(self, by_out: torch.Tensor) -> torch.Tensor:
        """In each network's x [m, n, in]."""
        by = by_out
        for depth in reversed(range(len(self.weights))):
            by = self._below(depth, by)
        return by

    def _below(self, depth: int, by: torch.Tensor) -> torch.Tensor:
        """From what a layer gives to what the layer below gives: ReLU passes on what is above 0."""
        weight = self.weights[depth].transpose(1, 2)
        by = by * weight if weight.shape[1] == 1 else torch.bmm(by, weight)
        return torch.ops.aten.threshold_backward(by, self.inputs[depth], 0) if depth else by


class ActorPass:
    """A pass of an actor; `u` [n, A]: its actions in the box (`actor_critic.squashed`); `reach` [n, A]: where the box ends."""

    def __init__(self, actor: Actor, z: torch.Tensor, box: Box, unit: torch.Tensor) -> None:
        _, lower, upper = box
        self.z, self.mlp = z, Pass(actor.mlp, z)
        self.tanh = torch.tanh(self.mlp.out[0] + z @ actor.skip)
        self.reach = (upper - lower) / 2 / unit
        self.u = self.tanh * self.reach

    def parameters(self, by_u: torch.Tensor) -> list[torch.Tensor]:
        """A loss' slopes in the actor's parameters, in their order, given its slope in u [n, A]."""
        by = by_u * self.reach * (1 - self.tanh.square())
        return [self.z.T @ by, *self.mlp.parameters(by[None])]


def squared_error(q: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`sum_i mean (q_i - y)^2`, q [m, n], y [n], and its slope in q."""
    error = q - y
    return error.square().mean(1).sum(), error * (2 / len(y))


class Flat:
    """Parameters laid into one vector, of which they become views, and Adam on it: a step is one operation, not six a tensor.

    Load states into the modules, but do not copy or convert them afterwards: their parameters would leave the vector.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        parts = list(parameters)
        self.vector = nn.Parameter(torch.cat([part.detach().flatten() for part in parts]))
        for part, place in zip(parts, self.vector.detach().split([part.numel() for part in parts]), strict=True):
            part.data = place.view_as(part)
        self.adam = torch.optim.Adam([self.vector], lr=lr, fused=True)

    def step(self, gradients: Iterable[torch.Tensor]) -> None:
        """A step by the parameters' gradients, in their order."""
        self.vector.grad = parallel.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        self.adam.step()
