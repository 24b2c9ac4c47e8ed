"""The steps of the chain, as the DAGs call them: one function a step.

Each resolves where things are, calls its room, and is idempotent by key: hash(inputs, configuration, seed, spec, code). The
same key returns the stored result (`<state>/pipeline/<step>/<key>.json`); `force` runs again. Results are small: hashes,
revisions, URIs. Where there is nothing to do a step raises SkipError; where the data may not be used, CriticalError.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mtf.errors import InputError, IntegrityError, MtfError, NotFoundError
from mtf.fileio import write_atomic
from mtf.policy import Policy
from mtf.rollout.document import DeploymentDocument, Exploration, PolicyRef
from mtf.settings import ROOT, Settings
from mtf.spec import FusionSpec

Result = dict[str, Any]


class SkipError(MtfError):
    """There is nothing to do, and why."""


class CriticalError(MtfError):
    """The data may not be used: the chain stops here and leaves everything as it was."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """<state>/surfaces/<surface>/pipeline.json: how the chain trains. overrides: settings of the algorithm, as text."""

    algorithm: str = "slate_replay"
    seed: int = 1
    steps: int | None = None
    overrides: dict[str, str] = {}


def seal_day(settings: Settings, surface: str, dt: str) -> Result:
    """Seal a day of the event clock; sealing it again gives the same revision, or a new one where rows came late."""
    from mtf.logs.seal import seal_day as seal

    spec = read_spec(settings, surface)
    # callers cannot set the time of a real clock, so it moves on also while nobody asks and no server marks the spool
    clock_us = settings.clock_us
    manifest = seal(settings.spool_dir(surface), settings.logs_dir(surface), dt, spec, surface=surface, clock_us=clock_us)
    return {"dt": dt, "revision": manifest.revision, "manifest": _digest(msgspec.to_builtins(manifest))}


def validate_logs(settings: Settings, surface: str, dt: str, *, force: bool = False) -> Result:
    """Check a sealed day against the expectations. Raises CriticalError with the reasons where it may not be used."""
    from mtf.logs.days import read_manifest
    from mtf.quality import validate_day

    spec, logs, out = read_spec(settings, surface), settings.logs_dir(surface), settings.quality_dir(surface)
    manifest = read_manifest(logs, dt)
    policies = _served_policies(settings, surface)
    inputs = {
        "dt": dt,
        "manifest": _digest(msgspec.to_builtins(manifest)),
        "expectations": _folder_digest(settings.expectations_dir),
        "policies": sorted(policies),
    }

    def work(_: str) -> Result:
        verdict = validate_day(
            logs,
            dt,
            out,
            spec=spec,
            expectations_dir=settings.expectations_dir,
            docs_dir=settings.docs_dir,
            policies=policies,
            threads=settings.threads,
        )
        return {"dt": dt, "status": verdict.status, "reasons": verdict.reasons, "counts": verdict.counts}

    settled = _status(settings, surface, dt, manifest.revision) in ("pass", "warning")
    found = _once(settings, surface, "validate_logs", inputs, work, force=force or not settled)
    if found["status"] == "critical":
        raise CriticalError(f"{dt}: {' '.join(found['reasons'])} See Data Docs, and `mtf quarantine list`.")
    return found


def build_transitions(settings: Settings, surface: str, dt: str) -> Result:
    """Build a day's transitions, and those of later days again where what this day carries over has changed; judge the pool.

    The room itself does nothing where a day is built already from the same rows, rules and code. Raises SkipError where the
    day's newest revision has no verdict yet, CriticalError where it may not be used, or where any built day may not be
    published: the dataset is all of them.
    """
    from mtf.transitions.build import build_day
    from mtf.transitions.judge import judge_built

    spec, logs, out = read_spec(settings, surface), settings.logs_dir(surface), settings.transitions_dir(surface)
    rules = settings.expectations_dir
    _require_validated(settings, surface, dt)
    # first the days that could not be built again while this one had no verdict: no run of theirs comes any more
    for day in [*_left_behind(settings, surface, dt), dt]:
        built = build_day(logs, day, out, spec=spec, expectations_dir=rules, threads=settings.threads)
    verdicts = judge_built(
        logs,
        out,
        settings.quality_dir(surface),
        spec=spec,
        expectations_dir=rules,
        docs_dir=settings.docs_dir,
        threads=settings.threads,
    )
    bad = [f"{v.dt}: {' '.join(v.reasons)}" for v in verdicts if v.status == "critical"]
    if bad:
        raise CriticalError(f"transitions of {'; '.join(bad)} Nothing is published. See Data Docs.")
    return {"dt": dt, "rows": built.rows, "sessions": built.sessions, "carried": built.carried, "md5": built.md5}


def publish_dataset(settings: Settings, surface: str, dt: str, *, publisher: str) -> Result:
    """Version what is built: commit, push, verify, tag. Raises SkipError where the pooled content is published already.

    publisher: who asks; asked again by the same one (a retried task), the version counts as new.
    """
    from mtf.datasets import version_dataset

    revision = version_dataset(settings, surface, dt, settings.transitions_dir(surface))
    mark = settings.state_dir / "pipeline" / "publish_dataset" / f"{surface}.json"
    last = json.loads(mark.read_bytes()) if mark.exists() else {}
    if last.get("md5") == revision.md5 and last.get("publisher") != publisher:
        raise SkipError(f"dataset {revision.md5} is published already, as {last['revision']}; nothing downstream is asked to run")
    found = {"dt": dt, "revision": revision.tag, "md5": revision.md5, "rows": revision.rows}
    write_atomic(mark, json.dumps(found | {"publisher": publisher}).encode())
    return found


def train_policy(
    settings: Settings,
    surface: str,
    datasets: Sequence[Mapping[str, Any]] = (),
    *,
    algorithm: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    force: bool = False,
) -> Result:
    """Train on a checked-out dataset revision and register the bundle.

    datasets: of all triggering events; the newest is taken, or the workspace's newest where there is none. algorithm, steps,
    seed: default the surface's TrainingConfig. Raises SkipError while a rollout runs, and
    where the dataset ends with a day of one.
    """
    document = _document(settings, surface)
    if document.rollout is not None and document.rollout.phase != "idle":
        raise SkipError(
            f"rollout {document.rollout.id} is {document.rollout.phase}; a training would compare with a moving champion"
        )
    dataset = _newest(settings, surface, datasets)
    config = _training(settings, surface)
    chosen: Result = {
        "algorithm": algorithm or config.algorithm,
        "seed": config.seed if seed is None else seed,
        "steps": config.steps if steps is None else steps,
        "overrides": config.overrides,
    }
    inputs = {"dataset": dict(dataset), "champion": document.champion.sha} | chosen

    def work(key: str) -> Result:
        return _train(settings, surface, dataset, document, chosen, f"{key}-{secrets.token_hex(3)}" if force else key)

    day = _newest_day(_checkout(settings, surface, dataset["revision"]))
    if _is_canary_day(day):
        raise SkipError(f"{day.name} is a day of a rollout: few explored around today's champion; the next explore day trains")
    return _once(settings, surface, "train_policy", inputs, work, force=force)


def evaluate_policy(
    settings: Settings, surface: str, candidates: Sequence[Mapping[str, Any]] = (), *, force: bool = False
) -> Result:
    """Judge a version against today's champion on the gate's users; the verdict and the report go to the registry.

    candidates: of all triggering events; the newest version is taken, or the registry's newest where there is none.
    """
    from mtf.evaluation.run import evaluate
    from mtf.registry import download_bundle, find_version, require, tag_verdict

    version = find_version(settings, surface, _newest_version(settings, surface, candidates))
    champion = _document(settings, surface).champion
    revision = require(version, "dataset_revision")
    out = settings.state_dir / "evaluations" / surface / version.version
    files = {name: out / name for name in ("report.json", "report.html")}
    inputs = {"version": version.version, "policy": version.policy_sha, "champion": champion.sha, "revision": revision}

    def work(_: str) -> Result:
        transitions = _checkout(settings, surface, revision)
        bundle = download_bundle(settings, version, settings.bundles_dir)
        report = evaluate(transitions, bundle, _bundle(settings, champion), out)
        return {"version": version.version, "verdict": report.verdict, "baseline": champion.sha}

    # the folder holds the last report of the version: one against another champion is not this one's
    there = json.loads(files["report.json"].read_bytes()) if files["report.json"].exists() else {}
    force = force or (there.get("policy_sha"), there.get("baseline_sha")) != (version.policy_sha, champion.sha)
    found = _once(settings, surface, "evaluate_policy", inputs, work, force=force)
    report = json.loads(files["report.json"].read_bytes())
    tag_verdict(settings, surface, version.version, report=report, baseline_sha=champion.sha, files=files)
    return found


def refresh_exploration(
    settings: Settings, surface: str, candidates: Sequence[Mapping[str, Any]] = (), *, force: bool = False
) -> Result:
    """Choose the next box, from the rows explored around today's champion.

    After a pass it is the candidate's, kept with its version and in force from its promotion; after another verdict it is the
    champion's next one, and the controller is asked to put it in force. Raises SkipError where the verdict is about another
    champion.
    """
    from mtf.exploration import read_exploration, refresh
    from mtf.registry import download_bundle, find_version, require, tag_box
    from mtf.rollout.intents import Intent, submit
    from mtf.store import open_store

    version = find_version(settings, surface, _newest_version(settings, surface, candidates))
    verdict, baseline = require(version, "verdict"), require(version, "verdict_baseline")
    passed = verdict == "pass"
    champion = _document(settings, surface).champion
    if baseline != champion.sha:
        raise SkipError(
            f"version {version.version} was judged against {baseline[:12]}, the champion is {champion.sha[:12]} now; "
            "evaluate it again"
        )
    path = settings.state_dir / "exploration" / surface / f"{version.version}.json"
    inputs = {"version": version.version, "verdict": verdict, "baseline": baseline}

    def work(_: str) -> Result:
        transitions = _checkout(settings, surface, require(version, "dataset_revision"))
        folder = _bundle(settings, champion)
        policy = download_bundle(settings, version, settings.bundles_dir) if passed else folder
        document = refresh(policy=policy, transitions=transitions, baseline=folder, out=path)
        store, box = open_store(settings=settings), Exploration(sha=document.sha, half_width=document.half_width)
        store.put_file(f"exploration/{surface}/{document.sha}.json", path)
        if not passed:
            reason = f"version {version.version}: {verdict}; the champion's next box. {document.reason}"
            submit(store, surface, Intent(action="explore", exploration=box, by="refresh_exploration", reason=reason))
        return {"version": version.version, "verdict": verdict, "box": document.sha, "of": "candidate" if passed else "champion"}

    found = _once(settings, surface, "refresh_exploration", inputs, work, force=force or not path.exists())
    if (document := read_exploration(path)).sha != found["box"]:  # the file is of the version's box around another champion
        found = _once(settings, surface, "refresh_exploration", inputs, work, force=True)
        document = read_exploration(path)
    if passed:
        tag_box(settings, surface, version.version, Exploration(sha=document.sha, half_width=document.half_width), path)
    return found


def deploy_canary(settings: Settings, surface: str, candidates: Sequence[Mapping[str, Any]] = ()) -> Result:
    """Set the alias `challenger` and ask the controller for a canary.

    Asked again for the same version, box and champion it is the same canary, also after that ended: another one is a person's
    to start (`mtf rollout start`, or the alias). One that was refused is asked for anew.
    Raises SkipError where the verdict is not a pass, or the version's data ends before the champion's.
    """
    from mtf.registry import CHALLENGER, find_version, intent_for_version, set_alias, submit_once
    from mtf.rollout.intents import read_answer
    from mtf.store import open_store

    version = find_version(settings, surface, _newest_version(settings, surface, candidates))
    if version.tags.get("verdict") != "pass":
        raise SkipError(
            f"version {version.version}: {version.tags.get('verdict')}, not pass. {version.tags.get('verdict_reason', '')}"
        )
    document = _document(settings, surface)
    newest = _data_of(settings, surface, document.champion.version)
    if newest is not None and version.tags["dataset_dt"] < newest:
        raise SkipError(
            f"version {version.version} was trained on data up to {version.tags['dataset_dt']}, the champion's go to {newest}"
        )
    reason = f"gate passed: {version.tags['verdict_reason']}"
    inputs = {
        "version": version.version,
        "policy": version.policy_sha,
        "champion": document.champion.sha,
        "judged_against": version.tags.get("verdict_baseline"),
        "box": version.tags.get("box"),
    }

    def work(_: str) -> Result:
        intent = intent_for_version(settings, surface, version.version, action="start", by="deploy_canary", reason=reason)
        # the intent is noted on the version before the alias moves, so that reconciling does not take the move for a person's
        name = submit_once(settings, surface, CHALLENGER, version, intent)
        set_alias(settings, surface, CHALLENGER, version.version)
        return {"version": version.version, "intent": name}

    found = _once(settings, surface, "deploy_canary", inputs, work, force=False)
    answer = read_answer(open_store(settings=settings), surface, found["intent"])
    refused = answer is not None and not answer.done
    return _once(settings, surface, "deploy_canary", inputs, work, force=True) if refused else found


def rollout_outcome(settings: Settings, surface: str, intent: str) -> str | None:
    """What became of a canary that was asked for, or None while it waits or runs. Reads the store alone."""
    from mtf.rollout.intents import read_answer
    from mtf.store import open_store

    store = open_store(settings=settings)
    answer = read_answer(store, surface, intent)
    if answer is None:
        return None
    if not answer.done:
        return f"refused: {answer.reason}"
    document = _document(settings, surface)
    rollout = document.rollout
    if rollout is None or rollout.id != intent:
        return "ended: a later rollout has begun; the document's history tells"
    return f"{rollout.outcome}: {rollout.reason}" if rollout.outcome is not None else None


def read_spec(settings: Settings, surface: str) -> FusionSpec:
    """The surface's spec, as the state folder keeps it."""
    return FusionSpec.read(settings.spec_file or settings.state_dir / "surfaces" / surface / "spec.json")


