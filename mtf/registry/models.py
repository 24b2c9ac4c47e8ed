"""Logging a training, registering its bundle as a version, tagging what was found about it, and fetching it back.

A version's tags: policy_sha, run_id, step_key, dataset_revision, dataset_md5, dataset_dt, dataset_rows, code_sha; after the
gate verdict, verdict_reason, verdict_baseline, lift, lift_low, lift_high; after the box's refresh box; then rollout.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mtf.errors import InputError, MtfError, NotFoundError
from mtf.fileio import folder_atomic
from mtf.policy import FILES, Policy, bootstrap_policy, load_policy
from mtf.registry.card import card
from mtf.registry.client import connect, model_name
from mtf.rollout.document import Exploration, PolicyRef
from mtf.settings import Settings
from mtf.spec import FusionSpec
from mtf.store import Store

METRIC_BATCH = 1000
TAG_CHARACTERS = 5000
# what MLflow says of a model or number that it does not know, and of an alias
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
REQUIREMENTS = ("numpy", "msgspec", "safetensors")


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A model version: its number, its run and its tags."""

    surface: str
    version: str
    run_id: str
    tags: dict[str, str]

    @property
    def policy_sha(self) -> str:
        """Content hash of its bundle."""
        return self.tags["policy_sha"]


def log_training(
    settings: Settings,
    surface: str,
    *,
    bundle: Path,
    report: Mapping[str, Any],
    power: Mapping[str, Any],
    lineage: Mapping[str, str],
) -> Version:
    """Log a training as a run (parameters, metrics, bundle, train.json) and register its bundle as a new version.

    lineage: the version's tags, step_key among them: a version with the same one is returned instead of a second one.
    """
    client = connect(settings)
    found = _by_step_key(client, surface, lineage["step_key"])
    if found is not None:
        return found
    policy = load_policy(bundle)
    files = {"train.json": dict(report), "power.json": dict(power)}
    parameters = {"algorithm": policy.lineage.algorithm, "seed": policy.lineage.seed} | _flat(policy.lineage.config)
    metrics = _numbers(report) | {f"power.{name}": value for name, value in _numbers(power).items()}
    curve = report.get("algorithm", {}).get("curve", [])
    name = f"train {lineage['dataset_dt']}"
    return _register(client, surface, policy, bundle, files, parameters, metrics, lineage, name=name, curve=curve)


def register_bootstrap(settings: Settings, surface: str, spec: FusionSpec) -> str:
    """Register the spec's start as a version with the alias `champion`; returns its number (the old one if it exists)."""
    client = connect(settings)
    found = _by_step_key(client, surface, "bootstrap")
    if found is None:
        policy = bootstrap_policy(spec)
        with tempfile.TemporaryDirectory() as scratch:
            policy.write(Path(scratch) / "bundle")
            tags = {"step_key": "bootstrap"}
            found = _register(
                client, surface, policy, Path(scratch) / "bundle", {}, {"algorithm": "bootstrap"}, {}, tags, "bootstrap"
            )
        client.set_registered_model_alias(model_name(surface), "champion", found.version)
    return found.version


def find_version(settings: Settings, surface: str, version: str) -> Version:
    """A version by number or alias. Raises NotFoundError; MtfError where MLflow cannot be asked."""
    from mlflow.exceptions import MlflowException

    client = connect(settings)
    name = model_name(surface)
    try:
        found = client.get_model_version(name, version) if version.isdigit() else client.get_model_version_by_alias(name, version)
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise MtfError(
                f"mlflow_url = {settings.mlflow_url}: MLflow cannot be reached or failed: {error}; see `mtf status`"
            ) from error
        raise NotFoundError(
            f"model {name}: no version {version!r} ({error}); see {settings.mlflow_url}/#/models/{name}"
        ) from error
    return _version(surface, found)


def trained_versions(settings: Settings, surface: str) -> list[str]:
    """The numbers of the versions that a training made, oldest first."""
    found = connect(settings).search_model_versions(f"name = '{model_name(surface)}'")
    return sorted((str(version.version) for version in found if "dataset_revision" in version.tags), key=int)


