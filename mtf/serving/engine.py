"""The decision: state, arm, action, ranking, and the row that the log will hold. No network, no clock, no disk.

The HTTP server calls it for each batch of requests, and in-process simulation calls the same code, so what is simulated
is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from mtf import box
from mtf.contracts import SCHEMA_VERSION, requests_schema
from mtf.contracts.ids import uuid7
from mtf.errors import InputError
from mtf.features import build_state
from mtf.fusion import rank
from mtf.policy import Policy
from mtf.rollout.document import DeploymentDocument, PolicyRef, half_width
from mtf.serving.arms import assign
from mtf.spec import FusionSpec

LogCandidates = Literal["explored", "all", "none"]
LARGEST_LOGGED = np.float32(65504)
"""Of float16: larger scores of candidates are logged as this."""


@dataclass(frozen=True)
class RankBatch:
    """n requests. given [n, F]: `spec.given_features`, NaN = not sent. scores float32 [n, C, K], item_ids int64 [n, C].

    ts_us int64 [n]: event time. n_candidates [n]: how many of the C columns are real (None = all).
    """

    user_ids: Sequence[str]
    ts_us: np.ndarray
    given: np.ndarray
    item_ids: np.ndarray
    scores: np.ndarray
    n_candidates: np.ndarray | None = None


@dataclass(frozen=True)
class Decisions:
    """shown int64 [n, n_shown]: indices into each request's candidates. rows: the requests table."""

    request_ids: list[str]
    shown: np.ndarray
    rows: pa.Table


class Engine:
    """Holds a deployment document with its policies and decides batches under it."""

    def __init__(
        self,
        spec: FusionSpec,
        document: DeploymentDocument,
        policies: Mapping[str, Policy],
        *,
        log_candidates: LogCandidates = "explored",
    ) -> None:
        """`policies`: bundles by hash, at least those that the document names. Raises InputError where one is missing."""
        self.spec = spec
        self.document = document
        self.log_candidates = log_candidates
        self._half_width = half_width(document)
        self._by_arm: dict[str, tuple[PolicyRef, Policy]] = {}
        canary = document.canary or document.champion
        for arm, ref in (
            ("champion", document.champion),
            ("explore", document.champion),
            ("control", document.champion),
            ("canary", canary),
            ("holdback", document.bootstrap),
        ):
            if ref.sha not in policies:
                raise InputError(f"document generation {document.generation}: policy {ref.sha} of arm {arm} is not loaded")
            self._by_arm[arm] = (ref, policies[ref.sha])

    def decide(self, batch: RankBatch, rng: np.random.Generator, received_us: int | np.ndarray, latency_us: int = 0) -> Decisions:
        """Rank every request of the batch. `rng` draws ids and exploration; `received_us` is the server's clock."""
        n, spec = len(batch.user_ids), self.spec
        scores, fallback = _usable_scores(batch)
        state = build_state(spec, batch.given, scores, batch.n_candidates)
        arms, buckets = assign(self.document, batch.user_ids)
        center = np.empty((n, spec.action_width), np.float32)
        sha, version = np.empty(n, object), np.empty(n, object)
        for arm in np.unique(arms):
            rows = np.flatnonzero(arms == arm)
            ref, policy = self._by_arm[str(arm)]
            center[rows] = policy.act(state[rows])
            sha[rows], version[rows] = ref.sha, ref.version
        exploring = (arms == "explore") & ~fallback
        half = np.zeros(spec.action_width, np.float32) if self._half_width is None else self._half_width
        lower, upper = box.offsets(center, np.where(exploring[:, None], half, np.float32(0)))
        exploring &= (upper > lower).any(axis=1)
        action = np.where(exploring[:, None], box.sample(rng, center, lower, upper), center)
        shown = rank(spec, action, scores, batch.n_candidates)
        request_ids = uuid7(batch.ts_us, rng)
        logged = {"all": np.ones(n, bool), "none": np.zeros(n, bool), "explored": exploring}[self.log_candidates]
        exploration_sha = self.document.exploration.sha if self.document.exploration else None
        rollout_id = self.document.rollout.id if self.document.canary is not None and self.document.rollout else None
        log_density = box.log_density(lower, upper)
        columns = {
            "request_id": pa.array(request_ids),
            "surface": _repeat(spec.surface, n),
            "user_id": pa.array(batch.user_ids, pa.string()),
            "ts": _time(batch.ts_us),
            "received_at": _time(np.broadcast_to(np.asarray(received_us, np.int64), (n,))),
            "state": _lists(state),
            "action": _lists(action),
            "center": _lists(center),
            "lower": _lists(lower),
            "upper": _lists(upper),
            "log_propensity": pa.array(log_density, mask=~exploring),
            "exploring": pa.array(exploring),
            "policy_sha": pa.array(sha, pa.string()),
            "policy_version": pa.array(version, pa.string()),
            "exploration_sha": _where(exploring, exploration_sha),
            "arm": pa.array(arms, pa.string()),
            "rollout_id": _repeat(rollout_id, n),
            "bucket": pa.array(buckets),
            "generation": pa.array(np.full(n, self.document.generation, np.int64)),
            "latency_us": pa.array(np.full(n, latency_us, np.int32)),
            "item_ids": _lists(np.take_along_axis(batch.item_ids, shown, 1)),
            "scores": _lists(np.take_along_axis(scores, shown[..., None], 1).reshape(n, -1)),
            "n_candidates": pa.array(_counts(batch), pa.int32()),
            "cand_item_ids": _candidate_ids(batch, logged),
            "cand_scores": _candidate_scores(batch, scores, logged),
            "fallback": _where(fallback, "scores_not_finite"),
            "spec_version": _repeat(spec.version, n),
            "schema_version": pa.array(np.full(n, SCHEMA_VERSION, np.int32)),
        }
        schema = requests_schema()
        rows_table = pa.table([columns[f.name] for f in schema], schema=schema)
        return Decisions(request_ids, shown, rows_table)


