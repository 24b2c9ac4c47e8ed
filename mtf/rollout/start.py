"""The first generation of a surface's deployment: the bootstrap policy for everybody, most of them with the box around it."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime

import msgspec

from mtf.errors import InputError
from mtf.policy import Policy, bootstrap_policy
from mtf.rollout.document import Arms, Change, DeploymentDocument, Exploration, PolicyRef, Salts
from mtf.rollout.documents import put_bundle, read_latest, write_next
from mtf.settings import Settings
from mtf.spec import FusionSpec
from mtf.store import open_store


def initialise(
    settings: Settings,
    surface: str,
    spec: FusionSpec,
    arms: Arms,
    half_width: float,
    registered_version: str = "bootstrap",
    policy: Policy | None = None,
) -> DeploymentDocument:
    """Write generation 1 where there is none, else return the latest: a restart changes nothing.

    arms: shares while nothing is compared. half_width: of the first box, in every dimension; 0 explores nothing.
    policy: what to serve first; default the spec's constant start. Raises InputError where half_width is not in [0, 1].
    """
    if not 0 <= half_width <= 1:
        raise InputError(f"half_width = {half_width}; keep it in [0, 1], a share of each dimension's range from its middle")
    store = open_store(settings=settings)
    latest = read_latest(store, surface)
    if latest is not None:
        return latest
    policy = policy or bootstrap_policy(spec)
    uri = put_bundle(store, policy.sha, policy.to_files())
    ref = PolicyRef(sha=policy.sha, version=registered_version, uri=uri)
    at = datetime.now(UTC).isoformat()
    document = DeploymentDocument(
        surface=surface,
        generation=1,
        at=at,
        spec_version=spec.version,
        champion=ref,
        bootstrap=ref,
        exploration=box_in_force((half_width,) * spec.action_width) if half_width > 0 else None,
        arms=arms,
        salts=Salts(explore=new_salt(), rollout=new_salt(), holdback=new_salt()),
        history=(Change(generation=1, at=at, what="initialised", reason="first start of the surface"),),
    )
    write_next(store, document)
    return document


def box_in_force(half_width: tuple[float, ...]) -> Exploration:
    """A box given by its half-widths alone, named by their hash."""
    sha = hashlib.sha256(msgspec.json.encode(half_width)).hexdigest()
    return Exploration(sha=sha, half_width=tuple(half_width))


def new_salt() -> str:
    """A fresh salt for sticky buckets."""
    return secrets.token_hex(8)
