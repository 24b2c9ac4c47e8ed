"""What a server serves now: it follows the deployment document and swaps the engine when a new generation is whole."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mtf.errors import IntegrityError, MtfError
from mtf.policy import Policy
from mtf.rollout.document import DeploymentDocument
from mtf.rollout.documents import fetch_bundle, read_latest
from mtf.serving.engine import Engine, RankBatch
from mtf.spec import FusionSpec
from mtf.store import Store

LOG = logging.getLogger(__name__)


class NotReadyError(MtfError):
    """There is nothing to serve yet (status 503)."""


class Deployment:
    """Holds the engine of the newest generation that could be loaded; a broken one leaves the old one in force.

    error: why the newest document is not in force, or None. reloads, failures: counts since the start.
    """

    def __init__(self, store: Store, surface: str, cache_dir: Path) -> None:
        self.store, self.surface, self.cache_dir = store, surface, cache_dir
        self.error: str | None = None
        self.reloads = 0
        self.failures = 0
        self._engine: Engine | None = None
        self._policies: dict[str, Policy] = {}

    @property
    def current(self) -> Engine | None:
        """The engine in force, or None before the first document."""
        return self._engine

    @property
    def engine(self) -> Engine:
        """The engine in force. Raises NotReadyError where there is none."""
        if self._engine is None:
            raise NotReadyError(
                f"surface {self.surface}: {self.error or f'no deployment document in {self.store.url()}'}; "
                "start the platform (`mtf up`), or check --store and --surface"
            )
        return self._engine

    def refresh(self) -> None:
        """Read the newest document and load it if it is another than the one in force. Never raises; see `error`."""
        try:
            document = read_latest(self.store, self.surface)
            if document is not None and (self._engine is None or document != self._engine.document):
                self._engine = self._load(document)
                self.reloads += 1
                LOG.info("generation %d of %s is in force", document.generation, self.surface)
            self.error = None
        except Exception as error:
            message = str(error) if isinstance(error, MtfError) else f"{type(error).__name__}: {error}"
            if message != self.error:
                LOG.error("the newest document of %s cannot be served: %s", self.surface, message)
            self.error = message
            self.failures += 1

    def _load(self, document: DeploymentDocument) -> Engine:
        references = {r.sha: r for r in (document.champion, document.bootstrap, document.canary) if r is not None}
        policies = {
            sha: self._policies.get(sha) or fetch_bundle(self.store, reference, self.cache_dir)
            for sha, reference in references.items()
        }
        for sha, policy in policies.items():
            _agree(document, sha, policy.spec)
        spec = policies[document.champion.sha].spec
        assert spec is not None
        engine = Engine(spec, document, policies)
        _rehearse(engine)
        self._policies = policies
        return engine


def _rehearse(engine: Engine) -> None:
    """One decision on made-up candidates: what cannot decide never comes into force, and no caller pays for late imports."""
    spec = engine.spec
    engine.decide(
        RankBatch(
            ["rehearsal"],
            np.zeros(1, np.int64),
            np.full((1, len(spec.given_features)), np.nan, np.float32),
            np.arange(spec.n_shown)[None],
            np.ones((1, spec.n_shown, spec.n_objectives), np.float32),
        ),
        np.random.default_rng(0),
        0,
    )


def _agree(document: DeploymentDocument, sha: str, spec: FusionSpec | None) -> None:
    if spec is None or spec.version != document.spec_version:
        found = spec.version if spec else "none"
        raise IntegrityError(
            f"generation {document.generation}: policy {sha} has spec {found}, the document {document.spec_version}; "
            "publish a policy of the surface's spec"
        )
    box = document.exploration
    if box is not None and len(box.half_width) != spec.action_width:
        raise IntegrityError(
            f"generation {document.generation}: exploration.half_width has {len(box.half_width)} numbers, "
            f"the spec's actions {spec.action_width}; refresh the box"
        )
