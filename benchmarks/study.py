"""The study: learner x exploration x world, equal data a cell, judged by the true value of what is learned.

    D1  Gaussian noise (sd .2) around the start, all days at once, one training
    D2  a box around the start, all days at once, one training
    D3  a box around the newest policy, a day a round, a training a round

Every policy that takes a step is deployed, whatever a gate would say; each value is played with common random numbers in
sessions that no log holds. A cell is a file: what is there is not run again, so that the study can be stopped and gone on
with. It says in which world it was played, how many users judged it and by which code, and what groups of them said, so that
any two cells can be compared on the same users.

    mtf world make --preset personalised --out var/worlds/personalised
    python -m benchmarks.study run --world var/worlds/personalised --out var/study --processes 2 \\
        --learners slate_replay,linear_advantage,naive --exploration D3 --seeds 1,2
    python -m benchmarks.study table --out var/study
    python -m benchmarks.study primary --out var/study                # the five comparisons that were committed to
    python -m benchmarks.study compare --out var/study --world personalised \\
        --pairs slate_replay@D3/integrated_rl@D3,naive@D3/start
    python -m benchmarks.study page --out docs/results/study --page docs/results/study.md    # all of it, with a figure
    python -m benchmarks.study quick --out var/study_quick            # an excerpt: half an hour on two cores
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import mtf.world
from benchmarks.study_page import write
from benchmarks.study_report import GAUSSIAN_SD, TRUTH_SEED, paired, primary, read, render, split_learner
from mtf.errors import InputError
from mtf.evaluation.gauc import Gauc, weighted_gauc
from mtf.exploration.noise import Noise
from mtf.fileio import sha256_file, write_atomic
from mtf.fusion import log_fused
from mtf.learning.config import with_overrides
from mtf.learning.registry import algorithm as find_algorithm
from mtf.learning.run import code_sha, train_on
from mtf.policy import Policy, bootstrap_policy
from mtf.world.explore import Exploring, explore, join
from mtf.world.play import play as each_step
from mtf.world.truth import Truth, pooled, reward_weights, true_value
from mtf.world.world import World

GAUC_SEED, GAUC_USERS = 990_002, 3000
FIRST_DAY = datetime.date(2026, 1, 1)
JUDGES = 50
WORLDS = Path(__file__).parents[1] / "docs" / "results" / "worlds.json"
LEARNED = ("used", "direct_effect", "held_out_action", "flat", "plug_in_worth")
QUICK = "slate_replay,linear_advantage,corner,plug_in,naive"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the cells that are not there yet")
    run.add_argument("--world", type=Path, required=True)
    run.add_argument(
        "--learners", required=True, help="names, or name:key=value:key=value, with commas between them (in a list of values: +)"
    )
    run.add_argument("--exploration", default="D3", help="of D1, D2, D3, with commas")
    run.add_argument("--seeds", default="1", help="with commas; tune on seeds from 100 on, report on those below")
    run.add_argument("--users", type=int, default=20_000, help="a day; half of them train")
    run.add_argument("--days", type=int, default=3)
    run.add_argument("--box", type=float, default=0.3)
    run.add_argument("--fresh", action="store_true", help="train on the newest day alone")
    run.add_argument("--truth-users", type=int, default=40_000)
    run.add_argument("--truth-seeds", default=str(TRUTH_SEED), help="with commas; as many draws of so many users judge")
    run.add_argument("--processes", type=int, default=1, help="cells at once, a thread each")
    run.add_argument("--out", type=Path, required=True)
    table = commands.add_parser("table", help="print what is there")
    table.add_argument("--out", type=Path, required=True)
    five = commands.add_parser("primary", help="the committed comparisons, Holm over the five")
    five.add_argument("--out", type=Path, required=True)
    whole = commands.add_parser("page", help="write a page with all tables and comparisons, and its figure")
    whole.add_argument("--out", type=Path, required=True)
    whole.add_argument("--page", type=Path, required=True, help="Markdown; the figure goes beside it")
    compare = commands.add_parser("compare", help="any other paired differences over seeds, Holm over the pairs given")
    compare.add_argument("--out", type=Path, required=True)
    compare.add_argument("--world", required=True, help="with commas: the mean over the worlds")
    compare.add_argument("--apart", action="store_true", help="each world a comparison of its own, all in one family")
    for name, kind, usual in (("--users", int, 20_000), ("--days", int, 3), ("--box", float, 0.3)):
        compare.add_argument(name, type=kind, default=usual, help="of the cells to compare")
    compare.add_argument("--pairs", required=True, help="learner@D/learner@D, with commas; `start` for the start")
    quick = commands.add_parser("quick", help="an excerpt: personalised and null, five learners, three seeds")
    quick.add_argument("--out", type=Path, required=True)
    quick.add_argument("--users", type=int, default=20_000)
    options = parser.parse_args()
    if options.command == "quick":
        excerpt(options.out, options.users)
        return
    if options.command == "compare":
        pairs = [(one, other) for one, other in (pair.split("/") for pair in options.pairs.split(","))]
        worlds = options.world.split(",")
        print(paired(read(options.out), worlds, pairs, options.users, options.days, options.box, apart=options.apart))
        return
    if options.command == "page":
        write(read(options.out), json.loads(WORLDS.read_text()), options.page)
        return
    if options.command == "primary":
        print(primary(read(options.out)))
        return
    if options.command == "table":
        print(render(read(options.out), json.loads(WORLDS.read_text())))
        return
    cells = [
        cell_of(options.world.name, learner, exploration, int(seed), options.users, options.days, options.box, not options.fresh)
        for seed in options.seeds.split(",")
        for exploration in options.exploration.split(",")
        for learner in options.learners.split(",")
    ]
    judges = Judges(options.truth_users, tuple(int(seed) for seed in options.truth_seeds.split(",")))
    run_cells(options.world, cells, options.out, judges, options.processes)


class Judges(NamedTuple):
    """Who judges: a draw of `users` by each of `seeds`."""

    users: int = 40_000
    seeds: tuple[int, ...] = (TRUTH_SEED,)


def cell_of(
    world: str, learner: str, exploration: str, seed: int, users: int, days: int = 3, box: float = 0.3, pooled: bool = True
) -> dict[str, Any]:
    """What a cell is; its file is named by all of it."""
    return {
        "world": world,
        "learner": learner,
        "exploration": exploration,
        "seed": seed,
        "users": users,
        "days": days,
        "box": box,
        "pooled": pooled,
    }


def run_cells(world: Path, cells: list[dict[str, Any]], out: Path, judges: Judges, processes: int) -> None:
    """Run those of `cells` that have no file in `out`, each in a thread of its own process."""
    for learner in {cell["learner"] for cell in cells}:
        name, settings = split_learner(learner)
        with_overrides(find_algorithm(name).config, settings)
    played_in = world_sha(world)
    for cell in cells:
        require_alike(out / f"{_name(cell)}.json", played_in, judges)
    todo = [cell for cell in cells if not (out / f"{_name(cell)}.json").exists()]
    os.environ["OMP_NUM_THREADS"] = "1"
    workers = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))
    failed = []
    with workers as pool, tqdm(total=len(todo), unit="cell") as bar:
        running = {pool.submit(run_cell, world, cell, out, judges): cell for cell in todo}
        for done in as_completed(running):
            bar.update()
            if (error := done.exception()) is not None:
                failed.append(f"{_name(running[done])}: {error}")
                bar.write(failed[-1])
            else:
                bar.set_postfix_str(done.result())
    if failed:
        raise SystemExit("\n".join([f"{len(failed)} of {len(todo)} cells failed and left no file:", *failed]))


def require_alike(file: Path, world: str, judges: Judges) -> None:
    """Raises InputError where the cell was played in another world of that name, or judged by other users.

    Cells of before they said so are taken as they are, and as judged by TRUTH_SEED.
    """
    made = json.loads(file.read_text()) if file.exists() else {}
    of = {"world_sha": world, "truth_users": judges.users, "truth_seeds": list(judges.seeds)}
    before = {**of, "truth_seeds": [TRUTH_SEED], **made} if made else of
    for what, wanted in of.items():
        if before[what] != wanted:
            raise InputError(f"{file}: {what} is {before[what]}, here it is {wanted}; give another --out")


def _end_with(parent: int) -> None:
    """A worker ends when the process that started it was killed, instead of playing its cell to the end for nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_cell(folder: Path, cell: dict[str, Any], out: Path, judges: Judges) -> str:
    """Play one cell and write its file; returns its name."""
    # read before the cell is played: what is edited meanwhile is not what runs
    code = f"{code_sha()} {played_by()}"
    truth = _truths(folder, judges)
    began = time.perf_counter()
    rounds = list(play(truth.world, cell, truth))
    seconds = time.perf_counter() - began
    of = {"world_sha": world_sha(folder), "truth_users": truth.users, "truth_seeds": list(judges.seeds), "code": code}
    found = {**cell, **of, "seconds": seconds, "judges": truth.judges(), "rounds": rounds}
    write_atomic(out / f"{_name(cell)}.json", json.dumps(found, indent=1).encode())
    return f"{cell['learner']} {cell['exploration']} seed {cell['seed']}"