def code_version() -> str:
    """Git commit of the checkout, `-dirty` and a hash of the sources where they differ from it; else the sources' hash."""
    sources = hashlib.sha256()
    for path in sorted((ROOT / "mtf").rglob("*.py")):
        sources.update(path.read_bytes())
    digest = sources.hexdigest()[:12]
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--", "mtf")
    except (OSError, subprocess.CalledProcessError):
        return f"sources-{digest}"
    return f"{commit}-dirty-{digest}" if dirty else commit


def _train(
    settings: Settings, surface: str, dataset: Mapping[str, Any], document: DeploymentDocument, chosen: Result, key: str
) -> Result:
    from mtf.evaluation.power import power
    from mtf.learning.run import train
    from mtf.registry import log_training
    from mtf.transitions.table import load_transitions

    transitions = _checkout(settings, surface, dataset["revision"])
    found_power = msgspec.to_builtins(power(load_transitions(transitions, users="gate")))
    out = settings.state_dir / "training" / surface / key
    checkpoints = settings.state_dir / "checkpoints" / surface / key  # a task that was killed goes on from there
    trained = train(
        transitions,
        out,
        baseline=_bundle(settings, document.champion),
        dataset_md5=dataset["md5"],
        dataset_revision=dataset["revision"],
        checkpoints=checkpoints,
        progress=False,
        **chosen,
    )
    lineage = {
        "step_key": key,
        "dataset_revision": str(dataset["revision"]),
        "dataset_md5": str(dataset["md5"]),
        "dataset_rows": str(dataset["rows"]),
        "dataset_dt": _newest_day(transitions).name.removeprefix("dt="),
        "code_sha": code_version(),
        "parent_sha": document.champion.sha,
        "parent_version": document.champion.version,
    }
    version = log_training(settings, surface, bundle=out, report=trained.report, power=found_power, lineage=lineage)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return {"version": version.version, "policy_sha": version.policy_sha, "run_id": version.run_id}


