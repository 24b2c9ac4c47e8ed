"""summary.json: what the demo found, a struct a level, so that `mtf verify` reads what the demo wrote."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mtf.errors import InputError
from mtf.fileio import write_atomic


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset version that the round trained on."""

    md5: str
    rows: int
    revision: str


class PowerOf(msgspec.Struct, frozen=True, kw_only=True):
    """detectable_lift: the smallest lift that the round's gate could detect (fraction; two-sided 96 %, power 80 %)."""

    detectable_lift: float | None


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """The off-policy gate on users whose rows training never saw; lift over the champion, a two-sided 96 % interval."""

    verdict: str
    reason: str
    lift: float | None
    low: float | None
    high: float | None


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """canary / control - 1, with its always-valid 95 % interval."""

    lift: float
    low: float
    high: float


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """What the rollout decided. decision: promoted | rolled_back | aborted | none (the gate did not pass)."""

    decision: str
    reason: str
    n_canary: int = 0
    n_control: int = 0
    metrics: dict[str, Metric] = {}
    rollout_id: str | None = None
    dt: str | None = None


class TrueValue(msgspec.Struct, frozen=True, kw_only=True):
    """Session reward of the policy that serves after the round, by simulation: the only use of the simulator's truth."""

    mean: float
    se: float


class Seconds(msgspec.Struct, frozen=True, kw_only=True):
    """Wall time."""

    traffic: float
    chain: float
    total: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round: explore day `dt`, the chain, the canary day if there was one.

    policy_sha, model_version: the candidate, made by the MLflow run run_id. baseline_sha: the champion that it was compared
    with. serving_sha: who serves after the round, whose true_value stands beside it; candidate_true_value is the candidate's.
    """

    round: int
    dt: str
    dataset: Dataset
    power: PowerOf
    model_version: str
    policy_sha: str
    run_id: str
    baseline_sha: str
    gate: Gate
    canary: Canary
    serving_sha: str
    true_value: TrueValue
    candidate_true_value: TrueValue
    seconds: Seconds


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """How true values were simulated: that many users, that seed, the same for every policy."""

    users: int
    seed: int
    dt: str
    start: TrueValue


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole demo. world: kind, name, folder hash; code: commit (and hash of the sources where they differ from
    it); versions: package versions; exit: 0, or 1 where something failed."""

    rounds: list[Round]
    urls: dict[str, str]
    world: dict[str, str]
    truth: Truth
    configuration: dict[str, object]
    code: str
    versions: dict[str, str]
    machine: dict[str, object]
    command: str
    exit: int


def write_summary(path: Path, summary: Summary) -> None:
    """Write summary.json, atomically."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")


def read_summary(path: Path) -> Summary:
    """Read it back. Raises InputError where it is missing or of another form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Summary)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run `mtf demo` first") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: {error}") from error
