"""The d3rlpy side of benchmarks.learner_speed and benchmarks.pendulum, in a virtual environment of its own.

It imports nothing of this package. It reads requests from stdin and writes answers to stdout, one line of JSON each:

    {"do": "data", "path": NPZ}                                     observations, actions, rewards, first of `speed` and `train`
    {"do": "speed", "algorithm": NAME, "hidden": [..], "settings": {..}, "warm": N, "steps": N}
    {"do": "collect", "path": NPZ, "episodes": N}                   Pendulum-v1 logged by a mixture of behaviours
    {"do": "train", "hidden": [..], "steps": N, "settings": {..}, "seed": N, "scale": {..}, "episodes": N}   TD3+BC, rolled out
    {"do": "roll_out", "path": NPZ, "episodes": N}                  a policy given as weights, rolled out
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import d3rlpy
import gymnasium
import numpy as np
import torch
from d3rlpy.models.encoders import VectorEncoderFactory

ALGORITHMS = {
    "td3_bc": d3rlpy.algos.TD3PlusBCConfig,
    "iql": d3rlpy.algos.IQLConfig,
    "cql_sac": d3rlpy.algos.CQLConfig,
    "batch_rl": d3rlpy.algos.BCQConfig,
}
TORQUE = 2.0
EPOCH = 1000
ROLL_OUT_SEED = 1_000_000
Controller = Callable[[np.ndarray], np.ndarray]


class Worker:
    """Holds the data set between requests."""

    dataset: Any

    def data(self, path: str) -> dict[str, Any]:
        """Episodes that are cut at each `end`, none of them terminal; d3rlpy samples all rows but those at an end."""
        found = np.load(path)
        n = len(found["end"])
        self.dataset = d3rlpy.dataset.MDPDataset(
            found["observations"], found["actions"], found["rewards"], np.zeros(n, np.float32), found["end"].astype(np.float32)
        )
        return {
            "transitions": self.dataset.transition_count,
            "versions": f"d3rlpy {d3rlpy.__version__}, torch {torch.__version__}",
        }

    def speed(self, algorithm: str, hidden: list[int], settings: dict[str, Any], warm: int, steps: int) -> dict[str, float]:
        """Seconds that `steps` updates take by d3rlpy's own loop, after `warm` others."""
        learner = _learner(algorithm, hidden, settings)
        _fit(learner, self.dataset, warm)
        began, cpu = time.perf_counter(), time.process_time()
        _fit(learner, self.dataset, steps)
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}

    def train(
        self, hidden: list[int], steps: int, settings: dict[str, Any], seed: int, scale: dict[str, Any], episodes: int
    ) -> dict[str, Any]:
        """TD3+BC on the data; returns [episodes] of its policy and the seconds that training took."""
        d3rlpy.seed(seed)
        learner = _learner("td3_bc", hidden, settings)
        began = time.perf_counter()
        _fit(learner, self.dataset, steps)
        seconds = time.perf_counter() - began
        mean, sd = (np.asarray(scale[name], np.float32) for name in ("mean", "scale"))
        found = roll_out(
            lambda x: TORQUE * learner.predict(np.clip((x - mean) / sd, -3, 3)[None].astype(np.float32))[0], episodes
        )
        return {"returns": found, "seconds": seconds}

    def roll_out(self, path: str, episodes: int) -> dict[str, Any]:
        """Returns [episodes] of `2 tanh(z S + MLP(z))`, z the standardised observation: weights as the trainer left them."""
        w = np.load(path)

        def act(x: np.ndarray) -> np.ndarray:
            z = np.clip((x - w["mean"]) / w["scale"], -3, 3).astype(np.float32)
            h, layer = z, 0
            while f"weight_{layer + 1}" in w:
                h = np.maximum(h @ w[f"weight_{layer}"] + w[f"bias_{layer}"], 0)
                layer += 1
            return TORQUE * np.tanh(z @ w["skip"] + h @ w[f"weight_{layer}"] + w[f"bias_{layer}"])

        return {"returns": roll_out(act, episodes)}

    def collect(self, path: str, episodes: int) -> dict[str, Any]:
        """Episodes in turn by a good controller (noise .3 of the torque's bound), by a poor one (noise 1) and at random."""
        environment = gymnasium.make("Pendulum-v1")
        rows: dict[str, list[Any]] = {"observations": [], "actions": [], "rewards": [], "end": []}
        by_behaviour: list[list[float]] = [[], [], []]
        for episode in range(episodes):
            rng = np.random.default_rng(episode)
            kind, total, done = episode % 3, 0.0, False
            seen, _ = environment.reset(seed=episode)
            while not done:
                noise = rng.normal(0, (0.3, 1.0, 0.0)[kind], 1)
                torque = rng.uniform(-TORQUE, TORQUE, 1) if kind == 2 else swing_up(seen) + TORQUE * noise
                torque = np.clip(torque, -TORQUE, TORQUE).astype(np.float32)
                after, reward, _, done, _ = environment.step(torque)
                for name, value in (("observations", seen), ("actions", torque / TORQUE), ("rewards", [reward]), ("end", done)):
                    rows[name].append(value)
                seen, total = after, total + float(reward)
            by_behaviour[kind].append(total)
        np.savez(path, **{name: np.array(v, bool if name == "end" else np.float32) for name, v in rows.items()})
        return {
            "behaviour": {n: float(np.mean(v)) for n, v in zip(("good", "poor", "random"), by_behaviour, strict=True)},
            "controller": roll_out(swing_up, 100),
        }


def swing_up(seen: np.ndarray) -> np.ndarray:
    """Pump energy until the pendulum can stand, then hold it there: proportional-derivative control near the top."""
    cos, sin, speed = (float(v) for v in seen)
    if cos > 0.85:
        return np.array([-12 * np.arctan2(sin, cos) - 3 * speed])
    # energy of a rod of mass and length 1 at g = 10, 0 where it stands still upright
    energy = speed**2 / 6 + 5 * (cos - 1)
    return np.array([-TORQUE * np.sign(energy) * (np.sign(speed) or 1.0)])


def roll_out(act: Controller, episodes: int) -> list[float]:
    """Undiscounted returns of the same starts for every policy."""
    environment = gymnasium.make("Pendulum-v1")
    found = []
    for episode in range(episodes):
        seen, _ = environment.reset(seed=ROLL_OUT_SEED + episode)
        total, done = 0.0, False
        while not done:
            seen, reward, _, done, _ = environment.step(np.clip(act(seen), -TORQUE, TORQUE))
            total += float(reward)
        found.append(total)
    return found


def _learner(algorithm: str, hidden: list[int], settings: dict[str, Any]) -> Any:
    encoder = VectorEncoderFactory(hidden_units=list(hidden))
    kinds = {"td3_bc": (), "iql": ("value",), "cql_sac": (), "batch_rl": ("imitator",)}[algorithm]
    encoders = {f"{kind}_encoder_factory": encoder for kind in ("actor", "critic", *kinds)}
    return ALGORITHMS[algorithm](**encoders, **settings).create(device="cpu:0")


def _fit(learner: Any, dataset: Any, steps: int) -> None:
    # its progress line averages all losses of the epoch every ten steps: long epochs would slow it down
    epoch = min(steps, EPOCH)
    assert steps % epoch == 0, f"{steps} steps are no multiple of {epoch}"
    learner.fit(
        dataset,
        n_steps=steps,
        n_steps_per_epoch=epoch,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    # d3rlpy logs to stdout
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