def excerpt(out: Path, users: int) -> None:
    """What half an hour on two cores can show, and says of itself that it is an excerpt."""
    for preset, learners in (("personalised", QUICK), ("null", "slate_replay,linear_advantage")):
        world = out / "worlds" / preset
        if not world.exists():
            World.make(preset).save(world)
        cells = [
            cell_of(preset, learner, exploration, seed, users)
            for learner in reversed(learners.split(","))  # those that take longest first
            for seed in (1, 2, 3)
            for exploration in (("D1", "D2", "D3") if learner == "slate_replay" and preset == "personalised" else ("D3",))
        ]
        run_cells(world, cells, out, Judges(), 2)
    print("Excerpt: three seeds a cell; docs/study.md has the whole.")
    print(render(read(out), json.loads(WORLDS.read_text())))
    print(paired(read(out), ["personalised"], [("slate_replay@D3", f"{other}@D3") for other in QUICK.split(",")[1:]], users))


def play(world: World, cell: dict[str, Any], truth: _Truths) -> Iterator[dict[str, Any]]:
    """One row a training."""
    learner, settings = split_learner(cell["learner"])
    start = bootstrap_policy(world.spec)
    policy, days = start, []
    progressive = cell["exploration"] == "D3"
    noise: Noise = "gaussian" if cell["exploration"] == "D1" else "box"
    width = GAUSSIAN_SD if noise == "gaussian" else cell["box"]
    with tempfile.TemporaryDirectory() as folder:
        bundle = "bootstrap"
        for number in range(1, cell["days"] + 1):
            began = time.perf_counter()
            dt = (FIRST_DAY + datetime.timedelta(days=number)).isoformat()
            # learners of the same seed explore the same users
            day = explore(world, policy, cell["users"], dt, 1000 * cell["seed"] + number, width, noise=noise, of="train")
            days = [*days, day] if cell["pooled"] or not progressive else [day]
            if not progressive and number < cell["days"]:
                continue
            explored = time.perf_counter()
            out = Path(folder) / str(number)
            found = train_on(
                join(days) if len(days) > 1 else day,
                out,
                algorithm=learner,
                baseline=bundle,
                half_width=np.full(world.spec.action_width, cell["box"], np.float32),
                seed=cell["seed"],
                overrides=settings,
                progress=False,
            )
            trained = time.perf_counter()
            if found.report["step"]["rms_y"] > 0:  # else the deployed policy again, under a name that would age its own rows
                policy, bundle = found.policy, str(out)
            yield {
                "round": number,
                **truth.of(policy),
                "step": {k: found.report["step"][k] for k in ("rms_y", "edge_share", "mean_abs_move", "shrunk")},
                "tests": {k: found.report["tests"][k] for k in ("mean_abs_z", "signal_p", "p")},
                "learned": {k: found.report["algorithm"].get(k) for k in LEARNED},
                "held_out_error": [p["held_out"] for p in found.report["algorithm"].get("curve", []) if "held_out" in p],
                "rows": found.report["rows"]["used"],
                "sessions": found.report["rows"]["sessions"],
                "warnings": [w.split(":")[0] for w in found.report["warnings"]],
                "seconds": {"explore": explored - began, "train": trained - explored},
            }


