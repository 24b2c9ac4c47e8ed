"""What `mtf verify` recomputes from files alone: the world's bytes, and the canary from the sealed rows of its day.

The whole of it runs in tests/integration, on a demo that was really played.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from mtf.demo.summary import Canary, Dataset, Gate, Metric, PowerOf, Round, Seconds, Summary, TrueValue, Truth
from mtf.demo.verify import _canary, _round, _world
from mtf.errors import NotFoundError
from mtf.fileio import write_atomic
from mtf.logs.days import day_files, write_day
from mtf.policy import Lineage, bootstrap_policy, constant_policy
from mtf.rollout.controller import RolloutConfig
from mtf.rollout.document import Arms, PolicyRef, Rollout
from mtf.rollout.documents import write_next
from mtf.rollout.start import initialise
from mtf.rollout.statistics import DecisionRules, decide
from mtf.rollout.users import Sample
from mtf.serving.engine import Engine
from mtf.settings import Settings
from mtf.store import open_store
from mtf.world.simulate import run
from mtf.world.world import World

DT = "2026-03-03"
RULES = DecisionRules(min_users=50, tuned_for=300)
VALUE = TrueValue(mean=1.0, se=0.1)


@pytest.fixture(scope="module")
def played(world_dir, tmp_path_factory):
    """(settings, round): a canary day of 300 users that was compared and decided, as a controller does."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"))
    world = World.load(world_dir)
    folder = settings.state_dir / "surfaces" / "feed"
    world.spec.write(folder / "spec.json")
    write_atomic(folder / "rollout.json", msgspec.json.encode(RolloutConfig(rules=RULES)))
    store = open_store(settings=settings)
    first = initialise(settings, "feed", world.spec, Arms(), 0.0)
    start = bootstrap_policy(world.spec)
    other = constant_policy([0.3] * 10, world.spec.state_width, spec=world.spec, lineage=Lineage(algorithm="t"))
    running = Rollout(id="rollout-1", phase="running", started_ts=f"{DT}T00:00:00+00:00")
    document = msgspec.structs.replace(
        first,
        generation=2,
        canary=PolicyRef(sha=other.sha, version="2", uri=""),
        arms=Arms(canary=0.5, control=0.5),
        rollout=running,
    )
    write_next(store, document)
    engine = Engine(world.spec, document, {start.sha: start, other.sha: other})
    requests, feedback = run(world, engine, 300, DT, 5)
    write_day(settings.logs_dir("feed"), DT, requests, feedback, world.spec)
    sample = Sample(world.spec, "rollout-1")
    sample.add([requests], [feedback])
    found = sample.compare(RULES, watermark_us=2**60)
    outcome, reason = decide(found, RULES, last_look=True)
    outcome = {"promote": "promoted", "roll_back": "rolled_back"}[outcome]
    ended = msgspec.structs.replace(
        running, phase="idle", outcome=outcome, reason=reason, statistics={"comparison": msgspec.to_builtins(found)}
    )
    write_next(store, msgspec.structs.replace(document, generation=3, canary=None, rollout=ended))
    metrics = {name: Metric(lift=m.lift, low=m.low, high=m.high) for name, m in found.metrics.items()}
    canary = Canary(
        decision=outcome,
        reason=reason,
        n_canary=found.n_canary,
        n_control=found.n_control,
        metrics=metrics,
        rollout_id="rollout-1",
        dt=DT,
    )
    return settings, round_of(canary, baseline=start.sha)


def round_of(canary, baseline="b", version="2", serving=None):
    return Round(
        round=1,
        dt="2026-03-02",
        dataset=Dataset(md5="m", rows=1, revision="data/feed/2026-03-02.r1"),
        power=PowerOf(detectable_lift=0.1),
        model_version=version,
        run_id="run",
        policy_sha="p",
        baseline_sha=baseline,
        gate=Gate(verdict="pass", reason="r", lift=0.1, low=0.05, high=0.15),
        canary=canary,
        serving_sha=serving or baseline,
        true_value=VALUE,
        candidate_true_value=VALUE,
        seconds=Seconds(traffic=1, chain=1, total=2),
    )


def wrong(settings, found):
    """Names of the numbers that do not come out again."""
    return [check.name for check in _canary(settings, found, "r") if not check.equal]


