"""Reading and writing the deployment document, and fetching the bundles that it names."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mtf.errors import InputError, IntegrityError, NotFoundError
from mtf.fileio import folder_atomic
from mtf.policy import FILES, Policy, load_policy, policy_from_files
from mtf.rollout.document import DeploymentDocument, PolicyRef, decode, encode
from mtf.store import Store


def read_latest(store: Store, surface: str) -> DeploymentDocument | None:
    """The newest generation, or None where there is none yet. Raises IntegrityError where it cannot be read."""
    keys = store.list(_prefix(surface))
    if not keys:
        return None
    return _read(store, keys[-1])


def read_generation(store: Store, surface: str, generation: int) -> DeploymentDocument:
    """One generation. Raises NotFoundError."""
    return _read(store, _key(surface, generation))


def read_all(store: Store, surface: str) -> list[DeploymentDocument]:
    """Every generation, oldest first."""
    return [_read(store, key) for key in store.list(_prefix(surface))]


def write_next(store: Store, document: DeploymentDocument) -> None:
    """Put `document` as its generation, create-only: ConflictError where somebody wrote that generation first."""
    store.put_new(_key(document.surface, document.generation), encode(document))


def put_bundle(store: Store, sha: str, files: dict[str, bytes]) -> str:
    """Store a bundle's files under its hash and return its URI; what is there already is left."""
    for name, data in files.items():
        key = f"bundles/{sha}/{name}"
        if not store.exists(key):
            store.put(key, data)
    return store.url(f"bundles/{sha}")


def fetch_bundle(store: Store, ref: PolicyRef, cache_dir: Path) -> Policy:
    """The policy that `ref` names, through a local cache by hash; verified (hash, golden outputs) at every load.

    Raises NotFoundError where the store lacks a file, IntegrityError where the bytes are not the ones of the hash.
    """
    kept = cached_bundle(cache_dir, ref.sha)
    if kept is not None:
        return kept
    try:
        files = {name: store.get(f"bundles/{ref.sha}/{name}") for name in FILES}
    except NotFoundError as error:
        raise NotFoundError(f"bundle {ref.sha} is not in the store: {error}; publish it from its registry version") from error
    policy = policy_from_files(files, store.url(f"bundles/{ref.sha}"), ref.sha)
    with folder_atomic(cache_dir / ref.sha) as scratch:
        for name, data in files.items():
            (scratch / name).write_bytes(data)
    return policy


def cached_bundle(cache_dir: Path, sha: str) -> Policy | None:
    """The policy with this hash from the local cache; None where it is not there, or damaged: then it is to be fetched again."""
    try:
        return load_policy(cache_dir / sha, sha)
    except (IntegrityError, InputError):
        return None


def _prefix(surface: str) -> str:
    return f"deploy/{surface}/document/"


def _key(surface: str, generation: int) -> str:
    return f"{_prefix(surface)}{generation:012d}.json"


def _read(store: Store, key: str) -> DeploymentDocument:
    data = store.get(key)
    try:
        return decode(data)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{store.url(key)}: not a deployment document: {error}") from error
