"""Gradients written out: passes that keep their layers, and losses that come with their slopes in the networks' outputs.

At width 64 autograd takes a quarter of a training step. Where a loss is a few sums of outputs its slopes are as short as itself,
and what is left of a gradient is one product a layer. All of it is for use under `torch.inference_mode()`, where nothing is noted
for autograd; tests hold it to autograd.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.adam import adam

from mtf.learning import parallel
from mtf.learning.networks import Actor, Stack, layer, product
from mtf.learning.rows import Box


class Pass:
    """A pass of x [n, in] through the first `m` networks of a stack (None: all of them); `out` [m, n, o].

    What is asked below is a loss' slope in something, given `by_out` [m, n, o], its slope in `out`. The weights are the
    stack's own: ask before they take a step.
    """

    def __init__(self, stack: Stack, x: torch.Tensor, m: int | None = None) -> None:
        layers = stack.layers if m is None else [(weight[:m], bias[:m]) for weight, bias in stack.layers]
        self.weights = [weight for weight, _ in layers]
        self.inputs: list[torch.Tensor] = []
        h = x.expand(len(self.weights[0]), *x.shape)
        for weight, bias in layers:
            self.inputs.append(torch.relu_(h) if self.inputs else h)
            h = layer(self.inputs[-1], weight, bias)
        self.out = h

    def parameters(self, by_out: torch.Tensor) -> list[torch.Tensor]:
        """In the parameters of the stack, or of its first m networks, in their order."""
        by_weight: list[torch.Tensor] = []
        by_bias: list[torch.Tensor] = []
        by = by_out
        for depth in reversed(range(len(self.weights))):
            h = self.inputs[depth]
            by_weight.insert(0, product(h.mT, by))
            by_bias.insert(0, by.sum(1, keepdim=True))
            if depth:
                by = self._below(depth, by)
        return by_weight + by_bias

    def last(self, k: int, by_out: torch.Tensor) -> torch.Tensor:
        """In the last k columns of each network's x [m, n, k]."""
        by = by_out
        for depth in reversed(range(len(self.weights))):
            by = self._below(depth, by, 0 if depth else -k)
        return by

    def _below(self, depth: int, by: torch.Tensor, begin: int = 0) -> torch.Tensor:
        """From what a layer gives to what the layer below gives, from column `begin` on: ReLU passes on what is above 0."""
        weight = self.weights[depth][:, begin:].mT
        by = by * weight if weight.shape[1] == 1 else torch.bmm(by, weight)
        return torch.ops.aten.threshold_backward(by, self.inputs[depth], 0) if depth else by


class ActorPass:
    """A pass of an actor; `u` [n, A]: its actions in the box (`actor_critic.squashed`); `reach` [n, A]: where the box ends."""

    def __init__(self, actor: Actor, z: torch.Tensor, box: Box, unit: torch.Tensor) -> None:
        _, lower, upper = box
        self.z, self.mlp = z, Pass(actor.mlp, z)
        self.tanh = torch.tanh(self.mlp.out[0] + product(z, actor.skip))
        self.reach = (upper - lower) / 2 / unit
        self.u = self.tanh * self.reach

    def parameters(self, by_u: torch.Tensor) -> list[torch.Tensor]:
        """A loss' slopes in the actor's parameters, in their order, given its slope in u [n, A]."""
        by = by_u * self.reach * (1 - self.tanh.square())
        return [product(self.z.T, by), *self.mlp.parameters(by[None])]


def squared_error(q: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`sum_i mean (q_i - y)^2`, q [m, n], y [n], and its slope in q."""
    error = q - y
    return error.square().mean(1).sum(), error * (2 / len(y))


def in_one_vector(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """A vector of which the parameters, in their order, become views: what is done to all of them is one operation.

    Load states into the modules, but do not copy or convert them afterwards: their parameters would leave the vector.
    """
    parts = list(parameters)
    vector = torch.cat([part.detach().flatten() for part in parts])
    for part, place in zip(parts, vector.split([part.numel() for part in parts]), strict=True):
        part.data = place.view_as(part)
    return vector


class Flat:
    """Parameters in one vector, and Adam on it."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        self.vector = nn.Parameter(in_one_vector(parameters))
        self.adam = torch.optim.Adam([self.vector], lr=lr, fused=True)

    def step(self, gradients: Iterable[torch.Tensor]) -> None:
        """A step by the parameters' gradients, in their order."""
        self.vector.grad = gradient = parallel.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        if not (state := self.adam.state[self.vector]):
            self.adam.step()  # which makes it
            return
        (group,) = self.adam.param_groups
        # what it would do, too, but around it takes longer than for it
        adam(
            [self.vector],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            **{name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")},
        )
