"""`mtf verify`: recompute every number of a demo's summary from MLflow, DVC and the sealed logs.

Nothing is copied from one page to another: the dataset is checked out by its revision and counted, the power analysis and
the gate run again on it with the registered bundles, the canary is measured again on the sealed rows of its day, the truth
is simulated again. Wall times are the only numbers that cannot be recomputed.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from mtf.demo.summary import Canary, Round, Summary, read_summary
from mtf.errors import NotFoundError
from mtf.settings import Settings
from mtf.spec import FusionSpec

SURFACE = "feed"
TOLERANCE = 1e-6


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One number: where it stands in the summary, what stands there, what came out again, and from what."""

    name: str
    recorded: object
    recomputed: object
    source: str

    @property
    def equal(self) -> bool:
        """Equal; floats up to a relative 1e-6 (another build of the math library may round a sum differently)."""
        a, b = self.recorded, self.recomputed
        if isinstance(a, float) and isinstance(b, float | int):
            return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))
        return a == b


def verify(folder: Path, *, progress: Callable[[str], None] = lambda _: None) -> list[Check]:
    """Recompute the summary in `folder` (<state>/demo); returns every check, equal or not.

    The platform of that state folder must be up (MLflow answers for the registry). Raises InputError where there is no
    summary, MtfError where a server or the store cannot be reached.
    """
    summary = read_summary(folder / "summary.json")
    settings = Settings(state_dir=folder.resolve().parent)
    checks = list(_world(summary, folder))
    truth = _Truth(summary, folder)
    checks += truth.check("truth.start", summary.truth.start.mean, summary.truth.start.se, _bootstrap_sha(settings), settings)
    for found in summary.rounds:
        with tempfile.TemporaryDirectory(prefix="mtf-verify-") as scratch:
            progress(f"round {found.round}: dataset {found.dataset.revision}")
            checks += _round(settings, found, summary.code, Path(scratch), progress)
        where = f"rounds[{found.round}]"
        progress(f"round {found.round}: true values by simulation")
        for name, sha, value in (
            ("true_value", found.serving_sha, found.true_value),
            ("candidate_true_value", found.policy_sha, found.candidate_true_value),
        ):
            checks += truth.check(f"{where}.{name}", value.mean, value.se, sha, settings)
    return checks


def _round(settings: Settings, found: Round, code: str, scratch: Path, progress: Callable[[str], None]) -> Iterator[Check]:
    from mtf import datasets
    from mtf.evaluation.power import power
    from mtf.evaluation.run import evaluate
    from mtf.registry import find_version, registered_policy
    from mtf.registry.client import connect
    from mtf.transitions.table import load_transitions

    where = f"rounds[{found.round}]"
    data = datasets.checkout(settings, SURFACE, found.dataset.revision, scratch / "data")
    revision = next(r for r in datasets.log(settings, SURFACE) if r.tag == found.dataset.revision)
    yield Check(name=f"{where}.dataset.md5", recorded=found.dataset.md5, recomputed=revision.md5, source="DVC, verified checkout")
    yield Check(name=f"{where}.dataset.rows", recorded=found.dataset.rows, recomputed=_rows(data), source="rows of the checkout")

    version = find_version(settings, SURFACE, found.model_version)
    for name, recorded, tag in (
        ("policy_sha", found.policy_sha, "policy_sha"),
        ("code", code, "code_sha"),
        ("baseline_sha", found.baseline_sha, "verdict_baseline"),
        ("dataset.revision", found.dataset.revision, "dataset_revision"),
        ("dataset.md5 (version)", found.dataset.md5, "dataset_md5"),
        ("gate.verdict (version)", found.gate.verdict, "verdict"),
        ("gate.reason (version)", found.gate.reason, "verdict_reason"),
    ):
        yield Check(name=f"{where}.{name}", recorded=recorded, recomputed=version.tags.get(tag), source="MLflow version tag")
    yield Check(name=f"{where}.run_id", recorded=found.run_id, recomputed=version.run_id, source="MLflow version")
    policies = {}
    for name, sha in (("candidate", found.policy_sha), ("baseline", found.baseline_sha)):
        policies[name] = scratch / name
        written = registered_policy(settings, SURFACE, sha).write(policies[name])
        yield Check(name=f"{where}.{name} bundle", recorded=sha, recomputed=written, source="MLflow artefact, hashed")

    progress(f"round {found.round}: power and gate on the checkout")
    logged = connect(settings).get_run(version.run_id).data.metrics.get("power.detectable_lift")
    again = power(load_transitions(data, users="gate")).detectable_lift
    detectable = found.power.detectable_lift
    for name, now, source in (("", again, "power analysis of the checkout"), (" (run)", logged, "MLflow run metric")):
        yield Check(name=f"{where}.power.detectable_lift{name}", recorded=detectable, recomputed=now, source=source)
    report = evaluate(data, policies["candidate"], policies["baseline"], scratch / "report")
    for name, then, now in (
        ("verdict", found.gate.verdict, report.verdict),
        ("reason", found.gate.reason, report.reason),
        ("lift", found.gate.lift, report.lift.mean),
        ("low", found.gate.low, report.lift.low),
        ("high", found.gate.high, report.lift.high),
    ):
        yield Check(name=f"{where}.gate.{name}", recorded=then, recomputed=now, source="gate run again on the checkout")
    progress(f"round {found.round}: canary on the sealed day")
    yield from _canary(settings, found, where)


