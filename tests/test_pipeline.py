"""The steps that the DAGs call, in order, on a small simulated day with a real spool, store, DVC workspace and MLflow server.

Each step is idempotent by key: the same inputs give the stored result, changed ones run again, `force` runs again.
"""

from __future__ import annotations

import contextlib
import json
import shutil

import msgspec
import pytest

from mtf import pipeline
from mtf.contracts.exploration import read_exploration
from mtf.errors import InputError, NotFoundError
from mtf.fileio import write_atomic
from mtf.logs.days import day_files, read_manifest, to_datetime, write_day
from mtf.logs.spool import open_spool
from mtf.pipeline import CriticalError, SkipError, _require_validated
from mtf.policy import bootstrap_policy
from mtf.quality import Verdict
from mtf.registry import find_version, register_bootstrap
from mtf.registry.client import connect, model_name
from mtf.registry.models import registered_policy, tag, trained_versions
from mtf.rollout.document import Arms, PolicyRef, Rollout
from mtf.rollout.documents import put_bundle, read_latest, write_next
from mtf.rollout.intents import Answer, answer, open_intents
from mtf.rollout.start import initialise
from mtf.settings import ROOT, Settings
from mtf.store import open_store
from mtf.transitions.build import build_day
from mtf.transitions.pool import read_build
from mtf.world.simulate import simulate
from mtf.world.world import World, day_number
from tests.logs.rows import DT as QUIET
from tests.logs.rows import END, SPEC, requests

SURFACE, DT = "feed", "2026-03-02"
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def settings(world_dir, mlflow_url, tmp_path_factory):
    """A surface that serves its start, a day of 150 users in its spool, the clock past the day's end; a quick learner."""
    state = tmp_path_factory.mktemp("state")
    found = Settings(
        state_dir=state,
        mlflow_url=mlflow_url,
        clock="simulated",
        expectations_dir=shutil.copytree(ROOT / "expectations", state / "rules"),
    )
    world = World.load(world_dir)
    world.spec.write(state / "surfaces" / SURFACE / "spec.json")
    quick = {"algorithm": "bc", "overrides": {"distil_steps": "20"}}
    (state / "surfaces" / SURFACE / "pipeline.json").write_text(json.dumps(quick))
    version = register_bootstrap(found, SURFACE, world.spec)
    initialise(found, SURFACE, world.spec, Arms(explore=0.9), 0.3, version)
    spool = open_spool(found.spool_dir(SURFACE), events_move_clock=False)
    spool.append(*simulate(world, bootstrap_policy(world.spec), 150, DT, 1, 0.3))
    spool.mark((day_number(DT) + 1) * DAY_US + 3_600_000_000)
    spool.close()
    return found


@pytest.fixture(scope="module")
def sealed(settings):
    return pipeline.seal_day(settings, SURFACE, DT)


@pytest.fixture(scope="module")
def validated(settings, sealed):
    return pipeline.validate_logs(settings, SURFACE, DT)


@pytest.fixture(scope="module")
def built(settings, validated):
    return pipeline.build_transitions(settings, SURFACE, DT)


@pytest.fixture(scope="module")
def published(settings, built):
    return pipeline.publish_dataset(settings, SURFACE, DT, publisher="run 1")


@pytest.fixture(scope="module")
def trained(settings, published):
    return pipeline.train_policy(settings, SURFACE, [published])


@pytest.fixture(scope="module")
def judged(settings, trained):
    return pipeline.evaluate_policy(settings, SURFACE, [trained])


@pytest.fixture(scope="module")
def second(settings, published, judged):
    """Another version of the same data."""
    return pipeline.train_policy(settings, SURFACE, [published], seed=11)


@pytest.fixture
def never(monkeypatch):
    """never("module.function"): whoever calls it now does work that was done already."""

    def forbid(name):
        def called(*_, **__):
            raise AssertionError(f"{name} ran again")

        monkeypatch.setattr(name, called)

    return forbid