def _usable_scores(batch: RankBatch) -> tuple[np.ndarray, np.ndarray]:
    """Scores with what is not a finite number >= 0 set to 0, and which requests that touched: what pads them does not count."""
    scores = batch.scores
    bad = ~(np.isfinite(scores) & (scores >= 0))
    if not bad.any():
        return scores, np.zeros(len(scores), bool)
    real = np.arange(scores.shape[1]) < _counts(batch)[:, None]
    return np.where(bad, np.float32(0), scores), (bad & real[..., None]).any(axis=(1, 2))


def _counts(batch: RankBatch) -> np.ndarray:
    if batch.n_candidates is None:
        return np.full(len(batch.user_ids), batch.scores.shape[1], np.int32)
    return np.asarray(batch.n_candidates, np.int32)


def _candidate_ids(batch: RankBatch, logged: np.ndarray) -> pa.Array:
    counts = np.where(logged, _counts(batch), 0)
    real = np.arange(batch.item_ids.shape[1]) < counts[:, None]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = pa.array(batch.item_ids[real], pa.int64())
    return pa.ListArray.from_arrays(
        pa.array(offsets), values, type=requests_schema().field("cand_item_ids").type, mask=pa.array(~logged)
    )


def _candidate_scores(batch: RankBatch, scores: np.ndarray, logged: np.ndarray) -> pa.Array:
    counts = np.where(logged, _counts(batch), 0)
    real = np.arange(scores.shape[1]) < counts[:, None]
    # what is larger would be infinite in the log, and could not be ranked again
    data = np.minimum(scores[real], LARGEST_LOGGED).astype("<f2").tobytes()
    offsets = np.concatenate([[0], np.cumsum(counts * scores.shape[2] * 2)]).astype(np.int32)
    validity = pa.array(logged).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), len(logged), [validity, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)])


def _lists(matrix: np.ndarray) -> pa.Array:
    """A [n, w] matrix as a list column."""
    n, width = matrix.shape
    kind = pa.float32() if matrix.dtype.kind == "f" else pa.int64()
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    values = pa.array(np.ascontiguousarray(matrix).reshape(-1), kind)
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(pa.field("item", kind)))


def _time(us: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(us, np.int64), pa.timestamp("us", tz="UTC"))


def _repeat(value: str | None, n: int) -> pa.Array:
    return pa.array([value] * n, pa.string())


def _where(rows: np.ndarray, value: str | None) -> pa.Array:
    """`value` in the rows that are True, null elsewhere."""
    return pa.array([value if row else None for row in rows], pa.string())