def tag_verdict(
    settings: Settings, surface: str, version: str, *, report: Mapping[str, Any], baseline_sha: str, files: Mapping[str, Path]
) -> Version:
    """Write a gate report on a version: tags, the card, and `files` {artefact name: path} beside its run.

    `verdict_baseline` is written last: a version that has it has all of the verdict against that baseline, and is left as it is
    where it is this one.
    """
    client = connect(settings)
    found = find_version(settings, surface, version)
    lift = report["lift"]
    tags = {
        "lift": _text(lift["mean"]),
        "lift_low": _text(lift["low"]),
        "lift_high": _text(lift["high"]),
        "verdict": report["verdict"],
        "verdict_reason": report["reason"],
        "verdict_baseline": baseline_sha,
    }
    if not _fitting(tags).items() - found.tags.items():
        return found
    for path in files.values():
        client.log_artifact(found.run_id, str(path), artifact_path="gate")
    for key, value in {"gate.lift": lift["mean"], "gate.lift_low": lift["low"], "gate.lift_high": lift["high"]}.items():
        if value is not None and math.isfinite(value):
            client.log_metric(found.run_id, key, value)
    after = msgspec.structs.replace(found, tags=found.tags | tags)
    with tempfile.TemporaryDirectory() as scratch:
        policy = load_policy(_download(found, Path(scratch)))
    client.update_model_version(model_name(surface), found.version, description=card(surface, policy, after.tags))
    _tag(client, found, tags)
    return after


def tag_box(settings: Settings, surface: str, version: str, box: Exploration, path: Path) -> None:
    """Keep a candidate's box, which comes into force at its promotion, with its version; nothing is done where it is there."""
    client = connect(settings)
    found = find_version(settings, surface, version)
    encoded = msgspec.json.encode(box).decode()
    if found.tags.get("box") != encoded:
        client.log_artifact(found.run_id, str(path), artifact_path="exploration")
        _tag(client, found, {"box": encoded})


def tag(settings: Settings, surface: str, version: str, tags: Mapping[str, str]) -> None:
    """Write tags on a version."""
    _tag(connect(settings), find_version(settings, surface, version), tags)


def set_alias(settings: Settings, surface: str, alias: str, version: str) -> None:
    """Point an alias at a version."""
    connect(settings).set_registered_model_alias(model_name(surface), alias, version)


def download_bundle(settings: Settings, version: Version, cache_dir: Path) -> Path:
    """A version's bundle in a local cache by hash, verified; its files come from the registry's artefacts.

    Raises IntegrityError where the artefacts do not have the hash that the version's tag says.
    """
    from mtf.rollout.documents import cached_bundle

    connect(settings)
    folder = cache_dir / version.policy_sha
    if cached_bundle(cache_dir, version.policy_sha) is None:
        with tempfile.TemporaryDirectory() as scratch:
            found = _download(version, Path(scratch))
            load_policy(found, version.policy_sha)
            with folder_atomic(folder) as kept:
                for name in FILES:
                    shutil.copy(found / name, kept / name)
    return folder


def registered_policy(settings: Settings, surface: str, sha: str) -> Policy:
    """The policy of the version whose bundle has this hash, from the registry's artefacts. Raises NotFoundError."""
    client = connect(settings)
    found = client.search_model_versions(f"name = '{model_name(surface)}' and tags.policy_sha = '{sha}'")
    if not found:
        raise NotFoundError(f"model {model_name(surface)}: no version has the bundle {sha}; see {settings.mlflow_url}")
    return load_policy(download_bundle(settings, _version(surface, found[0]), settings.bundles_dir), sha)


def publish_bundle(settings: Settings, store: Store, version: Version) -> PolicyRef:
    """Copy a version's bundle from the registry's artefacts to the bundle store, verified by its hash.

    The bundle store is filled from here alone, so that what is served is what was registered. Raises IntegrityError where
    the artefacts do not have the hash that the version's tag says.
    """
    from mtf.rollout.documents import put_bundle

    connect(settings)
    with tempfile.TemporaryDirectory() as scratch:
        policy = load_policy(_download(version, Path(scratch)), version.policy_sha)
        uri = put_bundle(store, policy.sha, policy.to_files())
    return PolicyRef(sha=policy.sha, version=version.version, uri=uri)


