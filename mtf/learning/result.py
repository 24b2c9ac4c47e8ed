"""What an algorithm hands back, and how well its advantage holds on users that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtf.learning.ridge import Moments


@dataclass(frozen=True)
class Learned:
    """action float32 [n, A]: what the new policy should do in the state of each row of the problem, inside the box now.

    report: what the algorithm measured; `warnings` among it are joined to the run's.
    """

    action: np.ndarray
    report: dict[str, Any]


def calibration(
    fits: Sequence[tuple[np.ndarray, Moments]], nuisance: np.ndarray, action: np.ndarray, response: int = 0
) -> dict[str, float]:
    """How an advantage does on users that it was not fitted on, from moments alone.

    fits: (coefficients [p], moments of users that they were *not* fitted on). nuisance, action: column numbers.
    explained_share: 1 - SSE with / SSE without the action's part, nuisance refitted by least squares on the held-out
        users (below 0 where it only adds noise). slope: of the residual on the predicted advantage; 1 is calibrated.
    z: that slope in its standard deviations where actions do nothing; 0 where nothing is predicted. Noise may depend on the
        columns and on the weights (White, 1980). Of fits that leave out a part of the users each, every pair of parts enters
        twice, alike, so the variance is twice the sum of what each part would have by itself; where a prior gives the
        coefficients it is less.
    Users of no more rows than nuisance columns say nothing and are left out.
    """
    with_it = without = cross = square = spread = 0.0
    for coefficients, held in fits:
        rows = held.n**2 / max(held.ww, 1e-30)  # that many of equal weight
        if rows <= len(nuisance):
            continue
        b = coefficients[action]
        xx, xa = held.xx[np.ix_(nuisance, nuisance)], held.xx[np.ix_(nuisance, action)]
        inverse = np.linalg.pinv(xx, hermitian=True)
        predicted_nuisance, y_nuisance = xa @ b, held.xy[nuisance, response]
        variance = b @ held.xx[np.ix_(action, action)] @ b - predicted_nuisance @ inverse @ predicted_nuisance
        covariance = b @ held.xy[action, response] - predicted_nuisance @ inverse @ y_nuisance
        total = held.yy[response] - y_nuisance @ inverse @ y_nuisance
        without += total
        with_it += total - 2 * covariance + variance
        cross += covariance
        square += variance
        size, noisy = b**2 @ np.diag(held.xx)[action], b**2 @ held.wxy[action, response]
        if size > 0 and held.yy[response] > 0:
            spread += variance * (noisy / size) * (total / held.yy[response]) * rows / (rows - len(nuisance))
    return {
        "explained_share": float(1 - with_it / without) if without > 0 else 0.0,
        "slope": float(cross / square) if square > 1e-12 * without else float("nan"),
        "z": float(cross / np.sqrt(2 * spread)) if square > 1e-12 * without and spread > 0 else 0.0,
    }
