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
    """How an advantage that was fitted on the one fold does on the other, from moments alone.

    fits: (coefficients [p], moments of the fold they were *not* fitted on). nuisance, action: column numbers.
    explained_share: 1 - SSE with / SSE without the action's part, nuisance refitted by least squares on the held-out
        fold (below 0 where it only adds noise). slope: of the residual on the predicted advantage; 1 is calibrated.
    """
    with_it = without = cross = square = 0.0
    for coefficients, held in fits:
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
    return {
        "explained_share": float(1 - with_it / without) if without > 0 else 0.0,
        "slope": float(cross / square) if square > 1e-12 * without else float("nan"),
    }
