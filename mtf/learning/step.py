"""From slopes to a step: how far from the deployed policy the evidence carries, and how far the gate can follow.

Evidence is asked for twice. Each slope must be sure of its sign (`evidence_step`); risks of many slopes average out, so one
standard deviation is enough there. That is the learner's own word: slopes and step come from the same rows, and where there are
few, noise that they share looks sure. So users that the advantage was not learned from must confirm it (`confirmed`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mtf.transitions.arrays import Arrays, chunks

EDGE = 0.9
"""Half-widths from which a move counts as at the box's edge."""


@dataclass(frozen=True)
class Slopes:
    """The advantage's slope at each state, float32 [n, A] (reward a half-width of the box), and its posterior sd."""

    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Step:
    """y float32 [n, A], in half-widths. rms_wanted: root mean square before the limit; rms: after. wanted_edge_share: of the
    moves before the limit over the varied dimensions, how many lie at the box's edge."""

    y: np.ndarray
    rms_wanted: float
    rms: float
    wanted_edge_share: float


def evidence_step(
    slopes: Slopes,
    *,
    kappa: float,
    max_rms: float,
    varied: np.ndarray,
    curvature: np.ndarray | None = None,
    start: Callable[[slice], np.ndarray] | None = None,
    threshold: float = 1.0,
    arrays: Arrays | None = None,
) -> Step:
    """The best step for `sum_d slope_d y_d - (rho + curvature_d) y_d^2 / 2` within what the evidence allows.

    Evidence: `|y_d| <= min(1, (|slope_d| / sd_d - threshold) / kappa)`, 0 below the threshold: no further than the posterior
    is sure of the sign. Without any signal |slope| / sd is standard normal at most, and the mean step under .15 of the box.
    Length: rho >= 0 is the smallest for which the root mean square of y over states and varied dimensions is at most
    `max_rms`, so what is cut first is what gains least. Without that limit y is the full evidence step.
    varied: bool [A]. curvature [A], of the advantage in y; below 0 it is taken for 0; None = 0. arrays: where y lies; None = in
    memory. `slopes` are those in the box's middle; the step begins at start(rows) [n, A], in half-widths from there, and the
    slope with it: `slope_d - curvature_d start_d`. None = in the middle: where a box is cut, the deployed policy is not.
    """
    bend = np.zeros(len(varied), np.float32) if curvature is None else np.maximum(curvature, 0).astype(np.float32)

    def evidence(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Slopes where the step begins, and how far they carry."""
        slope = slopes.mean[rows] if start is None else slopes.mean[rows] - bend * start(rows)
        return slope, np.clip((np.abs(slope) / np.maximum(slopes.sd[rows], 1e-30) - threshold) / kappa, 0, 1) * varied

    def best(rho: float, slope: np.ndarray, gate: np.ndarray) -> np.ndarray:
        y: np.ndarray = np.sign(slope) * np.minimum(np.abs(slope) / np.maximum(rho + bend, 1e-30), gate)
        return y

    def rms(y: np.ndarray) -> float:
        return _rms(y, varied)

    few = evidence(slice(None, None, max(1, len(slopes.mean) // 20_000)))
    longest = best(0.0, *few)
    wanted, rho = rms(longest), 0.0
    if wanted > max_rms:
        low, high = 0.0, float(np.abs(few[0]).max()) / max_rms
        for _ in range(50):
            rho = (low + high) / 2
            low, high = (rho, high) if rms(best(rho, *few)) > max_rms else (low, rho)
        rho = high
    (y,) = (arrays or Arrays()).build(len(slopes.mean), lambda rows: (best(rho, *evidence(rows)).astype(np.float32),))
    return Step(y, wanted, rms(y), edge_share(longest, varied))


def confirmed(step: Step, z: float, *, threshold: float, arrays: Arrays | None = None) -> tuple[Step, float]:
    """The part of `step` that is taken, and its share: none up to `threshold`, all of it from 1 more.

    z: standard deviations by which users that it was not learned from confirm the advantage (`result.calibration`).
    """
    share = float(np.clip(z - threshold, 0, 1))
    return replace(step, y=_part(step.y, share, arrays), rms=share * step.rms), share


def shorten(y: np.ndarray, max_rms: float, varied: np.ndarray, arrays: Arrays | None = None) -> Step:
    """A step of another maker, all of it shortened by one factor where its root mean square exceeds `max_rms`."""
    rms = _rms(y, varied)
    factor = min(1.0, max_rms / rms) if rms > 0 else 1.0
    return Step(_part(y, factor, arrays), rms, rms * factor, edge_share(y, varied))


def linear_slopes(phi: np.ndarray, mean: np.ndarray, cov: np.ndarray, arrays: Arrays | None = None) -> Slopes:
    """Slopes `phi(s) . c_d` of coefficients `mean` [A, P] with the blocks `cov` [A, P, P]."""
    # cov = R R', so phi' cov phi = |phi R|^2
    eigen, vectors = np.linalg.eigh((cov + cov.transpose(0, 2, 1)) / 2)
    roots = (vectors * np.sqrt(np.maximum(eigen, 0))[:, None]).astype(np.float32)

    def some(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        sd = np.stack([np.sqrt(np.square(phi[rows] @ root).sum(axis=1)) for root in roots], axis=1)
        return phi[rows] @ mean.T.astype(np.float32), sd

    return Slopes(*(arrays or Arrays()).build(len(phi), some))


def blocks(cov: np.ndarray, width: int) -> np.ndarray:
    """The blocks [A, P, P] of each dimension in the covariance [A P, A P] of all coefficients."""
    p = len(cov) // width
    return np.stack([cov[d * p : (d + 1) * p, d * p : (d + 1) * p] for d in range(width)])


def edge_share(y: np.ndarray, varied: np.ndarray) -> float:
    """Share of moves y [n, A], in half-widths, that lie at the box's edge, over the varied dimensions (bool [A])."""
    edge = sum(int((np.abs(y[rows][:, varied]) > EDGE).sum()) for rows in chunks(len(y)))
    return edge / max(len(y) * int(varied.sum()), 1)


def _part(y: np.ndarray, factor: float, arrays: Arrays | None) -> np.ndarray:
    """factor y, where y lies."""
    (part,) = (arrays or Arrays()).build(len(y), lambda rows: ((y[rows] * factor).astype(np.float32),))
    return part


def _rms(y: np.ndarray, varied: np.ndarray) -> float:
    """Root mean square over states and varied dimensions."""
    square = sum(float(np.square(y[rows], dtype=np.float64).sum()) for rows in chunks(len(y)))
    return float(np.sqrt(square / max(len(y) * varied.sum(), 1)))