def _require_validated(settings: Settings, surface: str, dt: str) -> None:
    """Raises SkipError or CriticalError where building `dt` would read a revision, its own or one of the built days that follow
    from it, that validation has not seen or has refused: builds read the newest."""
    from mtf.logs.days import list_days, next_day, read_manifest
    from mtf.transitions.pool import read_build

    logs, out = settings.logs_dir(surface), settings.transitions_dir(surface)
    sealed, day = set(list_days(logs)), dt
    while (build := read_build(out, day)) is not None or day == dt:
        newest = read_manifest(logs, day).revision if day in sealed else None  # None: built of a carry alone
        if newest is not None and (build is None or build.logs_revision != newest):
            status = _status(settings, surface, day, newest)
            if status is None:
                then = "validate_logs comes first" if day == dt else f"once it has, its own run builds {dt}, too"
                raise SkipError(f"{day}: revision {newest} has no verdict yet; {then}")
            if status == "critical":
                raise CriticalError(f"{day}: revision {newest} may not be used, and building {dt} would read it. See Data Docs.")
        day = next_day(day)


def _status(settings: Settings, surface: str, dt: str, revision: int) -> str | None:
    """What validation says of a day's revision; None where there is no verdict that can be read."""
    from mtf.quality import read_verdict

    try:
        return read_verdict(settings.quality_dir(surface), dt, revision).status
    except (NotFoundError, IntegrityError):
        return None


