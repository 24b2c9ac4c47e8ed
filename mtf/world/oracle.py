"""What could be gained in a world, as numbers with intervals: the best policies of four kinds, found in the world itself.

    start      production's setting
    global     the best one setting of the weights for everybody
    greedy     the best policy linear in the state that looks at the request alone (gamma = 0)
    best       the best policy linear in the state that looks at the whole session

Each search is run from several restarts, and the restart is chosen on users that the reported ones are not among. What is
reported is the value of an actual policy by play, paired with the start by common random numbers: a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from mtf.errors import InputError
from mtf.fileio import write_atomic
from mtf.policy import Lineage, Policy, bootstrap_policy, constant_policy
from mtf.world.headroom import best_global, best_linear, sample
from mtf.world.truth import Truth, true_value
from mtf.world.world import World

CHOOSE_SEED, REPORT_SEED = 660_100, 880_100
STEPS = ("requests under the start", "global weights", "greedy policies", "far-sighted policies", "playing what was found")


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How long to search. requests: replayed. generations: of CMA-ES. steps: of gradient ascent. users: that choose a restart."""

    requests: int = 24_000
    generations: int = 60
    steps: int = 600
    users: int = 16_000


QUICK = Effort(requests=6_000, generations=30, steps=200, users=4_000)


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """`of` over `over`: lift of the session's reward and its standard error; the same discounted with the spec's gamma."""

    of: str
    over: str
    lift: float
    se: float
    lift_discounted: float
    se_discounted: float

    @property
    def z(self) -> float:
        """Standard errors from 0."""
        return self.lift / self.se if self.se > 0 else 0.0


class Oracle(msgspec.Struct, frozen=True, kw_only=True):
    """oracle.json. values: {policy: mean session reward, its standard error}; metrics: {policy: means a session}."""

    world: str
    users: int
    seed: int
    restarts: int
    values: dict[str, tuple[float, float]]
    metrics: dict[str, dict[str, float]]
    gains: list[Gain]
    policies: dict[str, str]

    def gain(self, of: str, over: str = "start") -> Gain:
        """One comparison. Raises KeyError where it was not made."""
        for gain in self.gains:
            if (gain.of, gain.over) == (of, over):
                return gain
        raise KeyError(f"{of} over {over}")


PAIRS = (("global", "start"), ("greedy", "start"), ("best", "start"), ("best", "global"), ("best", "greedy"))


def find(
    world: World,
    *,
    users: int = 40_000,
    restarts: int = 3,
    seed: int = 0,
    effort: Effort | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Oracle, dict[str, Policy]]:
    """Search and play; returns the figures and the policies by name.

    users: of the reported play (at most the world's). restarts: searches of each kind. Raises InputError.
    """
    if restarts < 1 or users < 2:
        raise InputError(f"oracle: restarts {restarts}, users {users}; give at least 1 and 2")
    say, effort = progress or (lambda _: None), effort or Effort()
    spec, users = world.spec, min(users, world.n_users)
    say(STEPS[0])
    replays = [sample(world, effort.requests, seed + r) for r in range(restarts)]
    start = bootstrap_policy(spec)
    say(STEPS[1])
    actions = [
        best_global(replay, start, gamma=1.0, seed=seed + r, generations=effort.generations) for r, replay in enumerate(replays)
    ]
    settings = [constant_policy(a, spec.state_width, spec=spec, lineage=Lineage(algorithm="world_global")) for a in actions]
    chosen = _Chooser(world, min(users, effort.users), CHOOSE_SEED + seed)
    found = {"start": start, "global": chosen.best(settings)}
    for name, gammas in (("greedy", (0.0,)), ("best", (spec.gamma, 1.0))):
        say(STEPS[2] if name == "greedy" else STEPS[3])
        tried = [
            best_linear(replay, from_, gamma=gamma, seed=seed + r, steps=effort.steps)
            for r, replay in enumerate(replays)
            for gamma in gammas
            for from_ in ([start] if name == "greedy" else [start, settings[r]])
        ]
        # what a richer family holds too may not do worse than a poorer one
        found[name] = chosen.best([*tried, *([found["global"], found["greedy"]] if name == "best" else [])])
    say(STEPS[4])
    truth = {name: true_value(world, policy, users, REPORT_SEED + seed) for name, policy in found.items()}
    figures = Oracle(
        world=world.params.name,
        users=users,
        seed=seed,
        restarts=restarts,
        values={name: (t.mean, t.se) for name, t in truth.items()},
        metrics={name: t.metrics for name, t in truth.items()},
        gains=[_gain(truth, of, over) for of, over in PAIRS],
        policies={name: policy.sha for name, policy in found.items()},
    )
    return figures, found


class _Chooser:
    """Picks the policy with the best session reward on users that nothing is reported on."""

    def __init__(self, world: World, users: int, seed: int) -> None:
        self.world, self.users, self.seed = world, users, seed
        self.known: dict[str, float] = {}

    def best(self, policies: Sequence[Policy]) -> Policy:
        return max(policies, key=self.value)

    def value(self, policy: Policy) -> float:
        if policy.sha not in self.known:
            self.known[policy.sha] = true_value(self.world, policy, self.users, self.seed).mean
        return self.known[policy.sha]


def _gain(truth: dict[str, Truth], of: str, over: str) -> Gain:
    (lift, se), (discounted, discounted_se) = (truth[of].lift_over(truth[over], discounted=d) for d in (False, True))
    return Gain(of=of, over=over, lift=lift, se=se, lift_discounted=discounted, se_discounted=discounted_se)


def write(found: Oracle, path: Path) -> None:
    """Write oracle.json."""
    write_atomic(Path(path), msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


def read(path: Path) -> Oracle:
    """Read oracle.json. Raises InputError."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Oracle)
    except FileNotFoundError:
        raise InputError(f"oracle: {path} does not exist; `mtf world oracle WORLD --out FOLDER` writes it") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"oracle: {path} is no oracle.json: {error}") from error


def lines(found: Oracle, gamma: float) -> list[str]:
    """The figures as text, with 95 % intervals."""
    out = [f"{'policy':<8} {'session reward':>22}   " + "   ".join(f"{m:>8}" for m in _SHOWN)]
    for name, (mean, se) in found.values.items():
        shown = "   ".join(f"{found.metrics[name][m]:8.4g}" for m in _SHOWN)
        out.append(f"{name:<8} {mean:10.4g} +- {1.96 * se:8.3g}   {shown}")
    out.append("")
    out.append(f"{'lift':<20} {'session reward [95 %]':>34} {'z':>6}   discounted with gamma {gamma} [95 %]")
    for gain in found.gains:
        parts = [
            f"{lift:+7.2%} [{lift - 1.96 * se:+.2%}, {lift + 1.96 * se:+.2%}]"
            for lift, se in ((gain.lift, gain.se), (gain.lift_discounted, gain.se_discounted))
        ]
        out.append(f"{gain.of + ' over ' + gain.over:<20} {parts[0]:>34} {gain.z:6.1f}   {parts[1]}")
    return out


_SHOWN = ("valid", "duration", "like", "interact", "requests")


def share_of_headroom(lift: float, found: Oracle) -> float:
    """`lift` (of session reward over the start) as a share of the best policy's; NaN where there is none to be had."""
    best = found.gain("best")
    return lift / best.lift if best.z > 3 else float(np.nan)