def judged_logs(settings, dt, revision, status):
    """A verdict on a revision, as validation writes it."""
    verdict = Verdict(surface=SURFACE, dt=dt, revision=revision, status=status, reasons=[], counts={})
    write_atomic(settings.quality_dir(SURFACE) / f"dt={dt}" / f"r{revision}" / "verdict.json", msgspec.json.encode(verdict))


def records(settings, step):
    """The stored results of a step."""
    return sorted((settings.state_dir / "pipeline" / step).glob("*.json"))


def test_sealing_again_is_the_same_revision(settings, sealed):
    assert (sealed["dt"], sealed["revision"]) == (DT, 1)
    assert pipeline.seal_day(settings, SURFACE, DT) == sealed


def test_a_day_that_ends_quietly_is_sealed_by_a_real_clock_alone(tmp_path, monkeypatch):
    rows = requests(5)
    found = {clock: Settings(state_dir=tmp_path / clock, clock=clock) for clock in ("real", "simulated")}
    for settings in found.values():
        SPEC.write(settings.state_dir / "surfaces" / SURFACE / "spec.json")
        with contextlib.closing(open_spool(settings.spool_dir(SURFACE))) as spool:
            spool.append(rows)  # the last that is heard of the day
    due = END + 1_800_000_000
    monkeypatch.setattr("time.time_ns", lambda: (due - 1) * 1000)
    with pytest.raises(InputError, match="too early to seal; the event clock has reached 2026-01-02T00:29:59"):
        pipeline.seal_day(found["real"], SURFACE, QUIET)
    monkeypatch.setattr("time.time_ns", lambda: due * 1000)
    assert pipeline.seal_day(found["real"], SURFACE, QUIET)["revision"] == 1
    manifest = read_manifest(found["real"].logs_dir(SURFACE), QUIET)
    assert (manifest.rows("requests"), manifest.watermark) == (5, to_datetime(due))
    with pytest.raises(InputError, match="too early to seal; the event clock has reached 2026-01-01"):
        pipeline.seal_day(found["simulated"], SURFACE, QUIET)


def test_a_day_is_validated_once_for_the_same_rows_rules_and_policies(settings, validated, never):
    assert validated["status"] in ("pass", "warning")
    assert validated["counts"]["requests"] > 1000
    (record,) = records(settings, "validate_logs")
    assert json.loads(record.read_text())["result"] == validated
    never("mtf.quality.validate_day")
    assert pipeline.validate_logs(settings, SURFACE, DT) == validated
    with pytest.raises(AssertionError, match="ran again"):
        pipeline.validate_logs(settings, SURFACE, DT, force=True)


def test_an_edited_rule_runs_it_again_and_a_critical_day_stops_the_chain(settings, validated):
    rules = settings.expectations_dir / "day.json"
    before = rules.read_text()
    document = json.loads(before)
    (rule,) = (e for e in document["expectations"] if e["meta"]["rule"] == "day_not_empty")
    rule["kwargs"]["min_value"] = 10_000_000
    rules.write_text(json.dumps(document))
    try:
        for _ in range(2):  # and stops it again
            with pytest.raises(CriticalError, match=rf"{DT}: .*the day holds no usable request: .* See Data Docs"):
                pipeline.validate_logs(settings, SURFACE, DT)
        assert len(records(settings, "validate_logs")) == 2
    finally:
        rules.write_text(before)
    # the old rules: the old verdict
    assert pipeline.validate_logs(settings, SURFACE, DT) == validated


def test_a_day_that_was_critical_and_is_mended_goes_on(settings, validated):
    """The manifest, which the key holds, is the same before, while and after a file is damaged."""
    (path,) = day_files(settings.logs_dir(SURFACE), DT, "feedback")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    try:
        with pytest.raises(CriticalError):
            pipeline.validate_logs(settings, SURFACE, DT, force=True)
    finally:
        path.write_bytes(data)
    assert pipeline.validate_logs(settings, SURFACE, DT) == validated


