"""Updates a second: these learners beside d3rlpy's, stacked critics beside separate ones, and where a step's time goes.

    python -m venv D3 && D3/bin/pip install torch==2.13.0 && D3/bin/pip install 'd3rlpy==2.8.*' torch==2.13.0
    python -m benchmarks.learner_speed d3rlpy --d3rlpy-python D3/bin/python
    python -m benchmarks.learner_speed ensemble
    python -m benchmarks.learner_speed profile

d3rlpy runs in that environment, in a process that waits while these learners are timed and the other way round. Both have the
same arrays, widths and batch, the same number of threads, and are pinned to as many cores. Timed are the libraries' own loops,
sampling included. Random data: what is learned does not matter here (see benchmarks.pendulum).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from mtf.learning import batch_rl, cql_sac, iql, td3_bc
from mtf.learning.actor_critic import ActorCritic, ActorCriticConfig
from mtf.learning.integrated_rl import IntegratedAgent, IntegratedRLConfig
from mtf.learning.memory import keep_freed_memory
from mtf.learning.naive import NaiveConfig
from mtf.learning.networks import Stack, soft_update
from mtf.learning.problem import Problem, prepare
from mtf.learning.progress import Progress
from mtf.learning.rows import Rows, tensors
from mtf.learning.threads import fixed_threads
from mtf.learning.trainer import Agent, descend, fit
from mtf.transitions.table import TransitionSet

STATE, ACTION, SESSIONS, LENGTH = 64, 8, 2000, 21
BATCH = 256
WARM, FEWEST = 10, 10
MATRIX_PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm")
Seconds = tuple[float, float]
"""On the clock, and of the process's CPU: the second is what to compare where other work keeps the machine busy."""
Measure = Callable[[int], Seconds]
"""Seconds for so many updates."""


@dataclass(frozen=True)
class Case:
    """A learner here and there. ours: settings beside widths and batch; theirs: the same of d3rlpy."""

    name: str
    algorithm: str
    agent: type[ActorCritic]
    config: type[ActorCriticConfig]
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("TD3+BC", "td3_bc", td3_bc.TD3BC, td3_bc.TD3BCConfig),
    Case("IQL", "iql", iql.IQL, iql.IQLConfig),
    # d3rlpy draws n each from the policy at s and at s' and uniformly, these learners n from the policy and n uniformly
    Case("CQL(SAC), 30 draws a state", "cql_sac", cql_sac.CQLSAC, cql_sac.CQLSACConfig, {"draws": 15}, {"n_action_samples": 10}),
    Case("CQL(SAC), as each ships: 8, 30", "cql_sac", cql_sac.CQLSAC, cql_sac.CQLSACConfig),
    Case(
        "BCQ, 10 proposals",
        "batch_rl",
        batch_rl.BatchRL,
        batch_rl.BatchRLConfig,
        {"latent": 2 * ACTION},
        {"n_action_samples": 10},
    ),
    Case("BCQ, as each ships: 10, 100", "batch_rl", batch_rl.BatchRL, batch_rl.BatchRLConfig, {"latent": 2 * ACTION}),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("d3rlpy", "ensemble", "profile"))
    parser.add_argument("--d3rlpy-python", type=Path, help="the Python of d3rlpy's environment")
    parser.add_argument("--threads", type=int, default=1, help="of each side; training runs with 1")
    parser.add_argument("--widths", default="256,64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="about so long each time")
    arguments = parser.parse_args()
    if arguments.what == "d3rlpy" and arguments.d3rlpy_python is None:
        parser.error("d3rlpy needs --d3rlpy-python: the Python of an environment with d3rlpy (see --help)")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} thread(s) on core(s) {sorted(os.sched_getaffinity(0))}, "
        f"load {os.getloadavg()[0]:.1f}, batch {BATCH}, state {STATE}, action {ACTION}",
        flush=True,
    )
    keep_freed_memory()  # as training does
    with fixed_threads(arguments.threads):
        {"d3rlpy": beside_d3rlpy, "ensemble": beside_modules, "profile": shares}[arguments.what](arguments)
    print(f"load {os.getloadavg()[0]:.1f}")


