"""Draws of users' and videos' own effects from their posterior, given a log, for all heads of a response together.

Users show seven videos each and rarely like one, so their posterior is far from normal. It is drawn from by elliptical slices
(Murray, Adams and MacKay, AISTATS 2010): steps that leave it unchanged exactly, at no step size. A user's effects on the heads
go together, so they are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from mtf.world.fit_glm import Block, draw, fit

BURN_IN, BETWEEN = 15, 4
"""Rounds before the first draw, and between two."""

SWEEPS, ITEM_SWEEPS = 10, 4
"""Steps a round: of users, and of videos (before the first draw)."""

Effects = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Observed:
    """A head's rows: responses y [n] of user [n] to item [n], and eta [n], all that is known of their predictors.

    blocks: the effects, of which `user` is one cell a user and `item` the only one that users share. noise_variance: None for
    responses 0/1, which are logistic.
    """

    y: np.ndarray
    user: np.ndarray
    item: np.ndarray
    eta: np.ndarray
    blocks: Sequence[Block]
    noise_variance: float | None = None


def draw_effects(
    heads: Sequence[Observed], covariance: np.ndarray, rng: np.random.Generator, copies: int
) -> tuple[list[list[Effects]], np.ndarray]:
    """(`copies` draws [copies][heads] {block: effects [m]}, what each head's level was moved by [heads]).

    covariance [heads, heads]: of a user's effects. Videos' effects and levels are those of the first draw in all of them. In the
    first half of what the chain takes to forget where it began, levels are moved until a draw has the log's mean response.
    """
    level = np.zeros(len(heads))
    effects = [_begin(head, rng) for head in heads]
    for number in range(BURN_IN):
        effects = _users(heads, level, effects, covariance, rng)
        effects = [_videos(head, moved, own, rng) for head, moved, own in zip(heads, level, effects, strict=True)]
        if number < BURN_IN // 2:
            level += [_missing(*both) for both in zip(heads, level, effects, strict=True)]
    drawn = [effects]
    for _ in range(copies - 1):
        for _ in range(BETWEEN):
            effects = _users(heads, level, effects, covariance, rng)
        drawn.append(effects)
    return drawn, level


def _begin(head: Observed, rng: np.random.Generator) -> Effects:
    """A draw from the normal approximation, each head by itself."""
    return draw(fit(head.y, head.blocks, noise_variance=head.noise_variance, offset=head.eta), rng).theta


def _missing(head: Observed, level: float, effects: Effects) -> float:
    """What the level lacks, as a logit."""
    if head.noise_variance is not None:
        return 0.0
    return float(logit(head.y.mean()) - logit(expit(level + head.eta + _rows(head.blocks, effects)).mean()))


def _users(
    heads: Sequence[Observed], level: np.ndarray, effects: list[Effects], covariance: np.ndarray, rng: np.random.Generator
) -> list[Effects]:
    parts = [
        Part(h.y, moved + h.eta + own["item"][h.item], h.user, [b for b in h.blocks if b.name != "item"], h.noise_variance)
        for h, moved, own in zip(heads, level, effects, strict=True)
    ]
    root = np.linalg.cholesky(covariance)

    def prior() -> list[Effects]:
        out = [{b.name: rng.standard_normal(b.n_cells) * math.sqrt(b.variance) for b in part.blocks} for part in parts]
        together = rng.standard_normal((len(out[0]["user"]), len(parts))) @ root.T
        return [one | {"user": own} for one, own in zip(out, together.T, strict=True)]

    moved = slice_sampled(parts, effects, prior, rng, SWEEPS)
    return [old | new for old, new in zip(effects, moved, strict=True)]


def _videos(head: Observed, level: float, effects: Effects, rng: np.random.Generator) -> Effects:
    others, video = [b for b in head.blocks if b.name != "item"], [b for b in head.blocks if b.name == "item"]
    part = Part(head.y, level + head.eta + _rows(others, effects), head.item, video, head.noise_variance)

    def prior() -> list[Effects]:
        return [{b.name: rng.standard_normal(b.n_cells) * math.sqrt(b.variance) for b in video}]

    return effects | slice_sampled([part], [effects], prior, rng, ITEM_SWEEPS)[0]


def _rows(blocks: Sequence[Block], effects: Effects) -> np.ndarray:
    return np.asarray(sum(effects[b.name][b.cell] for b in blocks))


@dataclass(frozen=True, eq=False)
class Part:
    """Responses y [n], 0/1 or with normal noise of `noise_variance`, and what of their predictors is fixed [n].

    owner int64 [n]: rows of different owners share no effect of `blocks`, none of which has a design.
    """

    y: np.ndarray
    fixed: np.ndarray
    owner: np.ndarray
    blocks: Sequence[Block]
    noise_variance: float | None = None

    def loss(self, effects: np.ndarray, rows: np.ndarray, n_owners: int) -> np.ndarray:
        """Minus the log likelihood [owners] of `rows`, whose effects add up to `effects`."""
        eta, y = self.fixed[rows] + effects, self.y[rows]
        if self.noise_variance is None:
            each = np.maximum(eta, 0) + np.log1p(np.exp(-np.abs(eta))) - y * eta
        else:
            each = (y - eta) ** 2 / (2 * self.noise_variance)
        return np.bincount(self.owner[rows], each, n_owners)


def slice_sampled(
    parts: Sequence[Part],
    effects: Sequence[Effects],
    prior: Callable[[], list[Effects]],
    rng: np.random.Generator,
    sweeps: int,
) -> list[Effects]:
    """`sweeps` elliptical slices from the posterior of the parts' effects, beginning at `effects`; [parts] {block: effects [m]}.

    Owners are numbered alike in all parts and each has a slice of his own: given the rest, they are independent. `prior`
    draws all effects from their joint normal prior, of mean 0.
    """
    n_owners = 1 + max(int(part.owner.max()) for part in parts)
    owners = [{b.name: _owner_of_cell(b, part.owner, n_owners) for b in part.blocks} for part in parts]
    current = [{name: own[name] for name in of} for own, of in zip(effects, owners, strict=True)]
    for _ in range(sweeps):
        other = prior()
        here = [_rows(part.blocks, own) for part, own in zip(parts, current, strict=True)]
        there = [_rows(part.blocks, own) for part, own in zip(parts, other, strict=True)]
        pending = [np.arange(len(part.y)) for part in parts]
        allowed = rng.exponential(size=n_owners)
        allowed += sum(part.loss(own, rows, n_owners) for part, own, rows in zip(parts, here, pending, strict=True))
        angle = rng.uniform(0, 2 * np.pi, n_owners)
        low, high = angle - 2 * np.pi, angle.copy()
        open_ = np.ones(n_owners, bool)
        while open_.any():
            loss = np.zeros(n_owners)
            for part, a, b, rows in zip(parts, here, there, pending, strict=True):
                turn = angle[part.owner[rows]]
                loss += part.loss(a[rows] * np.cos(turn) + b[rows] * np.sin(turn), rows, n_owners)
            open_ &= loss > allowed
            low, high = np.where(open_ & (angle < 0), angle, low), np.where(open_ & (angle >= 0), angle, high)
            angle = np.where(open_, rng.uniform(low, high), angle)
            pending = [rows[open_[part.owner[rows]]] for part, rows in zip(parts, pending, strict=True)]
        current = [
            {name: own[name] * np.cos(angle[of]) + new[name] * np.sin(angle[of]) for name, of in cells.items()}
            for own, new, cells in zip(current, other, owners, strict=True)
        ]
    return current


def _owner_of_cell(block: Block, owner: np.ndarray, n_owners: int) -> np.ndarray:
    """int64 [m]. A user's cell is the user's, with rows or without: it turns with what the other parts say of him."""
    out = np.arange(block.n_cells) % n_owners
    out[block.cell] = owner
    return out
