"""What goes wrong in production, as changes to a world: each returns another world, named after what happened.

For tests and studies of the rooms that must notice: drift, the gate, the canary's guardrails and intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mtf.errors import InputError
from mtf.policy import Lineage, Policy, bootstrap_policy, constant_policy
from mtf.world.params import HEADS, WorldParams
from mtf.world.truth import true_value
from mtf.world.world import World

BISECTIONS = 14


def shifted_population(world: World, group: int = 0, factor: float = 3.0) -> World:
    """Users of one group come `factor` times as often. Raises InputError."""
    names = world.params.group_names
    if not 0 <= group < len(names) or factor <= 0:
        raise InputError(f"scenario: group {group}, factor {factor}; groups are 0..{len(names) - 1}, the factor is above 0")
    weight = np.where(world.params.user_group == group, factor, 1.0) * world.params.user_weight
    return _changed(world, f"{names[group]} come {factor:g} times as often", user_weight=weight.astype(np.float32))


def new_items(world: World, share: float = 0.3, seed: int = 1) -> World:
    """A share of the items is replaced by new ones with other worth, about which the scores know the average alone."""
    if not 0 < share <= 1:
        raise InputError(f"scenario: share {share}; keep it in (0, 1]")
    rng = np.random.default_rng(seed)
    params = world.params
    fresh = rng.permutation(world.n_items)[: max(int(share * world.n_items), 1)]
    item_key = params.item_key.copy()
    item_key[fresh] = int(params.item_key.max()) + 1 + np.arange(len(fresh))
    true_item, score_item = params.true_item.copy(), params.score_item.copy()
    true_item[fresh] = params.true_item[rng.permutation(fresh)]
    score_item[fresh] = params.score_item.mean(axis=0)
    return _changed(world, f"{share:.0%} new items", item_key=item_key, true_item=true_item, score_item=score_item)


def broken_head(world: World, head: str = "valid") -> World:
    """One head's score model answers its average to every request. Raises InputError on an unknown head."""
    if head not in HEADS:
        raise InputError(f"scenario: head {head!r}; use one of {', '.join(HEADS)}")
    k = HEADS.index(head)
    tables: dict[str, Any] = {}
    for name in ("score_user", "score_item", "score_user_tag", "score_user_duration"):
        table = getattr(world.params, name).copy()
        table[..., k] = table[..., k].mean(dtype=np.float64)
        tables[name] = table
    noise = list(world.params.scalars.score_noise)
    noise[k] = 0.0
    params = world.params.with_scalars(score_noise=tuple(noise))
    return World(replace(params, name=f"{params.name}: the {head} score is stuck", **tables))


def seasonal(world: World, amount: float = 0.3) -> World:
    """A holiday: everybody's logit of a click is higher by `amount`, and the base rate of leaving exp(amount) times lower.

    Sessions last longer than that alone would make them, for clicks please users: 1.54 times as long in `default` at .3.
    """
    s = world.params.scalars
    click, *rest = s.true_intercept
    params = world.params.with_scalars(true_intercept=(click + amount, *rest), leave_base=s.leave_base * float(np.exp(-amount)))
    return World(replace(params, name=f"{params.name}: seasonal {amount:+g}"))


def correlated_users(world: World, size: int = 50, factor: float = 2.0) -> World:
    """Users in circles of `size` share each day's effect, which is `factor` times as large."""
    if size < 1 or factor < 0:
        raise InputError(f"scenario: size {size}, factor {factor}; give at least 1, and no negative factor")
    sd = tuple(float(x) * factor for x in world.params.scalars.day_sd)
    params = world.params.with_scalars(day_sd=sd)
    return World(replace(params, name=f"{params.name}: circles of {size}", user_circle=np.arange(world.n_users) // size))


def worse_policy(world: World, loss: float, *, users: int = 20_000, seed: int = 313) -> tuple[Policy, float, float]:
    """(policy, its true lift, standard error): a constant setting whose session reward is about `loss` below the start's.

    On the straight line from the start to the worst ranking by a single head, found by bisection with common random numbers.
    Raises InputError where even that one is not so bad.
    """
    spec = world.spec
    start = bootstrap_policy(spec)
    users = min(users, world.n_users)
    base = true_value(world, start, users, seed)

    def setting(end: np.ndarray, share: float) -> Policy:
        action = (1 - share) * np.array(spec.start) + share * end
        return constant_policy(action, spec.state_width, spec=spec, lineage=Lineage(algorithm="world_worse"))

    def lift(policy: Policy, n: int = users) -> tuple[float, float]:
        return true_value(world, policy, n, seed).lift_over(base if n == users else true_value(world, start, n, seed))

    ends = []
    for k in range(spec.n_objectives):
        end = np.array(spec.start)
        end[: spec.n_objectives] = -1.0
        end[k] = 1.0
        ends.append(end)
    few = min(users, 3000)
    worst = min(ends, key=lambda end: lift(setting(end, 1.0), few)[0])
    found, se = lift(setting(worst, 1.0))
    if found > -loss:
        raise InputError(f"scenario: loss {loss:.1%}; the worst single head loses {-found:.1%} in this world, ask for less")
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found, se = lift(setting(worst, middle))
        if abs(found + loss) < 0.02 * loss:
            break
        low, high = (middle, high) if found > -loss else (low, middle)
    return setting(worst, middle), found, se


SCENARIOS: dict[str, Callable[..., World]] = {
    "shifted_population": shifted_population,
    "new_items": new_items,
    "broken_head": broken_head,
    "seasonal": seasonal,
    "correlated_users": correlated_users,
}


def _changed(world: World, what: str, **arrays: Any) -> World:
    params: WorldParams = world.params
    return World(replace(params, name=f"{params.name}: {what}", **arrays))
