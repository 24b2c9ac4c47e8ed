"""Networks: m critics as one stack of matrices, and an actor that starts at the deployed policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mtf.learning.rows import Batch

NARROW = 16
"""Columns below which a product of matrices is slow."""
WHOLE = 1 / 3
"""E u^2 of a uniform draw from a box that is not cut."""


class Stack(nn.Module):  # type: ignore[misc]
    """m independent ReLU networks run as batched matrix products: x [n, in] or [m, n, in] -> [m, n, out]."""

    def __init__(self, m: int, widths: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            bound = fan_in**-0.5
            self.weights.append(nn.Parameter((torch.rand(m, fan_in, fan_out, generator=generator) * 2 - 1) * bound))
            self.biases.append(nn.Parameter((torch.rand(m, 1, fan_out, generator=generator) * 2 - 1) * bound))
        # a parameter list looks its entries up by name, each time that it is asked
        self.layers = tuple(zip(self.weights, self.biases, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _run(x.expand(len(self.layers[0][0]), *x.shape) if x.dim() == 2 else x, self.layers)

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """The first network alone, x [n, in] -> [n, out]."""
        return _run(x[None], [(weight[:1], bias[:1]) for weight, bias in self.layers])[0]

    def over(self, shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """k inputs a row, shared [n, i] beside own [k, n, j] -> [m, k, n, out]: what `shared` adds is computed once."""
        ((weight, bias), *layers), split = self.layers, shared.shape[1]
        once = torch.matmul(shared, weight[:, :split]) + bias
        h = torch.matmul(own.flatten(0, 1), weight[:, split:]).unflatten(1, own.shape[:2]) + once[:, None]
        return _run(torch.relu_(h).flatten(1, 2), layers).unflatten(1, own.shape[:2]) if layers else h


def _run(h: torch.Tensor, layers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Layers (weight, bias) of m networks, h [m, n, in] -> [m, n, out]."""
    for i, (weight, bias) in enumerate(layers):
        # in place: a new tensor costs more than the operation
        h = layer(torch.relu_(h) if i else h, weight, bias)
    return h