class _Truths:
    """True values against the start, each policy's simulated once."""

    def __init__(self, world: World, judges: Judges) -> None:
        self.world, self.users, self.seeds = world, min(judges.users, world.n_users), judges.seeds
        self.shown = _Shown(world)
        start = bootstrap_policy(world.spec)
        self.start, self.start_gauc = self._play(start), self.shown.gauc(start)

    def of(self, policy: Policy) -> dict[str, Any]:
        """Lifts over the start with standard errors: session reward, discounted; behaviours (UVC and UDT are valid and
        duration of the paper); MTF-GAUC of both on the same impressions."""
        found = self._play(policy)
        (lift, se), (discounted, discounted_se) = (found.lift_over(self.start, discounted=d) for d in (False, True))
        metrics = {m: found.metrics[m] / self.start.metrics[m] - 1 for m in ("valid", "duration", "like", "requests")}
        gauc = {"start": self.start_gauc.value, "value": self.shown.gauc(policy).value}
        return {
            "lift": lift,
            "se": se,
            "discounted": discounted,
            "discounted_se": discounted_se,
            "metrics": metrics,
            "gauc": gauc,
            "judges": _groups(found),
        }

    def judges(self) -> list[float]:
        """What each group of users said of the start."""
        return _groups(self.start)

    def _play(self, policy: Policy) -> Truth:
        return pooled([true_value(self.world, policy, self.users, seed) for seed in self.seeds])