def beside_d3rlpy(arguments: argparse.Namespace) -> None:
    """A line for each learner and width."""
    data = random_data()
    problem = problem_of(data, gamma=0.99)
    rows = tensors(problem, 1.0, joint=True)
    with d3rlpy_worker(arguments.d3rlpy_python, arguments.threads) as ask, tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "data.npz"
        np.savez(path, **{**data, "observations": standardised(problem, data["observations"])})
        seen = ask(do="data", path=str(path))
        assert seen["transitions"] == len(rows), "both must sample the same rows"
        print(f"{seen['versions']}; {len(rows)} transitions")
        print(f"{'learner':<32} {'hidden':<10} {head('here')} {head('d3rlpy')} {'ratio':>18} {'by CPU time':>18}")
        for width in widths_of(arguments):
            for case in CASES:
                hidden = (width, width)

                def theirs(steps: int, case: Case = case, hidden: tuple[int, ...] = hidden) -> Seconds:
                    settings = {"batch_size": BATCH, **case.theirs}
                    answer = ask(do="speed", algorithm=case.algorithm, hidden=hidden, settings=settings, warm=WARM, steps=steps)
                    return float(answer["seconds"]), float(answer["cpu_seconds"])

                a, b = alternately(ours(case, problem, rows, hidden), theirs, arguments)
                print(f"{case.name:<32} {hidden!s:<10} {compared(a, b)}", flush=True)


def ours(case: Case, problem: Problem, rows: Rows, hidden: tuple[int, ...]) -> Measure:
    """The trainer's loop on a new agent."""

    def measure(steps: int) -> Seconds:
        agent = agent_of(case, problem, rows, hidden)
        train(agent, rows, case, hidden, WARM)
        began, cpu = time.perf_counter(), time.process_time()
        train(agent, rows, case, hidden, steps)
        return time.perf_counter() - began, time.process_time() - cpu

    return measure


def agent_of(case: Case, problem: Problem, rows: Rows, hidden: tuple[int, ...]) -> ActorCritic:
    """A new agent of the case."""
    config = config_of(case, hidden, 1)
    return case.agent(problem, rows.all, config, torch.Generator().manual_seed(0))  # type: ignore[call-arg]


def config_of(case: Case, hidden: tuple[int, ...], steps: int) -> ActorCriticConfig:
    """The case's settings."""
    return case.config(steps=steps, batch=BATCH, critic_hidden=hidden, actor_hidden=hidden, **case.ours)


def train(agent: ActorCritic, rows: Rows, case: Case, hidden: tuple[int, ...], steps: int) -> None:
    """So many updates on all rows; nobody is held out, as there."""
    pool, none = torch.arange(len(rows)), torch.arange(0)
    fit(agent, rows, pool, none, none, config_of(case, hidden, steps), seed=0, name=case.algorithm, progress=Progress(False))


def beside_modules(arguments: argparse.Namespace) -> None:
    """m critics as one stack of matrices, and as m modules: the same start, loss and optimiser; `apart` after 5 steps."""
    print(f"{'critics':<10} {'hidden':<10} {head('stacked')} {head('modules')} {'ratio':>18} {'by CPU time':>18}  apart")
    for width in widths_of(arguments):
        for m in (24, 48):
            hidden = (width, width)
            torch.manual_seed(0)
            (x, next_x), reward = torch.randn(2, BATCH, STATE + ACTION), torch.randn(BATCH)
            stack, modules = Ensemble(*stacked(m, hidden)), Ensemble(*separate(m, hidden))
            for _ in range(5):
                stack.step(x, next_x, reward)
                modules.step(x, next_x, reward)
            apart = float((stack.critics(x) - modules.critics(x)).abs().max().detach())
            a, b = alternately(stack.measure(x, next_x, reward), modules.measure(x, next_x, reward), arguments)
            print(f"{m:<10} {hidden!s:<10} {compared(a, b)}  {apart:.1e}", flush=True)


class Ensemble:
    """A step of critics that each follow their own target: TD error, Adam, soft update."""

    def __init__(self, critics: nn.Module, target: nn.Module) -> None:
        self.critics, self.target = critics, target
        self.parameters = list(critics.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=1e-3, fused=True)

    def step(self, x: torch.Tensor, next_x: torch.Tensor, reward: torch.Tensor) -> None:
        """x, next_x [n, S + A], reward [n]."""
        with torch.no_grad():
            y = reward + 0.9 * self.target(next_x)
        descend(self.optimiser, (self.critics(x) - y).square().mean(1).sum(), self.parameters)
        soft_update(self.target, self.critics, 0.005)

    def measure(self, *batch: torch.Tensor) -> Measure:
        """Seconds for so many steps on one batch."""

        def run(steps: int) -> Seconds:
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                self.step(*batch)
            return time.perf_counter() - began, time.process_time() - cpu

        return run