def layer(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`h W_i + b_i` of m networks, h [m, n, in], W [m, in, out], b [m, 1, out] -> [m, n, out]."""
    if weight.shape[2] >= NARROW:
        return torch.baddbmm(bias, h, weight)
    # a single column is quicker still as the sum that it is
    return (product(h, weight) if weight.shape[2] > 1 else (h * weight.mT).sum(2, keepdim=True)) + bias


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a b` [.., n, o]. With few columns it takes two to four times as long as the same product transposed."""
    return a @ b if b.shape[-1] >= NARROW else (b.mT @ a.mT).mT


def bilinear(x: torch.Tensor, weights: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x' W_i y` of m matrices, x [n, a], W [m, a, b], y [n, b] -> [m, n]: one product of matrices, then sums along rows."""
    by_row = (weights.flatten(0, 1) @ y.T).unflatten(0, weights.shape[:2])
    return (by_row * x.T.contiguous()).sum(1)


class AdvantageCritics(nn.Module):  # type: ignore[misc]
    """m critics `Q_i(s, a) = V_i(s) + u . (G_i phi(s)) + H_i . (u^2 - E u^2)`, u the action's position in the box.

    The heads G, H start at 0: an action is worth nothing until data say so. V_i is the mean over the box, and `mean_square`,
    E u^2 there, keeps curvature out of it: 1/3 where the box is whole, less where it is cut. With 1/3 everywhere, H would learn
    of the states whose box is cut. An observation is (what V reads, phi).
    """

    def __init__(
        self, m: int, value_width: int, phi_width: int, action_width: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.value_net = Stack(m, (value_width, *hidden, 1), generator)
        self.slope = nn.Parameter(torch.zeros(m, action_width, phi_width))
        self.curve = nn.Parameter(torch.zeros(m, action_width))

    def value(self, observation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """V_i(s) [m, n]."""
        return self.value_net(observation[0])[..., 0]

    def heads(self) -> list[nn.Parameter]:
        """The parameters of A."""
        return [self.slope, self.curve]

    def logged_part(self, batch: Batch) -> torch.Tensor:
        """A_i at the logged action [m, n]."""
        return self.action_part(batch.now, batch.u, batch.mean_square)

    def action_part(
        self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor, mean_square: torch.Tensor | float = WHOLE
    ) -> torch.Tensor:
        """A_i(s, u) [m, n]; mean_square [n, A]."""
        return bilinear(u, self.slope, observation[1]) + self.curve @ (u.square() - mean_square).T

    def forward(
        self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor, mean_square: torch.Tensor | float = WHOLE
    ) -> torch.Tensor:
        """Q_i [m, n]."""
        return self.value(observation) + self.action_part(observation, u, mean_square)


class SlateCritics(nn.Module):  # type: ignore[misc]
    """m critics `Q_i = V_i(s) + f(s, a) . (b_0 + b_i)`, f what the action does to the slate that it ranks (`slate_critics`).

    At a logged action f is the logged slate's; at any other one it is replayed: `f = T(u, s)`, by slopes T [A, P, F] in
    u x phi and second derivatives [A, F], both fixed. b_0, `prior` [F] or [m, F]: the plug-in reward. b_i starts at 0.
    """

    def __init__(
        self,
        m: int,
        value_width: int,
        slopes: torch.Tensor,
        second: torch.Tensor,
        prior: torch.Tensor,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.value_net = Stack(m, (value_width, *hidden, 1), generator)
        self.away = nn.Parameter(torch.zeros(m, prior.shape[-1]))
        self.register_buffer("prior", prior)
        self.register_buffer("slopes", slopes)
        self.register_buffer("second", second)

    def value(self, observation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """V_i(s) [m, n]."""
        return self.value_net(observation[0])[..., 0]

    def heads(self) -> list[nn.Parameter]:
        """The parameters of A."""
        return [self.away]

    def logged_part(self, batch: Batch) -> torch.Tensor:
        """A_i of the logged slate [m, n]."""
        assert batch.slate is not None
        b, width = self.prior + self.away, batch.slate.shape[1]
        effect, z = batch.slate[:, : width // 2], batch.now[1][:, 1:]
        by_state = b[:, width:].unflatten(1, (effect.shape[1], z.shape[1]))
        return b[:, :width] @ batch.slate.T + bilinear(effect, by_state, z)

    def action_part(
        self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor, mean_square: torch.Tensor | float = WHOLE
    ) -> torch.Tensor:
        """A_i(s, u) [m, n], replayed; mean_square [n, A]: E u^2 in the box."""
        b = self.prior + self.away
        slope = torch.einsum("apf,mf->map", self.slopes, b)
        curve = 0.5 * b @ self.second.T
        return bilinear(u, slope, observation[1]) + curve @ (u.square() - mean_square).T

    def forward(
        self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor, mean_square: torch.Tensor | float = WHOLE
    ) -> torch.Tensor:
        """Q_i [m, n]."""
        return self.value(observation) + self.action_part(observation, u, mean_square)


class JointCritics(nn.Module):  # type: ignore[misc]
    """m critics Q_i(s, a), each an MLP of state and action together: the usual form, which misses the action."""

    def __init__(self, m: int, phi_width: int, action_width: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.net = Stack(m, (phi_width + action_width, *hidden, 1), generator)

    def value(self, observation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Q_i at the middle of the box [m, n]."""
        width = self.net.weights[0].shape[1] - observation[1].shape[-1]
        return self(observation, torch.zeros(len(observation[1]), width))

    def action_part(
        self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor, mean_square: torch.Tensor | float = WHOLE
    ) -> torch.Tensor:
        """Q_i itself [m, n]: the two are not apart in this form, and nothing asks for `mean_square`."""
        return self(observation, u)

    def forward(
        self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor, mean_square: torch.Tensor | float = WHOLE
    ) -> torch.Tensor:
        """Q_i [m, n]."""
        return self.net(self.joined(observation, u))[..., 0]

    def over(self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
        """Q_i [m, k, n] of k actions a state, u [k, n, A]."""
        return self.net.over(observation[1], u)[..., 0]

    def first(self, observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
        """Q_1 [n], the others not computed."""
        return self.net.first(self.joined(observation, u))[:, 0]

    @staticmethod
    def joined(observation: tuple[torch.Tensor, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
        """What the networks read [n, P + A]."""
        return torch.cat([observation[1], u], dim=-1)


class Actor(nn.Module):  # type: ignore[misc]
    """The step from the deployed policy in half-widths: `g(z) = z S + MLP(z)` [n, A]; starts at 0."""

    def __init__(self, state_width: int, action_width: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.skip = nn.Parameter(torch.zeros(state_width, action_width))
        self.mlp = Stack(1, (state_width, *hidden, action_width), generator)
        with torch.no_grad():
            self.mlp.weights[-1].zero_()
            self.mlp.biases[-1].zero_()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return product(z, self.skip) + self.mlp(z)[0]


def soft_update(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate source."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
