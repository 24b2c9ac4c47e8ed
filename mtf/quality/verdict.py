"""What a validation says: one document a day and revision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from mtf.errors import IntegrityError, NotFoundError
from mtf.quality.drift import Moved
from mtf.quality.rules import Level, Severity

Status = Literal["pass", "warning", "critical"]
Subject = Literal["logs", "transitions"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One expectation and what was found.

    bad, of: rows that broke it and rows that had a value (row level). observed: the figure (table level). limit: the
    expectation's bounds in words.
    """

    suite: str
    rule: str
    level: Level
    severity: Severity
    success: bool
    reason: str
    limit: str
    bad: int | None = None
    of: int | None = None
    observed: float | None = None

    @property
    def sentence(self) -> str:
        """What is wrong where it failed."""
        if self.level == "row":
            return f"{self.reason}: {self.bad:,} of {self.of:,} rows ({self.suite}.{self.rule})"
        observed = "nothing" if self.observed is None else f"{self.observed:.6g}"
        return f"{self.reason}: found {observed}, expected {self.limit} ({self.suite}.{self.rule})"


def status_of(checks: Sequence[Check]) -> Status:
    """Our policy, not Great Expectations' overall success: critical stops, a warning is shown."""
    failed = {c.severity for c in checks if not c.success}
    return "critical" if "critical" in failed else "warning" if failed else "pass"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one revision of a day's logs, or on the transitions that were built from it.

    status: `critical` where a critical expectation failed (nothing may be built from the day, or published), else `warning`
    where any failed, else `pass`. reasons: one sentence a failed expectation, critical ones first. counts: rows; of logs
    requests, feedback, quarantined_requests, quarantined_feedback; of transitions transitions and sessions. quarantined:
    {table: {rule: rows}}. metrics: the day's figures, null where they cannot be measured. drift: how each feature stands
    against its reference of earlier days. profile: what the summary page plots. skipped: expectations that were left out,
    with why. key: hash of what was judged by which rules; "" of logs.
    """

    subject: Subject = "logs"
    key: str = ""
    surface: str
    dt: str
    revision: int
    status: Status
    reasons: list[str]
    counts: dict[str, int]
    quarantined: dict[str, dict[str, int]] = {}
    metrics: dict[str, float | None] = {}
    checks: list[Check] = []
    drift: list[Moved] = []
    skipped: list[str] = []
    profile: dict[str, object] = {}


def read_verdict(out_dir: Path, dt: str, revision: int | None = None) -> Verdict:
    """The stored verdict on `dt`: its newest revision, or `revision`. Raises NotFoundError, IntegrityError."""
    folder = Path(out_dir) / f"dt={dt}"
    revisions = sorted(int(p.parent.name[1:]) for p in folder.glob("r[0-9]*/verdict.json"))
    if revision is None and not revisions:
        raise NotFoundError(f"dt = {dt}: {out_dir} holds no verdict on it; run `mtf validate` first")
    path = folder / f"r{revision or revisions[-1]}" / "verdict.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except FileNotFoundError:
        raise NotFoundError(f"dt = {dt}: no verdict on revision {revision}; there are {revisions}") from None
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is damaged: {error}; run `mtf validate` again") from error


def judged_days(out_dir: Path) -> list[str]:
    """The days that have a verdict, sorted."""
    return sorted({p.parent.parent.name.removeprefix("dt=") for p in Path(out_dir).glob("dt=*/r[0-9]*/verdict.json")})