def _left_behind(settings: Settings, surface: str, until: str) -> list[str]:
    """Days before `until` that are built of an older revision than their newest one, which may be built now."""
    from mtf.logs.days import list_days, read_manifest
    from mtf.transitions.pool import read_build

    logs, found = settings.logs_dir(surface), []
    for day in list_days(logs):
        build = read_build(settings.transitions_dir(surface), day)
        if day < until and build is not None and build.logs_revision != read_manifest(logs, day).revision:
            with contextlib.suppress(SkipError, CriticalError):
                _require_validated(settings, surface, day)
                found.append(day)
    return found


def _newest(settings: Settings, surface: str, datasets: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the triggering events the one that was published last; without any (run by hand) the workspace's newest version."""
    from mtf.datasets import log

    versions = log(settings, surface)  # newest first
    asked = {event["revision"] for event in datasets}
    found = [version for version in versions if not asked or version.tag in asked]
    if not found:
        raise NotFoundError(f"dataset: no version of {surface} {sorted(asked) or ''}; run seal_day first, see `mtf data log`")
    newest = found[0]
    return {"dt": newest.dt, "revision": newest.tag, "md5": newest.md5, "rows": newest.rows}


def _newest_version(settings: Settings, surface: str, candidates: Sequence[Mapping[str, Any]]) -> str:
    """Of the triggering events the newest version; without any (run by hand) the registry's newest trained one."""
    from mtf.registry import trained_versions

    found = [event["version"] for event in candidates] or trained_versions(settings, surface)
    if not found:
        raise NotFoundError(f"surface {surface!r} has no trained version; run train_policy first")
    return str(max(found, key=int))


def _checkout(settings: Settings, surface: str, revision: str) -> Path:
    """The revision's files; training and evaluation read nothing else. The last few check-outs are kept."""
    from mtf.datasets import checkout

    root = settings.state_dir / "checkouts" / surface
    out = root / revision.rsplit("/", 1)[-1]
    for old in sorted(root.glob("*"), key=lambda path: path.stat().st_mtime)[:-2]:
        if old != out:
            shutil.rmtree(old, ignore_errors=True)
    return checkout(settings, surface, revision, out)


def _newest_day(transitions: Path) -> Path:
    """The partition of the dataset's last day."""
    return max(transitions.rglob("dt=*/transitions.parquet")).parent


def _is_canary_day(day: Path) -> bool:
    """Has the day rows of a canary? Judged on the rows, so that it does not depend on when the chain runs.

    Only rows of the day itself count: those of a session that was open at midnight lie here, but tell of the day before.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mtf.logs.days import day_bounds

    start, end = day_bounds(day.name.removeprefix("dt="))
    table = pq.read_table(day / "transitions.parquet", columns=["arm", "ts"])
    ts = table["ts"].cast(pa.int64()).to_numpy()
    return "canary" in table["arm"].filter(pa.array((start <= ts) & (ts < end))).unique().to_pylist()


def _bundle(settings: Settings, ref: PolicyRef) -> Path:
    """The folder of a bundle that the document names, fetched from the store and verified."""
    from mtf.rollout.documents import fetch_bundle
    from mtf.store import open_store

    fetch_bundle(open_store(settings=settings), ref, settings.bundles_dir)
    return settings.bundles_dir / ref.sha


def _served_policies(settings: Settings, surface: str) -> dict[str, Policy]:
    """The bundles that the document names, by hash: logged centers are recomputed from them."""
    from mtf.rollout.documents import fetch_bundle
    from mtf.store import open_store

    document, store = _document(settings, surface), open_store(settings=settings)
    refs = (document.champion, document.canary, document.previous, document.bootstrap)
    return {ref.sha: fetch_bundle(store, ref, settings.bundles_dir) for ref in refs if ref is not None}


def _document(settings: Settings, surface: str) -> DeploymentDocument:
    from mtf.rollout.documents import read_latest
    from mtf.store import open_store

    document = read_latest(open_store(settings=settings), surface)
    if document is None:
        raise NotFoundError(f"surface {surface!r} has no deployment document; `mtf up` writes the first one")
    return document


def _data_of(settings: Settings, surface: str, version: str) -> str | None:
    """The last day of a version's data; None for the bootstrap policy."""
    from mtf.registry import find_version

    return find_version(settings, surface, version).tags.get("dataset_dt") if version.isdigit() else None


def _training(settings: Settings, surface: str) -> TrainingConfig:
    path = settings.state_dir / "surfaces" / surface / "pipeline.json"
    if not path.exists():
        return TrainingConfig()
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainingConfig)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: {error}") from error


def _once(
    settings: Settings,
    surface: str,
    step: str,
    inputs: Mapping[str, Any],
    work: Callable[[str], Result],
    *,
    force: bool,
) -> Result:
    """The stored result of this key, or `work(key)` done now and stored."""
    spec = read_spec(settings, surface).version
    key = _digest({"surface": surface, "step": step, "inputs": inputs, "spec": spec, "code": code_version()})
    path = settings.state_dir / "pipeline" / step / f"{key}.json"
    if path.exists() and not force:
        stored: Result = json.loads(path.read_bytes())["result"]
        # what was critical may be mended since: a key knows the manifest, not the bytes
        if stored.get("status") != "critical":
            return stored
    result = work(key)
    record = {"key": key, "inputs": inputs, "result": result}
    write_atomic(path, json.dumps(record, indent=2, sort_keys=True).encode())
    return result


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
