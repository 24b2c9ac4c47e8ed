"""Evolution strategy: one setting of the weights for everybody, as production finds it before any learning of sessions.

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
from mtf.learning.slates import plug_in_weights, top_scores
from mtf.learning.value import Value


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig(Config):
    """steps: generations of CMA-ES. population: settings a generation. requests: logged requests that each is tried on.
    sigma: first spread, normalised. within_box: search the box around the deployed policy's mean action (False: the whole
        action space; the gate will refuse what lies outside the logged box).
    max_rms_step is not applied: the search is not a step along slopes.
    """

    steps: int = 40
    population: int = 12
    requests: int = 4000
    sigma: float = 0.1
    within_box: bool = True


def learn(problem: Problem, value: Value, config: EvolutionConfig, *, seed: int, progress: Progress) -> Learned:
    """Search, and answer the best setting to every state. Raises InputError where no candidates or no spec were logged."""
    import cma

    spec, rows = problem.data.spec, np.flatnonzero(problem.data.has_candidates)
    if spec is None or not len(rows):
        raise InputError("es: needs a spec and the candidates' scores of some requests; log them, or use another algorithm")
    rows = rows[:: max(1, len(rows) // config.requests)][: config.requests]
    scores, count = problem.data.candidates(rows)
    tensor = torch.from_numpy(scores)

    def slate_means(action: np.ndarray) -> np.ndarray:
        top, real = top_scores(spec, np.broadcast_to(action, (len(rows), len(action))).copy(), tensor, count)
        return ((top * real[..., None]).sum((0, 1)) / real.sum()).numpy().astype(np.float64)

    worth = plug_in_weights(spec) * spec.n_shown
    if problem.data.behaviour is not None:
        logged = _logged_means(problem, rows, tensor, count)
        seen = problem.data.behaviour[rows].mean(axis=0)
        for k, objective in enumerate(spec.objectives):
            if worth[k] > 0 and logged[k] > 0:
                worth[k] *= float(seen[spec.behaviours.index(objective)]) / (spec.n_shown * logged[k])
    start = problem.center.mean(axis=0).astype(np.float64)
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
    before = float(worth @ slate_means(start.astype(np.float32)))
    for _ in progress.over(range(config.steps), "es"):
        settings = search.ask()
        search.tell(settings, [-float(worth @ slate_means(np.asarray(s, np.float32))) for s in settings])
    best = np.asarray(search.result.xbest, np.float32)
    report = {
        "objective": "plug-in reward a request of the slates that one setting ranks on logged candidates",
        "before": before,
        "after": -float(search.result.fbest),
        "setting": best.tolist(),
        "evaluations": int(search.result.evaluations),
    }
    return Learned(np.broadcast_to(best, problem.center.shape).copy(), report)


def _logged_means(problem: Problem, rows: np.ndarray, scores: torch.Tensor, count: np.ndarray) -> np.ndarray:
    """Mean scores [K] of the slates that the logged actions ranked."""
    assert problem.data.spec is not None
    top, real = top_scores(problem.data.spec, problem.data.action[rows], scores, count)
    return ((top * real[..., None]).sum((0, 1)) / real.sum()).numpy().astype(np.float64)