def _canary(settings: Settings, found: Round, where: str) -> Iterator[Check]:
    import pyarrow.parquet as pq

    from mtf.logs.days import day_files
    from mtf.rollout.controller import read_config
    from mtf.rollout.documents import read_all
    from mtf.rollout.statistics import decide
    from mtf.rollout.users import Sample
    from mtf.store import open_store

    canary, source = found.canary, "deployment documents"
    documents = read_all(open_store(settings=settings), SURFACE)
    started = next((d.rollout for d in documents if d.canary and d.rollout and d.canary.version == found.model_version), None)
    id_ = started.id if started is not None else None
    yield Check(name=f"{where}.canary.rollout_id", recorded=canary.rollout_id, recomputed=id_, source=source)
    if started is None:
        none = Canary(decision="none", reason=f"the gate says {found.gate.verdict}")
        for name in ("decision", "reason", "n_canary", "n_control", "metrics", "dt"):
            now = getattr(none, name)
            yield Check(name=f"{where}.canary.{name}", recorded=getattr(canary, name), recomputed=now, source="no rollout of it")
        yield Check(name=f"{where}.serving_sha", recorded=found.serving_sha, recomputed=found.baseline_sha, source=source)
        return
    end = next((d for d in documents if d.rollout and d.rollout.id == id_ and d.rollout.outcome is not None), None)
    if end is None or end.rollout is None:
        raise NotFoundError(f"{where}.canary: no deployment document tells how the rollout {id_} ended")
    ended = end.rollout
    yield Check(name=f"{where}.serving_sha", recorded=found.serving_sha, recomputed=end.champion.sha, source=source)
    yield Check(name=f"{where}.canary.decision", recorded=canary.decision, recomputed=ended.outcome, source=source)
    yield Check(name=f"{where}.canary.reason", recorded=canary.reason, recomputed=ended.reason, source=source)
    kept = ended.statistics.get("comparison")
    measured = sorted(kept["metrics"]) if isinstance(kept, dict) else []
    yield Check(name=f"{where}.canary.metrics", recorded=sorted(canary.metrics), recomputed=measured, source=source)
    if not isinstance(kept, dict) or canary.dt is None:
        return
    folder = settings.state_dir / "surfaces" / SURFACE
    rules = read_config(folder / "rollout.json").rules
    logs = settings.logs_dir(SURFACE)
    sample = Sample(FusionSpec.read(folder / "spec.json"), ended.id)
    columns = ["request_id", "user_id", "arm", "ts", "received_at", "state", "rollout_id"]
    for path in day_files(logs, canary.dt, "requests"):
        sample.add([pq.read_table(path, columns=columns)], [])
    for path in day_files(logs, canary.dt, "feedback"):
        sample.add([], [pq.read_table(path)])
    again = sample.compare(rules, watermark_us=int(kept["watermark_us"]), received_until_us=int(kept["received_until_us"]))
    source = "sealed rows of the canary day"
    yield Check(name=f"{where}.canary.n_canary", recorded=canary.n_canary, recomputed=again.n_canary, source=source)
    yield Check(name=f"{where}.canary.n_control", recorded=canary.n_control, recomputed=again.n_control, source=source)
    for name, metric in again.metrics.items():
        for bound in ("lift", "low", "high"):
            then = getattr(canary.metrics.get(name), bound, None)
            now = getattr(metric, bound)
            yield Check(name=f"{where}.canary.{name}.{bound}", recorded=then, recomputed=now, source=source)
    decision, reason = decide(again, rules, last_look=True)
    outcome = {"promote": "promoted", "roll_back": "rolled_back"}[decision]
    if ended.outcome in ("promoted", "rolled_back"):
        yield Check(name=f"{where}.canary.decision (again)", recorded=canary.decision, recomputed=outcome, source=source)
        yield Check(name=f"{where}.canary.reason (again)", recorded=canary.reason, recomputed=reason, source=source)


class _Truth:
    """Simulates each policy once."""

    def __init__(self, summary: Summary, folder: Path) -> None:
        from mtf.world.world import World

        self._summary = summary
        self._world = World.load(folder / "world")
        self._found: dict[str, tuple[float, float]] = {}

    def check(self, name: str, mean: float, se: float, sha: str, settings: Settings) -> list[Check]:
        """The mean and its standard error of the policy with this hash."""
        from mtf.registry import registered_policy
        from mtf.world.truth import true_value

        if sha not in self._found:
            truth = self._summary.truth
            value = true_value(self._world, registered_policy(settings, SURFACE, sha), truth.users, truth.seed, dt=truth.dt)
            self._found[sha] = (float(value.mean), float(value.se))
        again = self._found[sha]
        return [
            Check(name=f"{name}.mean", recorded=mean, recomputed=again[0], source="simulation, same users"),
            Check(name=f"{name}.se", recorded=se, recomputed=again[1], source="simulation, same users"),
        ]


def _world(summary: Summary, folder: Path) -> Iterator[Check]:
    digest = hashlib.sha256()
    for name in ("spec.json", "world.json", "world.safetensors"):
        digest.update((folder / "world" / name).read_bytes())
    yield Check(name="world.sha256", recorded=summary.world["sha256"], recomputed=digest.hexdigest(), source="the world's files")


def _bootstrap_sha(settings: Settings) -> str:
    from mtf.policy import bootstrap_policy

    return bootstrap_policy(FusionSpec.read(settings.state_dir / "surfaces" / SURFACE / "spec.json")).sha


def _rows(data: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in sorted(data.rglob("transitions.parquet")))