def test_a_dataset_is_new_once_and_for_the_task_that_tries_again(settings, published):
    assert published["revision"] == f"data/{SURFACE}/{DT}.r1"
    assert published["rows"] == pipeline.build_transitions(settings, SURFACE, DT)["rows"]
    assert pipeline.publish_dataset(settings, SURFACE, DT, publisher="run 1") == published
    with pytest.raises(SkipError, match=r"published already, as data/feed/2026-03-02\.r1; nothing downstream"):
        pipeline.publish_dataset(settings, SURFACE, DT, publisher="run 2")


def test_the_same_dataset_is_trained_once_unless_forced(settings, trained, never):
    version = find_version(settings, SURFACE, trained["version"])
    assert version.tags["dataset_revision"] == f"data/{SURFACE}/{DT}.r1"
    assert version.tags["dataset_dt"] == DT
    assert version.tags["parent_sha"] == read_latest(open_store(settings=settings), SURFACE).champion.sha
    assert version.policy_sha == trained["policy_sha"]
    before = trained_versions(settings, SURFACE)
    # without an event (by hand) the newest version of the workspace is taken
    assert pipeline.train_policy(settings, SURFACE) == trained
    assert trained_versions(settings, SURFACE) == before
    forced = pipeline.train_policy(settings, SURFACE, force=True)
    assert forced["version"] != trained["version"]
    assert forced["policy_sha"] == trained["policy_sha"]
    never("mtf.learning.run.train")
    # another algorithm, seed or number of steps is another training
    for changes in ({"algorithm": "linear_advantage"}, {"seed": 7}, {"steps": 3}):
        with pytest.raises(AssertionError, match="ran again"):
            pipeline.train_policy(settings, SURFACE, **changes)


def test_training_waits_for_a_rollout_to_end(settings, trained):
    store = open_store(settings=settings)
    latest = read_latest(store, SURFACE)
    running = Rollout(id="r", phase="running", started_ts="2026-03-03T00:00:00+00:00")
    write_next(store, msgspec.structs.replace(latest, generation=latest.generation + 1, rollout=running))
    try:
        with pytest.raises(SkipError, match="rollout r is running; a training would compare with a moving champion"):
            pipeline.train_policy(settings, SURFACE)
    finally:
        after = msgspec.structs.replace(latest, generation=latest.generation + 2)
        write_next(store, after)


def test_a_day_of_a_canary_is_not_trained_on_but_one_that_its_session_reaches_into_is(settings, published, tmp_path, never):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mtf import datasets

    data = datasets.checkout(settings, SURFACE, published["revision"], tmp_path / "data")
    table = pq.read_table(data / f"dt={DT}" / "transitions.parquet")
    arms, times = table["arm"].to_pylist(), table["ts"].cast(pa.int64()).to_pylist()
    (data / "dt=2026-03-03").mkdir()
    (data / ".revision.json").unlink()

    def train(first_ts):
        """Train on data whose last day, the next one, has one row of a canary, at `first_ts`."""
        changed = {"arm": ["canary", *arms[1:]], "ts": [first_ts, *(ts + DAY_US for ts in times[1:])]}
        day = table
        for name, values in changed.items():
            field = table.schema.field(name)
            day = day.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        pq.write_table(day, data / "dt=2026-03-03" / "transitions.parquet")
        found = datasets.version_dataset(settings, SURFACE, "2026-03-03", data)
        event = {"dt": found.dt, "revision": found.tag, "md5": found.md5, "rows": found.rows}
        pipeline.train_policy(settings, SURFACE, [published, event])

    midnight = day_number("2026-03-03") * DAY_US
    never("mtf.pipeline._train")
    with pytest.raises(AssertionError, match="ran again"):  # it trains
        train(midnight - 1)
    with pytest.raises(SkipError, match="dt=2026-03-03 is a day of a rollout"):
        train(midnight)


