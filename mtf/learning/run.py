"""Training, from transitions to a bundle with its report: what `mtf train` and the DAG's task call."""

from __future__ import annotations

import hashlib
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import mtf
from mtf.errors import InputError
from mtf.fileio import replaceable, require_writable, write_atomic
from mtf.learning import parallel
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.config import Config, with_overrides
from mtf.learning.diagnostics import slope_tests, step_report, value_calibration, warnings_of
from mtf.learning.distil import Distilled, act, distil, unmoved
from mtf.learning.problem import NAMED, Problem, box_of_another, constant_reward, prepare
from mtf.learning.progress import Progress
from mtf.learning.registry import algorithm as find_algorithm
from mtf.learning.threads import THREADS, fixed_threads
from mtf.learning.trainer import TrainerConfig
from mtf.learning.value import fit_value
from mtf.policy import Lineage, Policy, load_policy
from mtf.spec import FusionSpec
from mtf.transitions.table import MAPPED_FROM, TransitionSet, load_transitions

SHRINK_AT_MOST = 0.2
LARGEST_SEED = 2**31 - 2
UNSETTLED = (
    "unsettled_value: sessions are cut, and V at their ends still moved when its fit was stopped; log longer sessions, or use a "
    "smaller gamma"
)
CANDIDATES_AT_ONCE = 8192
CODE = (
    "learning",
    "transitions/arrays.py",
    "transitions/mapped.py",
    "transitions/table.py",
    "box.py",
    "features.py",
    "fusion.py",
    "policy.py",
    "spec.py",
)


@dataclass(frozen=True)
class TrainResult:
    """The policy, its content hash, and the report that lies beside it as train.json."""

    policy: Policy
    sha: str
    report: dict[str, Any]


def train(
    transitions: Path,
    out: Path | None,
    *,
    algorithm: str,
    baseline: str | Path,
    spec: FusionSpec | None = None,
    exploration: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    overrides: Mapping[str, str] | None = None,
    checkpoints: Path | None = None,
    dataset_md5: str | None = None,
    dataset_revision: str | None = None,
    progress: bool = True,
    mapped_from: int = MAPPED_FROM,
) -> TrainResult:
    """Train on the training users of `transitions` and write the bundle to `out` (None: write nothing).

    baseline: `bootstrap`, `logged` or a bundle's folder: the policy deployed now, around whose box the new one must stay.
    exploration: exploration.json of the box; None takes the box of the baseline's latest explored rows.
    steps: optimiser steps, for algorithms that have them. overrides: {setting: text} of the algorithm's configuration.
    checkpoints: a folder for checkpoints of algorithms that take steps; a run with the same arguments goes on from there.
    mapped_from: rows from which wide columns lie in files beside `out`, mapped, instead of in memory.
    Under torchrun the processes share the batches, and the first one writes.
    The same data, settings and seed give the same bundle, byte for byte. Raises InputError for what cannot be used.
    """
    if out is not None:
        _fresh_place(
            out, {"transitions": transitions, "baseline": baseline, "exploration": exploration, "checkpoints": checkpoints}
        )
    if checkpoints is not None:
        require_writable(checkpoints / "step")
    # what needs no rows comes before reading them
    with_overrides(find_algorithm(algorithm).config, dict(overrides or {}))
    if str(baseline) not in NAMED:
        load_policy(baseline)
    half_width = box_of = None
    if exploration is not None:
        from mtf.contracts.exploration import read_exploration

        document = read_exploration(exploration)
        half_width, box_of = np.array(document.half_width, np.float32), document.policy_sha
    near = out if out is not None else Path(tempfile.gettempdir()) / "policy"
    scratch = next(folder for folder in near.absolute().parents if folder.is_dir())
    data = load_transitions(transitions, users="train", spec=spec, scratch=scratch, mapped_from=mapped_from)
    with parallel.processes():
        return train_on(
            data,
            out if parallel.rank() == 0 else None,
            algorithm=algorithm,
            baseline=baseline,
            half_width=half_width,
            box_of=box_of,
            steps=steps,
            seed=seed,
            overrides=overrides,
            checkpoints=checkpoints,
            dataset_md5=dataset_md5,
            dataset_revision=dataset_revision,
            progress=progress and parallel.rank() == 0,
        )


