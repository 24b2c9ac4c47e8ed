"""What exploring costs and what it teaches: a box around production, Gaussian noise, uniformly random actions.

For each way: the reward of a day that explores against the same users' day without (paired by common random numbers), and the
true lift of what a learner makes of equal logs of it. The efficiency is the second over the first. `box` and `gaussian`
are also compared at the same standard deviation a dimension (a box of half-width h has h / sqrt 3).

    python -m benchmarks.exploration --world var/worlds/personalised --users 20000 --seeds 1,2,3
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.study_report import over_seeds
from mtf.exploration.noise import Noise
from mtf.learning.run import train_on
from mtf.policy import bootstrap_policy
from mtf.world.explore import Exploring, explore, join
from mtf.world.truth import true_value
from mtf.world.world import World

TRUTH_SEED = 990_003
WAYS: tuple[tuple[Noise, float], ...] = (
    ("box", 0.15),
    ("box", 0.3),
    ("gaussian", 0.3 / 3**0.5),
    ("box", 0.6),
    ("gaussian", 0.6 / 3**0.5),
    ("uniform", 1.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--learners", default="slate_replay,linear_advantage")
    parser.add_argument("--users", type=int, default=20_000, help="of the logs of one way and seed, all of whom train")
    parser.add_argument("--step", type=float, default=0.3, help="half-width within which the learned policy may leave the start")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--truth-users", type=int, default=40_000)
    options = parser.parse_args()
    world = World.load(options.world)
    start = bootstrap_policy(world.spec)
    users = min(options.truth_users, world.n_users)
    still = true_value(world, start, users, TRUTH_SEED)
    learners, seeds = options.learners.split(","), [int(s) for s in options.seeds.split(",")]
    columns = "  ".join(f"{name + ' (SE)':>24}" for name in learners)
    print(f"{world.params.name}: {options.users:,} users of logs a cell, {len(seeds)} seeds, step of at most {options.step}")
    print(f"{'exploration':<16} {'sd':>5} {'reward while exploring (SE)':>28}  {columns}")
    for noise, width in tqdm(WAYS, unit="way"):
        cost, cost_se = true_value(world, Exploring(start, width, noise, seed=17), users, TRUTH_SEED).lift_over(still)
        lifts: dict[str, list[float]] = {name: [] for name in learners}
        errors: dict[str, list[float]] = {name: [] for name in learners}
        for seed in seeds:
            day = join([explore(world, start, options.users, "2026-01-02", 1000 * seed + 1, width, noise=noise)])
            for name in learners:
                with tempfile.TemporaryDirectory() as out:
                    found = train_on(
                        day,
                        Path(out) / "bundle",
                        algorithm=name,
                        baseline="bootstrap",
                        half_width=np.full(world.spec.action_width, options.step, np.float32),
                        seed=seed,
                        progress=False,
                    )
                lift, se = true_value(world, found.policy, users, TRUTH_SEED).lift_over(still)
                lifts[name].append(lift)
                errors[name].append(se)
        sd = {"box": width / 3**0.5, "gaussian": width, "uniform": float("nan")}[noise]
        cells = []
        for name in learners:
            mean, se = over_seeds(np.array(lifts[name]), np.array(errors[name]))
            cells.append(f"{100 * mean:+17.2f} % ({100 * se:.2f})")
        label = f"{noise} {width:.2f}" if noise != "uniform" else "uniform"
        tqdm.write(f"{label:<16} {sd:5.2f} {100 * cost:+19.2f} % ({100 * cost_se:.2f})  {'  '.join(cells)}")


if __name__ == "__main__":
    main()
