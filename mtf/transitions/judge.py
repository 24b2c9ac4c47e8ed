"""The verdict on what is built: every day of the pool, each judged once as it is. A critical one may not be published."""

from __future__ import annotations

from pathlib import Path

from mtf.errors import NotFoundError
from mtf.logs.days import read_manifest
from mtf.quality.transitions import validate_transitions
from mtf.quality.verdict import Verdict
from mtf.spec import FusionSpec
from mtf.transitions.pool import Build, built_days, read_build


def judge_built(
    logs_dir: Path,
    transitions_dir: Path,
    quality_dir: Path,
    *,
    spec: FusionSpec,
    expectations_dir: Path,
    docs_dir: Path | None = None,
    threads: int = 2,
) -> list[Verdict]:
    """The verdicts on all built days, oldest first; only what changed since it was judged is looked at again."""
    verdicts = []
    for dt in built_days(transitions_dir):
        build = read_build(transitions_dir, dt)
        assert build is not None
        verdicts.append(
            validate_transitions(
                Path(transitions_dir) / f"dt={dt}" / "transitions.parquet",
                quality_dir,
                dt=dt,
                revision=build.logs_revision or 0,
                spec=spec,
                expectations_dir=expectations_dir,
                unaccounted=_unaccounted(Path(logs_dir), Path(transitions_dir), build),
                docs_dir=docs_dir,
                threads=threads,
            )
        )
    return verdicts


def _unaccounted(logs_dir: Path, transitions_dir: Path, build: Build) -> int | None:
    """Requests that went in and did not come out; None where the logs or the carry of that build are gone."""
    came = 0
    if build.logs_revision is not None:
        try:
            came += read_manifest(logs_dir, build.dt, build.logs_revision).rows("requests")
        except NotFoundError:
            return None
    if build.carry_from is not None:
        before = read_build(transitions_dir, build.carry_from)
        if before is None:
            return None
        came += before.carried
    dropped = sum(n for reason, n in build.dropped.items() if reason.startswith("requests."))
    return came - dropped - build.rows - build.carried
