"""From a version to an intent: the bundle is published from the registry's artefacts, the tags say what the gate found."""

from __future__ import annotations

import msgspec

from mtf.registry.models import find_version, publish_bundle
from mtf.rollout.document import Exploration
from mtf.rollout.intents import Action, Intent
from mtf.settings import Settings
from mtf.store import open_store


def intent_for_version(settings: Settings, surface: str, version: str, *, action: Action, by: str, reason: str) -> Intent:
    """An intent to start or promote a version. Raises NotFoundError where there is no such version."""
    found = find_version(settings, surface, version)
    box = found.tags.get("box")
    return Intent(
        action=action,
        policy=publish_bundle(settings, open_store(settings=settings), found),
        exploration=msgspec.json.decode(box, type=Exploration) if box else None,
        data_dt=found.tags.get("dataset_dt"),
        gate_verdict=found.tags.get("verdict"),
        gate_baseline_sha=found.tags.get("verdict_baseline"),
        by=by,
        reason=reason,
    )
