"""What a training must say about itself: does V hold, is there a signal, does one step see the future, where did it go."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtf.learning.critic_report import tenths
from mtf.learning.problem import Problem
from mtf.learning.step import EDGE
from mtf.learning.value import Value
from mtf.transitions.arrays import chunks


def slope_tests(problem: Problem, value: Value, rows: np.ndarray | None = None) -> dict[str, Any]:
    """Global slopes of the explored rows a half-width, and whether the one-step ones miss something.

    rows: bool [n], those to use (default: all that explored).

    delta_slope: of the TD residual on u. return_slope: of G - V(s), the Monte-Carlo one: the same expectation where V is
    right, with more noise. Their difference is the slope of `gamma (G' - V(s'))`: what an action does to the future beyond
    what V credits it with. chi2 tests that all of those are 0 (A degrees of freedom); a small p says that one-step
    slopes are biased. signal_chi2 tests that all slopes of delta are 0.
    """
    rows = problem.signal if rows is None else rows
    if not rows.any():
        return {"mean_abs_z": 0.0, "signal_chi2": 0.0, "signal_p": 1.0, "chi2": 0.0, "p": 1.0, "degrees": 0}
    varied, width = problem.half_width > 0, problem.data.action_width
    names = ("delta", "return", "difference")
    y = np.stack([value.residual, value.ret - value.v, value.continuation_residual], axis=1)
    number, p = np.flatnonzero(rows), problem.phi.shape[1]
    parts = [number[some] for some in chunks(len(number))]
    gram, right = 1e-8 * len(number) * np.eye(p), np.zeros((p, 3))
    for some in parts:
        phi = problem.phi[some].astype(np.float64)
        gram += phi.T @ phi
        right += phi.T @ y[some]
    nuisance = np.linalg.solve(gram, right)
    # scores of one session are summed before squaring: its steps share what happens later
    square, scores = np.zeros(width), np.zeros((problem.data.n_sessions, 3, width))
    for some in parts:
        u, session = problem.u[some].astype(np.float64), problem.data.session[some]
        left = y[some] - problem.phi[some].astype(np.float64) @ nuisance
        square += (u**2).sum(axis=0)
        starts = np.flatnonzero(np.diff(session, prepend=-1))
        scores[session[starts]] += np.add.reduceat(left[:, :, None] * u[:, None, :], starts, axis=0)
    square = np.maximum(square, 1e-30)
    explored = np.unique(problem.data.session[rows])
    out: dict[str, Any] = {}
    z: dict[str, np.ndarray] = {}
    for i, name in enumerate(names):
        score = scores[explored, i]
        slope = score.sum(axis=0) / square
        se = np.sqrt((score**2).sum(axis=0)) / square
        z[name] = np.where(varied, slope / np.maximum(se, 1e-30), 0)
        out[f"{name}_slope"], out[f"{name}_slope_se"] = slope.tolist(), se.tolist()
        if name != "return":
            out[name] = _chi2(score[:, varied])
    return {
        **{k: v for k, v in out.items() if k.endswith(("_slope", "_slope_se"))},
        "mean_abs_z": float(np.abs(z["delta"][varied]).mean()) if varied.any() else 0.0,
        "signal_chi2": out["delta"]["chi2"],
        "signal_p": out["delta"]["p"],
        "chi2": out["difference"]["chi2"],
        "p": out["difference"]["p"],
        "degrees": int(varied.sum()),
    }


def value_calibration(problem: Problem, value: Value) -> dict[str, Any]:
    """Slope of the realised return-to-go on V (each V read on users it was not fitted on), the share it explains, and tenths.

    Taken within each V group, whose intercepts are fitted: the level is not the question. tenths: as `calibrate_value` has them.
    """
    v, g = value.v.astype(np.float64), value.ret.astype(np.float64)
    for group in range(int(problem.group.max()) + 1):
        rows = problem.group == group
        v[rows] -= v[rows].mean()
        g[rows] -= g[rows].mean()
    square = float(v @ v)
    slope = float(v @ g) / square if square > 0 else float("nan")
    total = float(g @ g)
    share = 1 - float(np.square(g - v).sum()) / total if total > 0 else 0.0
    return {"slope": slope, "explained_share": share, "tenths": tenths(value.v, value.ret)}


def step_report(problem: Problem, action: np.ndarray) -> dict[str, Any]:
    """How far the policy moved: by position y in the box as it is cut (its root mean square, what lies at the edge), and in
    half-widths (root mean square, and the mean of each dimension)."""
    varied = problem.half_width > 0
    n, width = len(action), int(varied.sum())
    if not width:
        nothing = dict.fromkeys(("rms_y", "rms_move", "mean_abs_move", "edge_share", "corner_share"), 0.0)
        return {**nothing, "mean_move": [], "sd_move_within": []}
    square = size = 0.0
    edges = corners = 0
    total, total_square = np.zeros(width), np.zeros(width)
    for rows in chunks(n):
        y, y0 = (problem.box_position(of, rows)[:, varied] for of in (action[rows], problem.center[rows]))
        move = ((action[rows] - problem.center[rows])[:, varied] / problem.half_width[varied]).astype(np.float64)
        edge = np.abs(y) > EDGE
        square += float(np.square(y - y0, dtype=np.float64).sum())
        size += float(np.abs(move).sum())
        edges += int(edge.sum())
        corners += int(edge.all(axis=1).sum())
        total += move.sum(axis=0)
        total_square += np.square(move).sum(axis=0)
    mean = total / n
    return {
        "rms_y": float(np.sqrt(square / (n * width))),
        "rms_move": float(np.sqrt(total_square.sum() / (n * width))),
        "mean_abs_move": size / (n * width),
        "edge_share": edges / (n * width),
        "corner_share": corners / n,
        "mean_move": mean.tolist(),
        "sd_move_within": np.sqrt(np.maximum(total_square / n - mean**2, 0)).tolist(),
    }


def warnings_of(report: dict[str, Any]) -> list[str]:
    """Named warnings, each with the number that raised it."""
    found = []
    step, tests, value = report["step"], report["tests"], report["value"]
    if not 0.8 <= value["slope"] <= 1.2:
        found.append(f"miscalibrated_value: return-to-go has slope {value['slope']:.2f} on V, expected 1")
    if tests["signal_p"] > 0.05:
        found.append(f"no_signal: the action's slopes are jointly noise (p = {tests['signal_p']:.2f}); gather more rows")
    if tests["p"] < 0.001:
        found.append(f"one_step_bias: actions move returns beyond V(s') (chi2 {tests['chi2']:.1f}, p = {tests['p']:.1g})")
    # what the learner wanted: its step is shortened, and none so short lies at the edge everywhere. Where evidence limits the
    # step, what wants the edge is sure of its sign: that is `sure_edge_share`, and no reason to warn
    edge = max(step["edge_share"], report["algorithm"].get("wanted_edge_share", 0.0))
    if edge > 0.65:
        found.append(
            f"corner_everywhere: it wants the box's edge in {edge:.0%} of dimensions; the best lies outside, or slopes are noise"
        )
    action = report["algorithm"].get("held_out_action", {})
    slope = action.get("slope", float("nan"))
    if np.isfinite(slope) and not 0.5 <= slope <= 2.0:
        found.append(f"miscalibrated_action: residual has slope {slope:.2f} on the predicted advantage, expected 1")
    q_slope = report["algorithm"].get("held_out_value", {}).get("slope", 1.0)
    if not 0.8 <= q_slope <= 1.2:
        found.append(f"miscalibrated_q: on held-out users return-to-go has slope {q_slope:.2f} on Q(s, a), expected 1")
    if action.get("explained_share", 1.0) < 0:
        found.append(f"action_explains_nothing: held-out share {action['explained_share']:.2%}")
    if not any(report["half_width"]):
        found.append("no_step: no dimension of the box has a width; nothing could move")
    elif report["algorithm"].get("rms_wanted") == 0:
        found.append("no_step: nothing that was found promises a step; gather more rows")
    elif report["algorithm"].get("confirmed") == 0:
        found.append(f"no_step: users that it was not learned from do not confirm the advantage (z {action['z']:.1f}); log more")
    if step["rms_y"] > (limit := report["config"]["max_rms_step"]):
        found.append(f"step_too_long: root mean square {step['rms_y']:.2f} of a half-width, more than max_rms_step = {limit:g}")
    if report["distilled"]["outside_share"] > 0.01:
        found.append(f"outside_box: {report['distilled']['outside_share']:.1%} of states leave the box; the gate will refuse")
    return found


def _chi2(score: np.ndarray) -> dict[str, float]:
    """Wald statistic of the mean score of sessions being 0."""
    from scipy.stats import chi2

    if score.shape[1] == 0 or len(score) < 2:
        return {"chi2": 0.0, "p": 1.0}
    total, cov = score.sum(axis=0), score.T @ score
    statistic = float(total @ np.linalg.pinv(cov, hermitian=True) @ total)
    return {"chi2": statistic, "p": float(chi2.sf(statistic, score.shape[1]))}