def test_a_dataset_that_nobody_published_is_named(settings, published):
    with pytest.raises(NotFoundError, match=r"no version of feed \['data/feed/2030-01-01\.r1'\]; run seal_day first"):
        pipeline.train_policy(settings, SURFACE, [{"revision": "data/feed/2030-01-01.r1"}])


def test_the_verdict_is_on_the_version_and_is_given_once(settings, trained, judged, never):
    version = find_version(settings, SURFACE, trained["version"])
    champion = read_latest(open_store(settings=settings), SURFACE).champion.sha
    assert (judged["version"], judged["baseline"]) == (trained["version"], champion)
    assert version.tags["verdict"] == judged["verdict"] in ("pass", "fail", "inconclusive")
    assert version.tags["verdict_baseline"] == champion
    report = settings.state_dir / "evaluations" / SURFACE / trained["version"] / "report.json"
    assert json.loads(report.read_text())["reason"] == version.tags["verdict_reason"]
    never("mtf.evaluation.run.evaluate")
    assert pipeline.evaluate_policy(settings, SURFACE, [trained]) == judged
    # of several events the newest version is taken
    assert pipeline.evaluate_policy(settings, SURFACE, [{"version": "1"}, trained]) == judged


def test_after_a_verdict_that_is_no_pass_the_champions_next_box_is_asked_for_once(settings, trained, judged):
    tag(settings, SURFACE, trained["version"], {"verdict": "inconclusive"})
    store = open_store(settings=settings)
    found = pipeline.refresh_exploration(settings, SURFACE, [trained])
    assert (found["of"], found["verdict"]) == ("champion", "inconclusive")
    box = read_exploration(settings.state_dir / "exploration" / SURFACE / f"{trained['version']}.json")
    assert box.sha == found["box"]
    assert store.exists(f"exploration/{SURFACE}/{box.sha}.json")
    asked = [intent for _, intent in open_intents(store, SURFACE) if intent.action == "explore"]
    assert [intent.exploration.half_width for intent in asked] == [box.half_width]
    assert pipeline.refresh_exploration(settings, SURFACE, [trained]) == found
    assert len([i for _, i in open_intents(store, SURFACE) if i.action == "explore"]) == 1
    with pytest.raises(SkipError, match=f"version {trained['version']}: inconclusive, not pass"):
        pipeline.deploy_canary(settings, SURFACE, [trained])


def test_after_a_pass_the_box_is_the_candidates_and_a_canary_is_asked_for_once(settings, second):
    candidate = second
    champion = read_latest(open_store(settings=settings), SURFACE).champion
    verdict = {"verdict": "pass", "verdict_reason": "It is better.", "verdict_baseline": champion.sha}
    tag(settings, SURFACE, candidate["version"], verdict)
    found = pipeline.refresh_exploration(settings, SURFACE, [candidate])
    assert found["of"] == "candidate"
    box = json.loads(find_version(settings, SURFACE, candidate["version"]).tags["box"])
    assert box["sha"] == found["box"]
    asked = pipeline.deploy_canary(settings, SURFACE, [candidate])
    assert find_version(settings, SURFACE, "challenger").version == candidate["version"]
    store = open_store(settings=settings)
    (intent,) = (i for name, i in open_intents(store, SURFACE) if name == asked["intent"])
    assert (intent.action, intent.policy.sha, intent.gate_verdict) == ("start", candidate["policy_sha"], "pass")
    assert intent.exploration.half_width == tuple(box["half_width"])
    assert pipeline.deploy_canary(settings, SURFACE, [candidate]) == asked
    assert len([i for _, i in open_intents(store, SURFACE) if i.action == "start"]) == 1

    # what becomes of it is read from the store alone
    assert pipeline.rollout_outcome(settings, SURFACE, asked["intent"]) is None
    answer(store, SURFACE, asked["intent"], Answer(done=False, reason="frozen", generation=1))
    assert pipeline.rollout_outcome(settings, SURFACE, asked["intent"]) == "refused: frozen"
    answer(store, SURFACE, asked["intent"], Answer(done=True, reason="", generation=1))
    assert pipeline.rollout_outcome(settings, SURFACE, asked["intent"]).startswith("ended: a later rollout has begun")
    latest = read_latest(store, SURFACE)
    for phase, outcome, says in (("running", None, None), ("idle", "promoted", "promoted: better")):
        rollout = Rollout(id=asked["intent"], phase=phase, started_ts="", outcome=outcome, reason="better")
        latest = msgspec.structs.replace(latest, generation=latest.generation + 1, rollout=rollout)
        write_next(store, latest)
        assert pipeline.rollout_outcome(settings, SURFACE, asked["intent"]) == says


