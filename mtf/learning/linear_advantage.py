"""Linear advantage: a closed form. `Q(s, a) = V(s) + sum_d u_d c_d . phi(s)`, fitted to the TD residual.

The residual `delta = r + gamma (1 - done) V(s') - V(s)` is regressed on `u_d phi(s)`: u is drawn by us, independent of the
state, so the slopes are causal. Coefficients are shrunk by empirical Bayes, in two groups: the global slopes (phi = 1) and
how they vary with the state. The policy steps along the slopes as far as their evidence carries (`step.evidence_step`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtf.learning.config import Config
from mtf.learning.problem import PARTS, Problem
from mtf.learning.progress import Progress
from mtf.learning.result import Learned, calibration
from mtf.learning.ridge import Moments, empirical_bayes, left_out, total, with_rows
from mtf.learning.step import blocks, confirmed, evidence_step, linear_slopes
from mtf.learning.value import CHUNK, Value


@dataclass(frozen=True, kw_only=True)
class LinearAdvantageConfig(Config):
    """threshold: posterior standard deviations of a slope that earn no step yet (0 to 2). kappa: how many more earn the full
    half-width (.5 to 3).
    confirm: standard deviations by which users that the advantage was not learned from must confirm it before any of the step
    is taken; 1 more earns all (0 to 3). More of each is more careful."""

    threshold: float = 1.0
    kappa: float = 1.0
    confirm: float = 1.0


def learn(problem: Problem, value: Value, config: LinearAdvantageConfig, *, seed: int, progress: Progress) -> Learned:
    """One step of policy improvement. Closed form: the seed changes nothing."""
    p, width = problem.phi.shape[1], problem.data.action_width
    parts = _moments(problem, value, progress)
    columns = p + np.arange(p * width)
    group = np.concatenate([np.full(p, -1), np.tile(np.r_[0, np.ones(p - 1, int)], width)])
    posterior = empirical_bayes(total(parts), group, uneven=True)
    coefficients = posterior.mean[columns].reshape(width, p)
    cov = blocks(posterior.cov[np.ix_(columns, columns)], width)
    slopes = linear_slopes(problem.phi, coefficients, cov, problem.data.arrays)
    step = evidence_step(
        slopes,
        kappa=config.kappa,
        threshold=config.threshold,
        max_rms=config.max_rms_step,
        varied=problem.half_width > 0,
        arrays=problem.data.arrays,
    )
    held = [(empirical_bayes(others, group, uneven=True).mean, part) for others, part in left_out(parts)]
    held_out = calibration(held, np.arange(p), columns)
    step, share = confirmed(step, held_out["z"], threshold=config.confirm, arrays=problem.data.arrays)
    report: dict[str, Any] = {
        "rms_wanted": step.rms_wanted,
        "sure_edge_share": step.wanted_edge_share,
        "held_out_action": held_out,
        "global_slope": coefficients[:, 0].tolist(),
        "global_slope_sd": np.sqrt(np.maximum(cov[:, 0, 0], 0)).tolist(),
        "tau": np.sqrt(posterior.tau2).tolist(),
        "confirmed": share,
    }
    return Learned(problem.step_action(step.y), report)


def _moments(problem: Problem, value: Value, progress: Progress) -> list[Moments]:
    """Of [phi, u x phi] against delta, for each part of the users; explored rows only."""
    p, width = problem.phi.shape[1], problem.data.action_width
    parts = [Moments.zero(p * (1 + width)) for _ in range(PARTS)]
    rows = np.flatnonzero(problem.signal)
    for start in progress.over(range(0, len(rows), CHUNK), "slopes"):
        take = rows[start : start + CHUNK]
        phi, u = problem.phi[take], problem.u[take]
        x = np.concatenate([phi, (u[:, :, None] * phi[:, None, :]).reshape(len(take), -1)], axis=1)
        parts = with_rows(parts, problem.part[take], x, value.residual[take, None], problem.weight[take])
    return parts
