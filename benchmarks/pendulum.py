"""TD3+BC here and d3rlpy's on Gymnasium's Pendulum-v1: the same logged episodes, nets, batch and steps; returns by rollout.

    python -m benchmarks.pendulum --d3rlpy-python D3/bin/python         (its environment: see benchmarks.learner_speed)

The log is of mixed quality: episodes in turn by a swing-up controller with noise, by the same drowned in noise, and at random.
Both learners read the same standardised observations and scaled rewards. The trainer itself is compared, its actor rolled out as
it is: `mtf train` would also shorten the step from the logged policy and distil it, which is not d3rlpy's task. Gymnasium is
in d3rlpy's environment, so every rollout is made there, ours from exported weights.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.learner_speed import d3rlpy_worker, problem_of, standardised
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.rows import Rows, tensors
from mtf.learning.td3_bc import TD3BC, TD3BCConfig
from mtf.learning.threads import fixed_threads
from mtf.learning.trainer import fit

GAMMA = 0.99
LR, TAU, ALPHA, NOISE, NOISE_CLIP, DELAY = 3e-4, 5e-3, 2.5, 0.2, 0.5, 2
"""d3rlpy's defaults, given to both."""


def main() -> None:
    """Collect, train, roll out, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d3rlpy-python", type=Path, required=True, help="the Python of d3rlpy's environment")
    parser.add_argument("--log-episodes", type=int, default=300, help="of 200 steps")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--hidden", default="64,64")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--roll-outs", type=int, default=50, help="episodes a policy, the same starts for all")
    parser.add_argument("--out", type=Path, help="also write every return here, as JSON")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    hidden = tuple(int(width) for width in arguments.hidden.split(","))
    found: dict[str, list[Any]] = {"here": [], "d3rlpy": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        d3rlpy_worker(arguments.d3rlpy_python, 1) as ask,
        fixed_threads(1),
    ):
        scratch = Path(folder)
        logged = ask(do="collect", path=str(scratch / "raw.npz"), episodes=arguments.log_episodes)
        data = dict(np.load(scratch / "raw.npz"))
        problem = problem_of(data, GAMMA)
        scale = float(problem.data.returns(GAMMA).std())
        rows = tensors(problem, scale)
        same = {**data, "observations": standardised(problem, data["observations"]), "rewards": data["rewards"] / scale}
        np.savez(scratch / "data.npz", **same)
        seen = ask(do="data", path=str(scratch / "data.npz"))
        assert seen["transitions"] == len(rows), "both must sample the same rows"
        print(f"{seen['versions']}; here torch {torch.__version__}; 1 thread, load {os.getloadavg()[0]:.1f}")
        settings = f"gamma {GAMMA}, lr {LR}, tau {TAU}, alpha {ALPHA}, noise {NOISE} (at most {NOISE_CLIP}), actor every {DELAY}"
        print(f"{len(rows)} transitions; hidden {hidden}, batch {arguments.batch}, {arguments.steps} steps; {settings}")
        print(f"{arguments.roll_outs} rollouts a policy, {arguments.seeds} seeds")
        print("mean returns in the log: " + ", ".join(f"{name} {value:.0f}" for name, value in logged["behaviour"].items()))
        print(f"the controller without noise: {np.mean(logged['controller']):.0f} (100 rollouts)", flush=True)
        for seed in range(arguments.seeds):
            began = time.perf_counter()
            weights = train(problem, rows, hidden, arguments, seed)
            seconds = time.perf_counter() - began
            np.savez(scratch / "policy.npz", **weights)
            ours = ask(do="roll_out", path=str(scratch / "policy.npz"), episodes=arguments.roll_outs)
            found["here"].append({"seconds": seconds, **ours})
            found["d3rlpy"].append(
                ask(
                    do="train",
                    hidden=hidden,
                    steps=arguments.steps,
                    seed=seed,
                    episodes=arguments.roll_outs,
                    scale={"mean": problem.mean.tolist(), "scale": problem.scale.tolist()},
                    settings={
                        "batch_size": arguments.batch,
                        "gamma": GAMMA,
                        "actor_learning_rate": LR,
                        "critic_learning_rate": LR,
                        "tau": TAU,
                        "alpha": ALPHA,
                        "target_smoothing_sigma": NOISE,
                        "target_smoothing_clip": NOISE_CLIP,
                        "update_actor_interval": DELAY,
                    },
                )
            )
            each = ", ".join(
                f"{name} {np.mean(of[-1]['returns']):.1f} in {of[-1]['seconds']:.0f} s" for name, of in found.items()
            )
            print(f"seed {seed}: {each}", flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"log": logged, "found": found}))
    print(table(found))


def train(
    problem: Problem, rows: Rows, hidden: tuple[int, ...], arguments: argparse.Namespace, seed: int
) -> dict[str, np.ndarray]:
    """The trainer's loop on all rows; the actor's weights as benchmarks/d3rlpy_worker.py reads them."""
    config = TD3BCConfig(
        steps=arguments.steps,
        batch=arguments.batch,
        critic_hidden=hidden,
        actor_hidden=hidden,
        lr=LR,
        tau=TAU,
        alpha=ALPHA,
        noise=NOISE,
        noise_clip=NOISE_CLIP,
        delay=DELAY,
    )
    agent = TD3BC(problem, rows.all, config, torch.Generator().manual_seed(seed))
    pool, none = torch.arange(len(rows)), torch.arange(0)
    fit(agent, rows, pool, none, none, config, seed=seed, name="td3_bc", progress=Progress(False))
    actor = agent.actor
    weights = {"mean": problem.mean, "scale": problem.scale, "skip": actor.skip.detach().numpy()}
    for layer, (weight, bias) in enumerate(zip(actor.mlp.weights, actor.mlp.biases, strict=True)):
        weights |= {f"weight_{layer}": weight[0].detach().numpy(), f"bias_{layer}": bias[0, 0].detach().numpy()}
    return weights


def table(found: dict[str, list[Any]]) -> str:
    """Mean return of each policy, and their mean over seeds with its 95 % t interval; the paired difference likewise."""
    means = {name: np.array([np.mean(run["returns"]) for run in runs]) for name, runs in found.items()}
    means["here - d3rlpy"] = means["here"] - means["d3rlpy"]
    lines = ["", "| TD3+BC | mean return [95 % interval] | by seed | seconds of training |", "|---|---|---|---|"]
    for name, values in means.items():
        half = (
            stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        )
        seconds = f"{np.median([run['seconds'] for run in found[name]]):.0f}" if name in found else ""
        each = ", ".join(f"{value:.0f}" for value in values)
        lines.append(
            f"| {name} | {values.mean():.1f} [{values.mean() - half:.1f}, {values.mean() + half:.1f}] | {each} | {seconds} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