def test_a_canary_that_was_refused_is_asked_for_anew_and_one_that_ended_is_not(settings, second):
    store = open_store(settings=settings)
    asked = pipeline.deploy_canary(settings, SURFACE, [second])
    answer(store, SURFACE, asked["intent"], Answer(done=False, reason="the store was away", generation=1))
    anew = pipeline.deploy_canary(settings, SURFACE, [second])
    assert anew["intent"] != asked["intent"]
    answer(store, SURFACE, anew["intent"], Answer(done=True, reason="", generation=1))
    # as the registry does when a rollout has ended
    connect(settings).delete_model_version_tag(model_name(SURFACE), second["version"], "intent_challenger")
    assert pipeline.deploy_canary(settings, SURFACE, [second]) == anew


def test_the_verdict_on_the_version_is_the_one_against_todays_champion(settings, trained, second):
    """A champion that returns finds its verdict stored; the version must say it, too."""
    store = open_store(settings=settings)
    first = read_latest(store, SURFACE)
    uri = put_bundle(store, trained["policy_sha"], registered_policy(settings, SURFACE, trained["policy_sha"]).to_files())
    other = PolicyRef(sha=trained["policy_sha"], version=trained["version"], uri=uri)
    generation = first.generation
    for champion in (first.champion, other, first.champion):
        generation += 1
        write_next(store, msgspec.structs.replace(first, generation=generation, champion=champion))
        found = pipeline.evaluate_policy(settings, SURFACE, [second])
        tags = find_version(settings, SURFACE, second["version"]).tags
        assert found["baseline"] == tags["verdict_baseline"] == champion.sha
        assert found["verdict"] == tags["verdict"]
    write_next(store, msgspec.structs.replace(first, generation=generation + 1, champion=other))
    with pytest.raises(SkipError, match=r"was judged against .*; evaluate it again"):
        pipeline.refresh_exploration(settings, SURFACE, [second])
    write_next(store, msgspec.structs.replace(first, generation=generation + 2))


def test_only_what_was_validated_is_built(world_dir, tmp_path):
    """Also of the days that follow: they are built again from their newest revision."""
    settings, world = Settings(state_dir=tmp_path, clock="simulated"), World.load(world_dir)
    next_dt, logs = "2026-03-03", settings.logs_dir(SURFACE)
    for dt, users in ((DT, 5), (next_dt, 5)):
        write_day(logs, dt, *simulate(world, bootstrap_policy(world.spec), users, dt, 1, 0.3), world.spec)

    with pytest.raises(SkipError, match=f"{DT}: revision 1 has no verdict yet; validate_logs comes first"):
        _require_validated(settings, SURFACE, DT)
    judged_logs(settings, DT, 1, "critical")
    with pytest.raises(CriticalError, match=f"{DT}: revision 1 may not be used"):
        _require_validated(settings, SURFACE, DT)
    judged_logs(settings, DT, 1, "warning")
    _require_validated(settings, SURFACE, DT)
    # the next day was built of its first revision; then rows came late, and are refused
    built = build_day(logs, next_dt, settings.transitions_dir(SURFACE), spec=world.spec, expectations_dir=None)
    _require_validated(settings, SURFACE, DT)
    assert built.logs_revision == 1
    write_day(logs, next_dt, *simulate(world, bootstrap_policy(world.spec), 6, next_dt, 1, 0.3), world.spec)
    judged_logs(settings, next_dt, 2, "critical")
    with pytest.raises(CriticalError, match=f"{next_dt}: revision 2 may not be used, and building {DT} would read it"):
        _require_validated(settings, SURFACE, DT)


