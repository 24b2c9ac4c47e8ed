"""Evolution strategy: one setting of the weights for everybody, or for each segment of requests, as production finds it before
any learning of sessions.

CMA-ES (Hansen, the `cma` library) maximises the plug-in reward of the slates that a constant action ranks on logged
candidates: `mean over requests of n_shown * sum_k w_k factor_k mean_pred_k`, w_k the reward's weight of the behaviour that
head k predicts, factor_k its calibration on the logged slates. It sees no session, no user's response but through factor_k,
and no later request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtf.errors import InputError
from mtf.learning.config import Config
from mtf.learning.problem import Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned
from mtf.learning.slates import plug_in_weights, require_paid_scores, top_scores
from mtf.learning.step import Step, shorten
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig(Config):
    """steps: generations of CMA-ES (20 to 200). population: settings a generation (8 to 40). requests: logged requests that each
    is tried on (1000 to 50,000). sigma: first spread, normalised (.05 to .3).
    within_box: search the box around the deployed policy's mean action (False: the whole action space).
    segment: name of a state column, cut at its quantiles into parts, each with a setting of its own; empty: one setting for all.
    segments: how many parts (2 to 10).
    In the box each setting is tried as it would be served around the deployed policy's mean action: shortened to `max_rms_step`
    as any learner's step is, for more than that no gate could judge. Around a policy that differs by state what is served
    differs from it: each state's action is brought into that state's box.
    """

    steps: int = 40
    population: int = 12
    requests: int = 4000
    sigma: float = 0.1
    within_box: bool = True
    segment: str = ""
    segments: int = 3


def require(problem: Problem, config: EvolutionConfig) -> None:
    """Raises InputError where no spec or, of a segment, no candidates were logged, or where no column has the segment's name."""
    if problem.data.spec is None or not problem.data.has_candidates.any():
        raise InputError("es: needs a spec and the candidates' scores of some requests; log them, or use another algorithm")
    require_paid_scores("es", problem.data.spec)
    problem.data.require_whole_candidates()
    part, names = _segments(problem, config)
    logged = np.unique(part[problem.data.has_candidates])
    for number, name in enumerate(names):
        if number not in logged:
            raise InputError(f"es: no request with candidates where {name}; use fewer segments, or log more requests")


def learn(problem: Problem, value: Value, config: EvolutionConfig, *, seed: int, progress: Progress) -> Learned:
    """Search, and answer the best setting of its segment to every state."""
    logged = problem.data.has_candidates
    part, names = _segments(problem, config)
    worth = _worth(problem, _some(np.flatnonzero(logged), config.requests))
    action, found = np.empty_like(problem.center), []
    for number in range(len(names)):
        mine = part == number
        rows = _some(np.flatnonzero(mine & logged), config.requests)
        best = _search(problem, config, rows, worth, problem.center[mine].mean(axis=0), seed, progress)
        action[mine] = best["setting"]
        found.append({"segment": names[number], "share": float(mine.mean()), **best})
    square = sum(of["share"] * of["rms_wanted"] ** 2 for of in found)
    report = {
        "objective": "plug-in reward a request of the slates that a setting ranks on logged candidates",
        "rms_wanted": float(np.sqrt(square)),
        "settings": found,
    }
    return Learned(action, report)


def _segments(problem: Problem, config: EvolutionConfig) -> tuple[np.ndarray, list[str]]:
    """The segment of each row int [n], and the segments' names; equal values are never parted."""
    if not config.segment:
        return np.zeros(len(problem.data), int), ["all"]
    assert problem.data.spec is not None
    columns = [feature.name for feature in problem.data.spec.features]
    if config.segment not in columns:
        raise InputError(f"--set segment={config.segment}: no such column of the state; there are {', '.join(columns)}")
    x = np.asarray(problem.data.state[:, columns.index(config.segment)], np.float64)
    cuts = np.unique(np.quantile(x, np.arange(1, config.segments) / config.segments))
    cuts = cuts[cuts < x.max()]
    ends = [f"{config.segment} <= {cut:.4g}" for cut in cuts]
    return np.searchsorted(cuts, x, side="left"), [*ends, f"{config.segment} > {cuts[-1]:.4g}" if ends else "all"]


def _search(
    problem: Problem,
    config: EvolutionConfig,
    rows: np.ndarray,
    worth: np.ndarray,
    start: np.ndarray,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """CMA-ES on the requests `rows`, from the setting `start` [A]."""
    import cma

    scores, count = problem.data.candidates(rows)
    tensor = torch.from_numpy(scores)

    def step(setting: np.ndarray) -> Step:
        return shorten((setting - start)[None] / problem.unit, config.max_rms_step, problem.half_width > 0)

    def served(setting: np.ndarray) -> np.ndarray:
        return start + step(setting).y[0] * problem.unit if config.within_box else setting

    def promised(setting: np.ndarray) -> float:
        wanted = np.broadcast_to(served(setting).astype(np.float32), (len(rows), len(setting))).copy()
        return float(worth @ _means(problem, wanted, tensor, count))

    start = start.astype(np.float64)
    low, high = (
        (np.maximum(start - problem.half_width, -1), np.minimum(start + problem.half_width, 1))
        if config.within_box
        else (np.full(len(start), -1.0), np.ones(len(start)))
    )
    high = np.maximum(high, low + 1e-6)
    search: Any = cma.CMAEvolutionStrategy(
        np.clip(start, low, high),
        config.sigma,
        {"bounds": [low.tolist(), high.tolist()], "popsize": config.population, "seed": seed + 1, "verbose": -9},
    )
    before = promised(start)
    for _ in progress.over(range(config.steps), "es"):
        settings = search.ask()
        search.tell(settings, [-promised(np.asarray(s)) for s in settings])
    wanted, after = np.asarray(search.result.xbest), -float(search.result.fbest)
    if after <= before:
        wanted, after = start, before
    return {
        "setting": served(wanted).astype(np.float32).tolist(),
        "rms_wanted": step(wanted).rms_wanted,
        "before": before,
        "after": after,
        "evaluations": int(search.result.evaluations),
    }


def _worth(problem: Problem, rows: np.ndarray) -> np.ndarray:
    """float64 [K]: reward a request of one unit of each head's mean score over the slate, at the level of its behaviour."""
    spec, data = problem.data.spec, problem.data
    assert spec is not None
    worth = plug_in_weights(spec) * spec.n_shown
    if data.behaviour is not None:
        scores, count = data.candidates(rows)
        logged = _means(problem, data.action[rows], torch.from_numpy(scores), count)
        seen = data.behaviour[rows].mean(axis=0)
        for k, objective in enumerate(spec.objectives):
            if worth[k] > 0 and logged[k] > 0:
                worth[k] *= float(seen[spec.behaviours.index(objective)]) / (spec.n_shown * logged[k])
    return worth


def _means(problem: Problem, action: np.ndarray, scores: torch.Tensor, count: np.ndarray) -> np.ndarray:
    """Mean scores float64 [K] of the slates that the actions [m, A] rank."""
    assert problem.data.spec is not None
    top, real = top_scores(problem.data.spec, action, scores, count)
    return ((top * real[..., None]).sum((0, 1)) / real.sum()).numpy().astype(np.float64)


def _some(rows: np.ndarray, number: int) -> np.ndarray:
    """At most `number` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), number)).astype(int)]