class Stacked(nn.Module):
    """Q [m, n] of a stack."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stack(x)[..., 0]


class Separate(nn.Module):
    """Q [m, n] of m modules with the stack's own parameters."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        last = len(stack.weights) - 1
        self.nets = nn.ModuleList()
        for i in range(stack.weights[0].shape[0]):
            layers: list[nn.Module] = []
            for number, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
                layer = nn.Linear(*weight.shape[1:])
                with torch.no_grad():
                    layer.weight.copy_(weight[i].T)
                    layer.bias.copy_(bias[i, 0])
                layers += [layer] if number == last else [layer, nn.ReLU()]
            self.nets.append(nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(x)[:, 0] for net in self.nets])


def stacked(m: int, hidden: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Critics and targets, drawn from fixed seeds."""
    critics, target = (Stack(m, (STATE + ACTION, *hidden, 1), torch.Generator().manual_seed(seed)) for seed in (1, 2))
    return Stacked(critics), Stacked(target)


def separate(m: int, hidden: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """The same numbers in modules."""
    critics, target = (Stack(m, (STATE + ACTION, *hidden, 1), torch.Generator().manual_seed(seed)) for seed in (1, 2))
    return Separate(critics), Separate(target)


def shares(arguments: argparse.Namespace) -> None:
    """Which share of a step's time is spent in matrix products, and the next costly operations."""
    problem = problem_of(random_data(), gamma=0.99)
    rows = tensors(problem, 1.0)
    for width in widths_of(arguments):
        hidden = (width, width)
        for m in (24, 48):
            (x, next_x), reward = torch.randn(2, BATCH, STATE + ACTION), torch.randn(BATCH)
            ensemble = Ensemble(*stacked(m, hidden))
            share(f"{m} stacked critics {hidden}", lambda _, e=ensemble, x=x, n=next_x, r=reward: e.step(x, n, r), arguments)
        for case in CASES:
            if "ships" not in case.name:
                share(f"{case.name} {hidden}", updates(agent_of(case, problem, rows, hidden), rows, BATCH), arguments)
    for name, config in (("integrated_rl", IntegratedRLConfig()), ("naive", NaiveConfig())):
        agent = IntegratedAgent(problem, rows.all, config, 0)
        share(f"{name} as it ships, batch {config.batch}", updates(agent, rows, config.batch), arguments)


def updates(agent: Agent, rows: Rows, batch: int) -> Callable[[int], object]:
    """A step of the agent on one of 64 batches."""
    pool = torch.randint(len(rows), (64, batch), generator=torch.Generator().manual_seed(0))
    return lambda step: agent.update(rows.take(pool[step % 64]), step)


def share(name: str, step: Callable[[int], object], arguments: argparse.Namespace) -> None:
    """Print the shares of one kind of step. The profiler itself costs some us an operation, which is not a product's."""
    for number in range(WARM):
        step(number + 1)
    began, plain = time.perf_counter(), 0
    while time.perf_counter() - began < arguments.seconds / 2:
        plain += 1
        step(plain)
    usual = (time.perf_counter() - began) / plain
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for number in range(min(plain, 200)):
            with record_function("step"):
                step(number + 1)
    events = {event.key: event for event in found.key_averages()}
    whole = events["step"].cpu_time_total
    products = sum(events[key].self_cpu_time_total for key in MATRIX_PRODUCTS if key in events)
    others = sorted((e for key, e in events.items() if key not in MATRIX_PRODUCTS), key=lambda e: -e.self_cpu_time_total)[:6]
    rest = ", ".join(f"{'Python and autograd' if e.key == 'step' else e.key} {e.self_cpu_time_total / whole:.0%}" for e in others)
    count = events["step"].count
    print(
        f"{name}: {1000 * usual:.2f} ms a step; matrix products {products / whole:.0%} of the profiled "
        f"{whole / count / 1000:.2f} ms, {products / count / 1e6 / usual:.0%} of the plain step; then {rest}",
        flush=True,
    )


def alternately(a: Measure, b: Measure, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Updates a second of both, in turn, each over about `seconds`: [repeats, 2], by the clock and by CPU time."""
    steps = [max(FEWEST, round(arguments.seconds * WARM / measure(WARM)[0])) for measure in (a, b)]
    rates: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for _ in range(arguments.repeats):
        for measure, count, into in zip((a, b), steps, rates, strict=True):
            into.append(count / np.array(measure(count)))
    return np.array(rates[0]), np.array(rates[1])


def head(name: str) -> str:
    """Over a median and its range."""
    return f"{name + ', updates/s':>22}"


def compared(a: np.ndarray, b: np.ndarray) -> str:
    """Median and range of both rates by the clock; the ratio of the medians, and the range over neighbours, by clock and CPU."""
    rates = [f"{np.median(r):>7.1f} ({r.min():>5.1f}-{r.max():>6.1f})" for r in (a[:, 0], b[:, 0])]
    ratios = [
        f"{np.median(x) / np.median(y):>5.2f} ({(x / y).min():.2f}-{(x / y).max():.2f})" for x, y in zip(a.T, b.T, strict=True)
    ]
    return " ".join(f"{text:>{width}}" for text, width in zip([*rates, *ratios], (22, 22, 18, 18), strict=True))


def widths_of(arguments: argparse.Namespace) -> list[int]:
    """--widths."""
    return [int(width) for width in arguments.widths.split(",")]


def random_data() -> dict[str, np.ndarray]:
    """Sessions of random numbers; the last row of each stands for its end and is no transition."""
    rng = np.random.default_rng(0)
    n = SESSIONS * LENGTH
    return {
        "observations": rng.normal(size=(n, STATE)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, ACTION)).astype(np.float32),
        "rewards": rng.normal(size=(n, 1)).astype(np.float32),
        "end": np.arange(n) % LENGTH == LENGTH - 1,
    }


def problem_of(data: dict[str, np.ndarray], gamma: float) -> Problem:
    """The rows but those at an end, explored in the whole of [-1, 1] around 0."""
    rows = np.flatnonzero(~data["end"])
    session = (np.cumsum(data["end"]) - data["end"])[rows].astype(np.int64)
    first = np.append(True, session[1:] != session[:-1])
    n, width = len(rows), data["actions"].shape[1]
    zero, one, nothing = np.zeros((n, width), np.float32), np.ones((n, width), np.float32), np.full(n, None, object)
    transitions = TransitionSet(
        session=session,
        step=np.arange(n) - np.maximum.accumulate(np.where(first, np.arange(n), 0)),
        user=session,
        user_ids=np.arange(session[-1] + 1).astype(str).astype(object),
        state=data["observations"][rows],
        next_state=data["observations"][rows + 1],
        action=data["actions"][rows],
        center=zero,
        lower=-one,
        upper=one,
        next_center=zero,
        next_lower=-one,
        next_upper=one,
        reward=data["rewards"][rows],
        terminal=np.zeros(n, bool),
        truncated=np.append(first[1:], True),
        exploring=np.ones(n, bool),
        policy_sha=nothing,
        arm=nothing,
        dt=nothing,
        fallback=nothing,
        ts=np.arange(n),
        value_mask=np.ones(data["observations"].shape[1], bool),
    )
    return prepare(transitions, "logged", gamma=gamma)


def standardised(problem: Problem, observations: np.ndarray) -> np.ndarray:
    """All observations as the problem's z, so that the other library reads the same numbers."""
    return np.clip((observations - problem.mean) / problem.scale, -3, 3).astype(np.float32)


@contextmanager
def d3rlpy_worker(python: Path, threads: int) -> Iterator[Callable[..., dict[str, Any]]]:
    """A process of benchmarks/d3rlpy_worker.py; yields what asks it."""
    process = subprocess.Popen(
        [str(python), str(Path(__file__).with_name("d3rlpy_worker.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    assert process.stdin is not None and process.stdout is not None
    reader, writer = process.stdout, process.stdin

    def ask(**request: Any) -> dict[str, Any]:
        writer.write(json.dumps(request) + "\n")
        writer.flush()
        answer = reader.readline()
        if not answer:
            sys.exit(f"{python} benchmarks/d3rlpy_worker.py ended on {request['do']}; run it by hand to see why")
        found: dict[str, Any] = json.loads(answer)
        return found

    try:
        yield ask
    finally:
        writer.close()
        process.wait()


if __name__ == "__main__":
    main()