def test_a_day_that_had_to_wait_for_the_next_ones_verdict_is_built_with_it(world_dir, tmp_path):
    """Both came late; the first day's run skips, and no other run of it comes."""
    settings, world = Settings(state_dir=tmp_path, clock="simulated"), World.load(world_dir)
    world.spec.write(tmp_path / "surfaces" / SURFACE / "spec.json")
    next_dt, logs, out = "2026-03-03", settings.logs_dir(SURFACE), settings.transitions_dir(SURFACE)
    for users, revision in ((40, 1), (41, 2)):
        for dt in (DT, next_dt):
            write_day(logs, dt, *simulate(world, bootstrap_policy(world.spec), users, dt, 1, 0.3), world.spec)
            if revision == 1:
                build_day(logs, dt, out, spec=world.spec, expectations_dir=settings.expectations_dir)

    judged_logs(settings, DT, 2, "pass")
    with pytest.raises(SkipError, match=f"{next_dt}: revision 2 has no verdict yet; once it has, its own run builds {DT}, too"):
        pipeline.build_transitions(settings, SURFACE, DT)
    judged_logs(settings, next_dt, 2, "pass")
    assert pipeline.build_transitions(settings, SURFACE, next_dt)["dt"] == next_dt
    assert [read_build(out, dt).logs_revision for dt in (DT, next_dt)] == [2, 2]


def test_a_candidate_of_older_data_than_the_champions_is_not_deployed(settings, trained, second):
    tag(settings, SURFACE, second["version"], {"dataset_dt": "2026-03-09"})
    tag(settings, SURFACE, trained["version"], {"verdict": "pass", "verdict_reason": "x"})
    store = open_store(settings=settings)
    latest = read_latest(store, SURFACE)
    champion = PolicyRef(sha=second["policy_sha"], version=second["version"], uri="")
    write_next(store, msgspec.structs.replace(latest, generation=latest.generation + 1, champion=champion))
    try:
        with pytest.raises(SkipError, match=f"trained on data up to {DT}, the champion's go to 2026-03-09"):
            pipeline.deploy_canary(settings, SURFACE, [trained])
    finally:
        write_next(store, msgspec.structs.replace(latest, generation=latest.generation + 2))


def test_what_is_missing_is_named(tmp_path, mlflow_url):
    empty = Settings(state_dir=tmp_path, mlflow_url=mlflow_url)
    with pytest.raises(NotFoundError, match="has no deployment document; `mtf up` writes the first one"):
        pipeline.train_policy(empty, "other")
    with pytest.raises(NotFoundError, match="surface 'other' has no trained version"):
        pipeline.evaluate_policy(empty, "other")
    with pytest.raises(InputError, match=r"spec\.json does not exist"):
        pipeline.seal_day(empty, "other", DT)


def test_a_training_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "surfaces" / "feed" / "pipeline.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"algoritm": "es"}')
    with pytest.raises(InputError, match=r"pipeline\.json: .*algoritm"):
        pipeline._training(Settings(state_dir=tmp_path), "feed")


def test_the_code_is_named_by_its_commit_and_what_differs_from_it():
    name = pipeline.code_version()
    commit, _, rest = name.partition("-dirty-")
    assert len(commit) == 40 or name.startswith("sources-")
    assert rest == "" or len(rest) == 12
    assert pipeline.code_version() == name