class _Shown:
    """Impressions of users that the start's box served, for MTF-GAUC: what a log of the first day would offer it."""

    def __init__(self, world: World) -> None:
        self.spec = spec = world.spec
        served = Exploring(bootstrap_policy(spec), 0.3, seed=GAUC_SEED)
        users = world.sample_users(GAUC_USERS, FIRST_DAY.isoformat(), GAUC_SEED)
        cohort = world.cohort(users, dt=FIRST_DAY.isoformat(), seed=GAUC_SEED, width=8192)
        weights, parts = reward_weights(world), []
        for seen, state, shown, feedback in each_step(cohort, served):
            scores = np.take_along_axis(seen.scores, shown[..., None], axis=1)
            parts.append((seen.rows, state, scores, feedback.valid, feedback.behaviours() @ weights))
        self.user, self.state, self.scores, self.valid, self.reward = (np.concatenate(part) for part in zip(*parts, strict=True))

    def gauc(self, policy: Policy) -> Gauc:
        """MTF-GAUC of the policy's final scores."""
        final = log_fused(self.spec, policy.act(self.state), self.scores)
        user = np.repeat(self.user, self.valid.shape[1])
        found = weighted_gauc(user, self.valid.ravel(), final.ravel(), self.reward.ravel() + 1.0)
        assert found is not None, "no user has both a valid and another impression"
        return found


@functools.cache
def _truths(folder: Path, judges: Judges) -> _Truths:
    """Loaded and played once a process."""
    return _Truths(World.load(folder), judges)


def _groups(truth: Truth) -> list[float]:
    """Mean session reward of JUDGES groups of users, the same for every policy."""
    order = np.random.default_rng(0).permutation(len(truth.sessions))
    return [round(float(truth.sessions[part].mean()), 4) for part in np.array_split(order, JUDGES)]


def world_sha(folder: Path) -> str:
    """Hash (12 hex digits) of a world's files."""
    return _hashed(sorted(folder.iterdir()))


@functools.cache
def played_by() -> str:
    """Hash (12 hex digits) of what plays and judges a cell, beside the learners."""
    return _hashed([Path(__file__), *sorted(Path(mtf.world.__file__).parent.rglob("*.py"))])


def _hashed(files: list[Path]) -> str:
    """Of their names and bytes, 12 hex digits."""
    lines = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _name(cell: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:8]
    learner = cell["learner"].replace(":", "_").replace("=", "-")
    return f"{cell['world']}-{cell['exploration']}-{learner}-s{cell['seed']}-{digest}"


if __name__ == "__main__":
    main()