def _register(
    client: Any,
    surface: str,
    policy: Policy,
    bundle: Path,
    files: Mapping[str, object],
    parameters: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    name: str,
    curve: Sequence[Mapping[str, float]] = (),
) -> Version:
    """curve: losses at some steps of the training, `step` among them, for MLflow's charts."""
    import mlflow
    import numpy as np
    from mlflow.entities import Metric, Param
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    mlflow.set_experiment(model_name(surface))
    tags = {**tags, "policy_sha": policy.sha}
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, policy.state_width))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, policy.action_width))]),
    )
    with mlflow.start_run(run_name=name, tags=dict(tags)) as run:
        run_id = run.info.run_id
        now = run.info.start_time
        entries = [Metric(key, value, now, 0) for key, value in metrics.items()]
        entries += [
            Metric(f"curve.{key}", value, now, int(point["step"]))
            for point in curve
            for key, value in _numbers(point).items()
            if key != "step"
        ]
        params = [Param(key, str(value)[:6000]) for key, value in parameters.items()]
        for first in range(0, max(len(entries), 1), METRIC_BATCH):
            client.log_batch(run_id, metrics=entries[first : first + METRIC_BATCH], params=params[:100] if first == 0 else [])
        for file, content in files.items():
            mlflow.log_text(json.dumps(content, indent=2, default=str), file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would like an input example; the bundle's golden states check it better
            logged = mlflow.pyfunc.log_model(
                name="policy",
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={"bundle": str(bundle)},
                signature=signature,
                pip_requirements=list(REQUIREMENTS),
            )
    _ensure_model(client, surface)
    made = client.create_model_version(
        model_name(surface),
        source=logged.model_uri,
        run_id=run_id,
        model_id=logged.model_id,
        tags={**tags, "run_id": run_id},
        description=card(surface, policy, tags),
    )
    return _version(surface, made)


def _ensure_model(client: Any, surface: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name(surface), description=f"Fusion policies of the surface `{surface}`.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _by_step_key(client: Any, surface: str, key: str) -> Version | None:
    found = client.search_model_versions(f"name = '{model_name(surface)}' and tags.step_key = '{key}'")
    return _version(surface, found[0]) if found else None


def _download(version: Version, folder: Path) -> Path:
    """The bundle's folder among a version's artefacts."""
    import mlflow

    uri = f"models:/{model_name(version.surface)}/{version.version}"
    where = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    found = sorted(where.rglob("policy.safetensors"))
    if not found:
        raise NotFoundError(f"{uri}: its artefacts hold no bundle; register it again by running train_policy with force")
    return found[0].parent


def _version(surface: str, found: Any) -> Version:
    return Version(surface=surface, version=str(found.version), run_id=found.run_id, tags=dict(found.tags))


def _tag(client: Any, version: Version, tags: Mapping[str, str]) -> None:
    for key, value in _fitting(tags).items():
        client.set_model_version_tag(model_name(version.surface), version.version, key, value)


def _fitting(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags as MLflow takes them."""
    return {key: value[:TAG_CHARACTERS] for key, value in tags.items()}


def _flat(config: Mapping[str, object]) -> dict[str, object]:
    return {f"config.{name}": value for name, value in config.items()}


def _numbers(report: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every finite number of a nested report as `a.b.c`, in the characters that MLflow allows; lists are left to the artefact."""
    out: dict[str, float] = {}
    for key, value in report.items():
        name = prefix + re.sub(r"[^\w./ -]", "_", key)
        if isinstance(value, Mapping):
            out |= _numbers(value, f"{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            out[name] = float(value)
    return out


def _text(value: float | None) -> str:
    return "nan" if value is None else repr(float(value))


def require(version: Version, name: str) -> str:
    """A tag that a version must have. Raises InputError."""
    if name not in version.tags:
        raise InputError(f"version {version.version} of {model_name(version.surface)} has no tag {name!r}; evaluate it first")
    return version.tags[name]
