"""report.json: what an evaluation found. docs/evaluation.md explains every field."""

from __future__ import annotations

import msgspec

from mtf.evaluation.gate import Check, Verdict
from mtf.evaluation.gauc import Gauc
from mtf.evaluation.intervals import Estimate
from mtf.evaluation.power import Power

FORMAT = 1


class LiftInterval(msgspec.Struct, frozen=True, kw_only=True):
    """V / V_deployed - 1 as a fraction with its two-sided 1 - alpha interval; null where nothing could be estimated."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    se: float | None = None


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """One dimension of the action: the box's mean half-width, where target and deployed policy lie in it (-1 to 1), the RMS
    of the target's y, the RMS of its move from the deployed policy, and the shares of states outside the box and within a
    tenth of its edge."""

    name: str
    half_width: float
    y_mean: float
    y_rms: float
    y0_mean: float
    step_rms: float
    outside: float
    at_edge: float


class Estimators(msgspec.Struct, frozen=True, kw_only=True):
    """Lifts of every estimator, fractions. Only primary and referee vote."""

    primary: Estimate | None = None
    primary_bend: float | None = None
    referee: Estimate | None = None
    degree2: Estimate | None = None
    fqe: Estimate | None = None
    importance: Estimate | None = None
    replay: Estimate | None = None


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The target's degree-1 weights: mean (1 where propensities are right) with its standard error, mean square as found and
    as it must be, and the effective share of a decision, mean^2 / mean square."""

    mean: float
    mean_se: float
    square: float
    square_expected: float
    effective_share: float


class OnPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A free check of the level: mean discounted return of the deployed policy's own sessions that did not explore, against
    the estimate of its value from explored ones."""

    sessions: int
    mean: float
    se: float
    estimated: float
    z: float


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The fitted Q: ridge of V, prior sd of the shrunken groups of slopes, share of the held-out residual's variance that
    actions explain, and chi^2 (degrees of freedom) of one-step against Monte-Carlo slopes."""

    ridge: float
    prior_sd: dict[str, float]
    explained: float
    slope_chi2: float
    slope_dof: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's verdict and everything behind it. guardrails: lifts of the metrics that a canary guards beside the reward."""

    format: int = FORMAT
    verdict: Verdict
    reason: str
    lift: LiftInterval
    alpha: float
    gamma: float
    policy_sha: str
    baseline: str
    baseline_sha: str | None
    days: list[str]
    sessions: int
    users: int
    requests: int
    cut_sessions: int
    drops: dict[str, int]
    checks: list[Check]
    value_deployed: Estimate | None = None
    value_target: float | None = None
    estimators: Estimators = Estimators()
    guardrails: dict[str, Estimate] = {}
    step_rms: float | None = None
    y_rms: float | None = None
    uncovered: float | None = None
    dimensions: list[Dimension] = []
    weights: Weights | None = None
    on_policy: OnPolicy | None = None
    model: Model | None = None
    gauc: dict[str, Gauc] = {}
    power: Power | None = None
    detectable_lift: float | None = None

    def to_json(self) -> bytes:
        """Readable JSON; the same inputs give the same bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def from_json(data: bytes) -> Report:
        """Parse `report.json`."""
        return msgspec.json.decode(data, type=Report)
