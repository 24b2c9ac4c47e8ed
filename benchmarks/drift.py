"""Is the drift alarm silent where nothing moved, and does it fire where something did?

    python -m benchmarks.drift [--users 3000] [--days 40] [--seed 1]

Simulated days of one world are judged as the chain judges them (`validate_day`: every suite, all pages). First `days` days on
which nothing changes but the day; 30 or so of them have a reference. Then, from the same history, five days of each of
several worlds that differ in one thing, and five days after a promotion, which is no drift. Prints a line a scenario.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtf.policy import Lineage, Policy, bootstrap_policy, constant_policy
from mtf.quality import validate_day
from mtf.quality.drift import read_limits
from mtf.quality.verdict import Verdict
from mtf.settings import ROOT
from mtf.world.params import HEADS, WorldParams
from mtf.world.presets import make
from mtf.world.simulate import simulate_day
from mtf.world.world import World

FIRST = datetime.date(2026, 3, 1)
BOX = 0.2
SHIFTED_DAYS = 5


def scenarios(params: WorldParams) -> dict[str, WorldParams]:
    """What moves, as worlds that differ from `params` in one thing."""
    s = params.scalars

    def moved(values: tuple[float, ...], head: str, by: float) -> tuple[float, ...]:
        return tuple(v + by * (h == head) for v, h in zip(values, HEADS, strict=True))

    weight = np.where(params.user_group == 0, 2.5, 1).astype(np.float32) * params.user_weight
    profile = params.profile.copy()
    profile[:, params.profile_names.index("activity")] += 0.4
    return {
        "scores: like scored higher by .3 logits": params.with_scalars(score_intercept=moved(s.score_intercept, "like", 0.3)),
        "scores: noise of click .15 -> .6": params.with_scalars(score_noise=moved(s.score_noise, "click", 0.45)),
        "state: activity reported .4 sd higher": replace(params, profile=profile),
        "state: one segment comes 2.5 times as often": replace(params, user_weight=weight),
        "rewards: users like less, -.7 logits": params.with_scalars(true_intercept=moved(s.true_intercept, "like", -0.7)),
        "rewards: users leave 1.5 times as fast": params.with_scalars(leave_base=1.5 * s.leave_base),
    }


class Days:
    """Simulates and judges day after day, in one folder of logs and one of verdicts."""

    def __init__(self, folder: Path, users: int, seed: int, expectations: Path) -> None:
        self.folder, self.users, self.seed, self.expectations = folder, users, seed, expectations

    def play(self, world: World, policy: Policy, box: float, number: int) -> Verdict:
        """Day `number` (0, 1, ...) of this world, served by this policy and box."""
        dt = str(FIRST + datetime.timedelta(days=number))
        logs, out = self.folder / "logs", self.folder / "quality"
        simulate_day(world, policy, self.users, dt, self.seed, box, logs)
        return validate_day(logs, dt, out, spec=world.spec, expectations_dir=self.expectations, policies={policy.sha: policy})

    def copy(self, folder: Path) -> Days:
        """The same history, to go on from in another way: what is kept of the days, not their logs."""
        shutil.copytree(self.folder / "quality", folder / "quality")
        return Days(folder, self.users, self.seed, self.expectations)


def alarms(verdict: Verdict) -> list[str]:
    """The reasons of drift."""
    return [r for r in verdict.reasons if "(drift." in r]


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--days", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    params = make("default", users=20_000, items=3000)
    world = World(params)
    start = bootstrap_policy(world.spec)
    with tempfile.TemporaryDirectory() as scratch:
        clean = Days(Path(scratch) / "clean", arguments.users, arguments.seed, ROOT / "expectations")
        verdicts = [clean.play(world, start, BOX, i) for i in range(arguments.days)]
        judged, limits = [v for v in verdicts if v.drift], read_limits(ROOT / "expectations")
        moved = [m for v in judged for m in v.drift]
        print(
            f"nothing moves: {len(judged)} of {len(verdicts)} days have a reference; {len(moved):,} feature-days, of which "
            f"{sum(m.violates(limits[m.kind]) for m in moved)} violate (largest PSI {max(m.psi for m in moved):.3f}, "
            f"largest shift {max(abs(m.shift) for m in moved):.3f}); alarms on {sum(bool(alarms(v)) for v in judged)} days; "
            f"verdicts: {', '.join(sorted({v.status for v in verdicts}))}",
            flush=True,
        )

        def scenario(name: str, play: Callable[[Days, int], Verdict]) -> None:
            days = clean.copy(Path(scratch) / "other")
            found = [alarms(play(days, arguments.days + i)) for i in range(SHIFTED_DAYS)]
            first = next((i + 1 for i, reasons in enumerate(found) if reasons), None)
            said = found[first - 1][0] if first else ""
            print(f"{name}: {f'alarm on day {first}: {said}' if first else 'no alarm in five days'}", flush=True)
            shutil.rmtree(days.folder)

        for name, other in scenarios(params).items():
            shifted = World(other)
            scenario(name, lambda days, i, shifted=shifted: days.play(shifted, start, BOX, i))  # type: ignore[misc]
        better = np.clip(np.array(world.spec.start) + 0.3 * np.sign(np.array(world.spec.start)), -1, 1)
        promoted = constant_policy(better, world.spec.state_width, spec=world.spec, lineage=Lineage(algorithm="constant"))
        scenario("another policy is promoted, with another box", lambda days, i: days.play(world, promoted, 0.1, i))
        scenario("the same policy, another box", lambda days, i: days.play(world, start, 0.3, i))
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