def test_the_canary_comes_out_again_from_the_sealed_rows(played):
    settings, found = played
    assert found.canary.n_canary + found.canary.n_control == 300
    checks = list(_canary(settings, found, "r"))
    # who serves, the rollout and its metrics' names; decision and reason, from the document and measured again; two sizes;
    # three metrics with three numbers
    assert len(checks) == 3 + 4 + 2 + 9
    assert wrong(settings, found) == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"n_canary": 7}, ["r.canary.n_canary"]),
        ({"decision": "aborted"}, ["r.canary.decision", "r.canary.decision (again)"]),
        ({"reason": "because"}, ["r.canary.reason", "r.canary.reason (again)"]),
        ({"rollout_id": "other"}, ["r.canary.rollout_id"]),
    ],
)
def test_a_forged_number_is_found(played, change, names):
    settings, found = played
    canary = msgspec.structs.replace(found.canary, **change)
    assert wrong(settings, msgspec.structs.replace(found, canary=canary)) == names


def test_another_policy_that_is_said_to_serve_is_found(played):
    settings, found = played
    assert wrong(settings, msgspec.structs.replace(found, serving_sha="p")) == ["r.serving_sha"]


def test_a_metric_that_was_left_out_is_found(played):
    settings, found = played
    metrics = {name: metric for name, metric in found.canary.metrics.items() if name != "valid"}
    canary = msgspec.structs.replace(found.canary, metrics=metrics)
    assert wrong(settings, msgspec.structs.replace(found, canary=canary)) == [
        "r.canary.metrics",
        *(f"r.canary.valid.{bound}" for bound in ("lift", "low", "high")),
    ]


def test_a_rollout_that_is_not_spoken_of_is_found(played):
    settings, found = played
    canary = Canary(decision="none", reason="the gate says pass")
    names = wrong(settings, msgspec.structs.replace(found, canary=canary))
    assert {"r.canary.rollout_id", "r.canary.decision", "r.canary.reason", "r.canary.metrics"} <= set(names)


@pytest.mark.parametrize("end", ["lift", "low", "high"])
def test_a_forged_interval_is_found(played, end):
    settings, found = played
    metric = found.canary.metrics["reward"]
    forged = {"reward": msgspec.structs.replace(metric, **{end: getattr(metric, end) + 1e-4})}
    canary = msgspec.structs.replace(found.canary, metrics=found.canary.metrics | forged)
    assert wrong(settings, msgspec.structs.replace(found, canary=canary)) == [f"r.canary.reward.{end}"]


def test_rows_that_were_changed_after_sealing_are_an_error_not_a_number(played):
    from mtf.errors import IntegrityError

    settings, found = played
    (path,) = day_files(settings.logs_dir("feed"), DT, "feedback")
    data = path.read_bytes()
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    try:
        with pytest.raises(IntegrityError, match="the manifest says"):
            wrong(settings, found)
    finally:
        path.write_bytes(data)


def test_of_a_version_without_a_rollout_nothing_may_be_said(played):
    settings, _ = played
    none = round_of(Canary(decision="none", reason="the gate says pass"), version="3")
    assert wrong(settings, none) == []
    forged = Canary(decision="promoted", reason="", n_canary=9, metrics={"reward": Metric(lift=1.0, low=0.0, high=2.0)})
    names = [f"r.canary.{name}" for name in ("decision", "reason", "n_canary", "metrics")]
    assert wrong(settings, round_of(forged, version="3", serving="p")) == [*names, "r.serving_sha"]


def test_a_revision_that_nobody_knows_is_named(played, tmp_path):
    settings, found = played
    with pytest.raises(NotFoundError, match=r"'data/feed/2026-03-02\.r1' does not exist; there are: none yet"):
        list(_round(settings, found, "code", tmp_path, lambda _: None))


def test_another_world_is_noticed(world_dir, tmp_path):
    import hashlib
    import shutil

    shutil.copytree(world_dir, tmp_path / "world")
    names = ("spec.json", "world.json", "world.safetensors")
    sha = hashlib.sha256(b"".join((Path(world_dir) / name).read_bytes() for name in names)).hexdigest()
    summary = Summary(
        rounds=[],
        urls={},
        world={"sha256": sha},
        truth=Truth(users=1, seed=1, dt=DT, start=VALUE),
        configuration={},
        code="c",
        versions={},
        machine={},
        command="",
        exit=0,
    )
    assert [c.equal for c in _world(summary, tmp_path)] == [True]
    (tmp_path / "world" / "world.json").write_text((tmp_path / "world" / "world.json").read_text().replace("0.15", "0.16", 1))
    assert [c.equal for c in _world(summary, tmp_path)] == [False]
