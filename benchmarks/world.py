"""How fast the world plays: requests a second of in-process simulation (candidates, ranking, responses, leaving), no logs.

Sessions are split over threads of one process, and over processes; what is played does not depend on the split: the sums
that are printed are equal.

    python -m benchmarks.world --users 20000 --candidates 50
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np

from mtf.policy import bootstrap_policy
from mtf.world.params import BEHAVIOURS
from mtf.world.play import play
from mtf.world.world import World

DT, SEED = "2026-06-01", 77
WORLDS: list[World] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000, help="one session each")
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--width", type=int, default=4096, help="sessions at a time")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    WORLDS.append(World.make("default", scalars={"n_candidates": options.candidates}))
    chosen = WORLDS[0].sample_users(options.users, DT, SEED)
    print(f"{options.users:,} sessions, {options.candidates} candidates a request, {options.width} sessions at a time")
    print(f"{'':<12} {'requests':>9} {'seconds':>8} {'requests/s':>11}  click + valid")
    ways: dict[str, tuple[Callable[[], Executor], int]] = {
        "1 thread": (partial(ThreadPoolExecutor, 1), 1),
        "2 threads": (partial(ThreadPoolExecutor, 2), 2),
        "2 processes": (partial(ProcessPoolExecutor, 2), 2),
    }
    for name, (pool, parts) in ways.items():
        with pool() as executor:
            run = partial(_play, width=options.width // parts)
            list(executor.map(run, np.array_split(chosen[: 2 * parts], parts)))  # the pool has started
            times = []
            for _ in range(options.repeats):
                began = time.perf_counter()
                found = list(executor.map(run, np.array_split(chosen, parts)))
                times.append(time.perf_counter() - began)
        requests, total = sum(n for n, _ in found), sum(t for _, t in found)
        seconds = float(np.median(times))
        print(f"{name:<12} {requests:>9,} {seconds:8.2f} {requests / seconds:11,.0f}  {total:.0f}")


def _play(users: np.ndarray, width: int) -> tuple[int, float]:
    world = WORLDS[0]
    cohort, policy = world.cohort(users, dt=DT, seed=SEED, width=width), bootstrap_policy(world.spec)
    requests, total = 0, 0.0
    wanted = [BEHAVIOURS.index("click"), BEHAVIOURS.index("valid")]
    for _, states, _, feedback in play(cohort, policy):
        requests += len(states)
        total += float(feedback.behaviours()[:, :, wanted].sum())
    return requests, total


if __name__ == "__main__":
    main()
