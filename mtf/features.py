"""The state: one definition that the server and the simulated world both call.

`build_state` places what the caller sent and computes what the candidates' scores say; `RecentHistory` keeps the
averages of recent outcomes that a caller sends as `recent:<behaviour>`.
"""

from __future__ import annotations

import numpy as np

from mtf.spec import FusionSpec

SCORE_FLOOR = 1e-4


def build_state(spec: FusionSpec, given: np.ndarray, scores: np.ndarray, n_candidates: np.ndarray | None = None) -> np.ndarray:
    """State float32 [n, S].

    given: float [n, F], the values of `spec.given_features` in their order; NaN takes the feature's default.
    scores: float [n, C, K] of all candidates, >= 0; n_candidates [n]: how many of the C are real (None = all).
    """
    n = len(given)
    state = np.empty((n, spec.state_width), np.float32)
    defaults = np.array([f.default for f in spec.given_features], np.float32)
    filled = np.where(np.isfinite(given), given, defaults) if len(defaults) else given
    needs_scores = any(f.source == "scores" for f in spec.features)
    mean, sd = log_score_moments(scores, n_candidates) if needs_scores else (None, None)
    column = 0
    for i, feature in enumerate(spec.features):
        if feature.source == "scores":
            assert mean is not None and sd is not None
            kind, _, objective = feature.name.partition(":")
            state[:, i] = (mean if kind == "score_mean" else sd)[:, spec.objectives.index(objective)]
        else:
            state[:, i] = filled[:, column]
            column += 1
    return state


def log_score_moments(scores: np.ndarray, n_candidates: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [n, K] of log(score + 1e-4) over the real candidates."""
    logs = np.log(scores + SCORE_FLOOR)
    if n_candidates is None:
        return logs.mean(axis=1), logs.std(axis=1)
    real = (np.arange(scores.shape[1]) < np.asarray(n_candidates)[:, None]).astype(logs.dtype)
    count = np.maximum(real.sum(axis=1), 1)[:, None]
    mean = np.einsum("nck,nc->nk", logs, real) / count
    square = np.einsum("nck,nc->nk", (logs - mean[:, None]) ** 2, real) / count
    return mean, np.sqrt(square)


def moved_by_action(spec: FusionSpec) -> np.ndarray:
    """bool [S]: True for the columns that the policy's own actions move; a value function must leave them out."""
    return np.array([f.moved_by_action for f in spec.features], bool)


class RecentHistory:
    """Exponential averages of a user's outcomes an impression, one a behaviour: the `recent:<behaviour>` features.

    `value [n, B]` starts at `prior`; each request moves it by `rate` towards the request's mean outcome.
    """

    def __init__(self, prior: np.ndarray, rate: float = 0.15) -> None:
        self.value = np.array(prior, np.float32)
        self.rate = rate

    def update(self, rows: np.ndarray, outcome: np.ndarray) -> None:
        """Take in the mean outcome [m, B] an impression of one request of each of the users `rows` [m]."""
        self.value[rows] += self.rate * (outcome - self.value[rows])