def train_on(
    data: TransitionSet,
    out: Path | None,
    *,
    algorithm: str,
    baseline: str | Path,
    half_width: np.ndarray | None = None,
    box_of: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    overrides: Mapping[str, str] | None = None,
    checkpoints: Path | None = None,
    dataset_md5: str | None = None,
    dataset_revision: str | None = None,
    progress: bool = True,
) -> TrainResult:
    """`train` on transitions that are in memory already. The caller sees to it that no gate user is among them.

    box_of: hash of the policy around which `half_width` was chosen, None where nobody said so.
    """
    began = time.perf_counter()
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed {seed}: keep it from 0 to {LARGEST_SEED}")
    chosen = find_algorithm(algorithm)
    settings = dict(overrides or {})
    warnings: list[str] = []
    if steps is not None:
        if settings.get("steps", str(steps)) != str(steps):
            raise InputError(f"--steps {steps}, but --set steps={settings['steps']}; give one of the two")
        if "steps" in chosen.config.__dataclass_fields__:
            settings["steps"] = str(steps)
        else:
            warnings.append(f"steps_ignored: {algorithm} is a closed form, --steps {steps} changes nothing")
    config = with_overrides(chosen.config, settings)
    if isinstance(config, TrainerConfig) and config.keep == "best" and config.held_out == 0:
        raise InputError("--set keep=best held_out=0: nobody is held out to say which step was best; hold some out, or keep=last")
    if checkpoints is not None and not isinstance(config, TrainerConfig):
        warnings.append(f"checkpoints_ignored: {algorithm} takes no optimiser steps; it begins anew, in less time")
    stages = Progress(progress)
    with fixed_threads():
        problem = prepare(data, baseline, half_width=half_width, needs_exploration=config.needs_exploration)
        warnings += box_of_another("exploration.json", box_of, problem.baseline)
        if config.needs_exploration:
            warnings += constant_reward(problem.data)
        chosen.require(problem, config)
        kept = {}
        if checkpoints is not None and isinstance(config, TrainerConfig):
            kept["checkpoints"] = _checkpoints(checkpoints, problem, algorithm, config, seed)
            warnings += kept["checkpoints"].verify()
        stages.done("prepare")
        value = fit_value(problem)
        if not value.settled:
            warnings.append(UNSETTLED)
        stages.done("value")
        learned = chosen.learn(problem, value, config, seed=seed, progress=stages, **kept)
        stages.done("learn")
        lineage = Lineage(
            algorithm=algorithm,
            config={**config.to_dict(), "half_width": [round(float(h), 6) for h in problem.half_width]},
            seed=seed,
            dataset_md5=dataset_md5,
            dataset_revision=dataset_revision,
            code_sha=code_sha(),
            parent=problem.baseline.sha,
        )
        distilled, answer, shrunk = _distil_within(problem, learned.action, config, lineage, seed)
        stages.done("distil")
        report: dict[str, Any] = {
            "algorithm": {"name": algorithm, **learned.report},
            "config": config.to_dict(),
            "seed": seed,
            "baseline": {"name": problem.baseline.name, "sha": problem.baseline.sha},
            "half_width": problem.half_width.tolist(),
            "gamma": problem.gamma,
            "rows": {
                "used": len(problem.data),
                "explored": int(problem.signal.sum()),
                "explored_around_baseline": int(problem.current.sum()),
                "with_candidates": int(problem.data.has_candidates.sum()),
                "sessions": problem.data.n_sessions,
                "users": len(np.unique(problem.data.user)),
                "dropped": problem.dropped,
            },
            "value": value_calibration(problem, value),
            "tests": slope_tests(problem, value),
            "step": _step_taken(step_report(problem, answer), learned.report, shrunk),
            "distilled": distilled.report(),
        }
    report["warnings"] = [*problem.warnings, *warnings, *learned.report.get("warnings", []), *warnings_of(report)]
    stages.done("report")
    sha = distilled.policy.write(out) if out is not None else distilled.policy.sha
    report["policy_sha"] = sha
    report["seconds"] = {**stages.seconds, "total": round(time.perf_counter() - began, 3)}
    report["threads"] = THREADS
    report["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if out is not None:
        write_atomic(Path(out) / "train.json", msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return TrainResult(distilled.policy, sha, report)


def _step_taken(step: dict[str, Any], learned: Mapping[str, Any], shrunk: float) -> dict[str, Any]:
    """The step's report and by how much it was shrunk: `shrunk` by distilling, `of_wanted` of all that the algorithm wanted (both
    in half-widths)."""
    wanted = learned.get("rms_wanted", 0.0)
    return {**step, "shrunk": shrunk} | ({"of_wanted": step["rms_move"] / wanted} if wanted > 0 else {})


def _fresh_place(out: Path, read: Mapping[str, Path | str | None]) -> None:
    """Raises InputError where the bundle would replace what is read, or what is no bundle: before time is spent."""
    replaceable(out, "policy.json")
    for name, path in read.items():
        # checkpoints are made where there are none yet; `bootstrap` and `logged` are no places
        if path is None or (name != "checkpoints" and not Path(path).exists()):
            continue
        place, other = out.resolve(), Path(path).resolve()
        if place == other or place in other.parents:
            raise InputError(f"--out {out} would replace {name} {path}; give another folder")


def _checkpoints(folder: Path, problem: Problem, algorithm: str, config: Config, seed: int) -> Checkpoints:
    """Checkpoints that only a training of the same rows, settings, seed, code and number of processes will take up."""
    digest = hashlib.sha256(f"{algorithm} {seed} {code_sha()} {problem.baseline.sha} {parallel.size()}".encode())
    digest.update(msgspec.json.encode(config.to_dict(), order="sorted"))
    data = problem.data
    version = data.spec.version if data.spec is not None else None
    digest.update(f"{problem.gamma} {problem.half_width.tolist()} {version}".encode())
    read = (problem.z, problem.next_z, problem.u, problem.center, problem.weight, problem.signal, data.reward, data.terminal)
    # rows that did not explore have u = 0, but a critic of Q(s, a) reads what they served
    boxes = (data.action, data.center, data.lower, data.upper, data.next_center, data.next_lower, data.next_upper)
    of = (problem.group, problem.current, data.session, data.step, data.user, data.value_mask, data.behaviour)
    for column in (*read, *boxes, *of):
        digest.update(b"none" if column is None else np.ascontiguousarray(column).data)
    for user in data.user_ids:
        digest.update(f"{user} ".encode())
    logged = np.flatnonzero(data.has_candidates)
    for start in range(0, len(logged), CANDIDATES_AT_ONCE):
        scores, count = data.candidates(logged[start : start + CANDIDATES_AT_ONCE])
        digest.update(scores.data)
        digest.update(count.data)
    return Checkpoints(folder, digest.hexdigest())


def _distil_within(
    problem: Problem, action: np.ndarray, config: Config, lineage: Lineage, seed: int
) -> tuple[Distilled, np.ndarray, float]:
    """The network, its actions on the training rows, and the factor by which the step was shrunk.

    The step is measured on the network itself, as the gate does: a box that is cut at the edge of the space is narrower, so
    the same move is longer in it, and distilling adds its residual.
    """
    if (deployed := problem.baseline.policy) is not None and np.array_equal(action, problem.center):
        return unmoved(deployed, lineage, config), action, 1.0
    wanted = step_report(problem, action)["rms_y"]
    shrunk = min(1.0, 0.99 * config.max_rms_step / wanted) if wanted > 0 else 1.0
    while True:
        (wanted_now,) = problem.data.arrays.build(len(action), partial(_shorter, problem, action, shrunk))
        distilled = distil(problem, wanted_now, config, lineage, seed=seed)
        answer = act(distilled.policy, problem.data.state, problem.data.arrays)
        rms = step_report(problem, answer)["rms_y"]
        if rms <= config.max_rms_step or shrunk < SHRINK_AT_MOST:
            return distilled, answer, shrunk
        shrunk *= 0.99 * config.max_rms_step / rms


def _shorter(problem: Problem, action: np.ndarray, share: float, rows: slice) -> tuple[np.ndarray]:
    center = problem.center[rows]
    return ((center + share * (action[rows] - center)).astype(np.float32),)


@cache
def code_sha() -> str:
    """Hash (12 hex digits) of the sources that decide what a training gives; the same code gives the same bundle."""
    package = Path(mtf.__file__).parent
    files = sorted(f for name in CODE for f in ([package / name] if name.endswith(".py") else (package / name).rglob("*.py")))
    if not files:
        raise InputError(f"code: no sources at {package}; install the package with its .py files")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(package)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]
