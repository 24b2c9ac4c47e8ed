"""The model registry: MLflow names the policies. Versions carry their lineage and verdict; aliases carry people's intent."""

from mtf.registry.intents import intent_for_version
from mtf.registry.models import (
    Version,
    download_bundle,
    find_version,
    log_training,
    publish_bundle,
    register_bootstrap,
    registered_policy,
    require,
    set_alias,
    tag_box,
    tag_verdict,
    trained_versions,
)
from mtf.registry.reconcile import CHALLENGER, reconcile, record_change, submit_once

__all__ = [
    "CHALLENGER",
    "Version",
    "download_bundle",
    "find_version",
    "intent_for_version",
    "log_training",
    "publish_bundle",
    "reconcile",
    "record_change",
    "register_bootstrap",
    "registered_policy",
    "require",
    "set_alias",
    "submit_once",
    "tag_box",
    "tag_verdict",
    "trained_versions",
]
