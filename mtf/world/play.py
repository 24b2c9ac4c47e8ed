"""Playing sessions in-process under a policy, without a log: what truth, calibration and headroom are computed from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from mtf.features import build_state
from mtf.fusion import rank
from mtf.world.cohort import Cohort, Feedback, Observation


class Acts(Protocol):
    """Anything that maps raw states float32 [n, S] to normalised actions float32 [n, A]: a `mtf.policy.Policy`."""

    def act(self, states: np.ndarray) -> np.ndarray: ...


def play(cohort: Cohort, policy: Acts) -> Iterator[tuple[Observation, np.ndarray, np.ndarray, Feedback]]:
    """Play the cohort to its end; yields (requests, states [n, S], shown [n, n_shown], feedback) of each step."""
    spec = cohort.world.spec
    while cohort.active:
        seen = cohort.observe()
        state = build_state(spec, seen.given, seen.scores)
        shown = rank(spec, policy.act(state), seen.scores)
        yield seen, state, shown, cohort.respond(seen, shown)
