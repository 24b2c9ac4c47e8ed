"""FusionSpec: everything about a surface that training, serving and evaluation must agree on.

It travels inside every policy bundle and beside every log and dataset, and its hash (`spec_version`)
is stored in every row. Reading one checks it; an invalid spec never gets further than its file.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from mtf.errors import InputError
from mtf.fileio import write_atomic

FloatTuple = tuple[float, ...]


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column of the state.

    source: `caller` (sent with the request), `scores` (a statistic of the candidates' scores, computed by
        the server: `score_mean:<objective>` or `score_sd:<objective>` of the log score), or `history` (an
        average of the user's recent outcomes, sent with the request: `recent:<behaviour>`).
    moved_by_action: True where the policy's own past actions move the value. Such a feature may inform a
        policy, never a value function: a value would give credit for moving the average, which stands for a
        latent taste that the action does not move (docs/method.md).
    default: used where the caller sends none, or NaN.
    """

    name: str
    source: Literal["caller", "scores", "history"]
    moved_by_action: bool = False
    default: float = 0.0
    doc: str = ""


class RewardHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the reward with its own critic group: `sum over shown items and behaviours of weight * value`."""

    name: str
    weights: dict[str, float]


class FusionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Objectives, action space, fusion formula, reward and state of one surface.

    The normalised action a in [-1, 1]^A, A = 2 K, holds K powers, then K biases; raw = low + (a + 1) / 2 (high - low).

    objectives: the K scores of a candidate, in the order of every score array.
    power_low, power_high, bias_low, bias_high: K raw values each, the ends of the action space.
    start: the bootstrap policy's constant action, A normalised values.
    n_shown: how many of the ranked candidates are shown.
    behaviours: what feedback reports; `watch` (seconds, from `watch_s`) and 0/1 columns of the other names.
    watch_cap_s: watch time above it earns nothing more (seconds).
    reward_heads: the reward is the sum of the heads.
    features: the state's columns, in order.
    session_gap_s: a pause longer than this ends a session (seconds).
    gamma: discount a request.
    """

    surface: str = "feed"
    objectives: tuple[str, ...]
    power_low: FloatTuple
    power_high: FloatTuple
    bias_low: FloatTuple
    bias_high: FloatTuple
    start: FloatTuple
    n_shown: int = 6
    behaviours: tuple[str, ...]
    watch_cap_s: float = 600.0
    reward_heads: tuple[RewardHead, ...]
    features: tuple[Feature, ...]
    session_gap_s: float = 1800.0
    gamma: float = 0.9

    def __post_init__(self) -> None:
        k = len(self.objectives)
        _need(k > 0, "objectives", self.objectives, "name at least one objective")
        _need(len(set(self.objectives)) == k, "objectives", self.objectives, "use each name once")
        for name in ("power_low", "power_high", "bias_low", "bias_high"):
            value = getattr(self, name)
            _need(len(value) == k, name, value, f"give {k} numbers, one an objective")
            _need(all(np.isfinite(value)), name, value, "use finite numbers")
        for end in ("power", "bias"):
            low, high = getattr(self, f"{end}_low"), getattr(self, f"{end}_high")
            _need(all(a < b for a, b in zip(low, high, strict=True)), f"{end}_low", low, f"keep each below {end}_high")
        _need(min(self.bias_low) > 0, "bias_low", self.bias_low, "keep biases above 0: the fusion takes log(score + bias)")
        _need(len(self.start) == 2 * k, "start", self.start, f"give {2 * k} numbers: powers, then biases")
        _need(all(-1 <= a <= 1 for a in self.start), "start", self.start, "keep normalised actions within [-1, 1]")
        _need(self.n_shown >= 1, "n_shown", self.n_shown, "show at least one item")
        _need("watch" in self.behaviours, "behaviours", self.behaviours, "list `watch`, the watch time in seconds")
        _need(len(set(self.behaviours)) == len(self.behaviours), "behaviours", self.behaviours, "use each name once")
        _need(len(self.reward_heads) > 0, "reward_heads", self.reward_heads, "give at least one head")
        for head in self.reward_heads:
            for behaviour, weight in head.weights.items():
                field = f"reward_heads.{head.name}.{behaviour}"
                _need(behaviour in self.behaviours, field, weight, f"use one of {self.behaviours}")
                _need(np.isfinite(weight) and weight >= 0, field, weight, "keep weights finite and >= 0 (phi multiplies values)")
        _need(len({f.name for f in self.features}) == len(self.features), "features", "a repeated name", "use each name once")
        for feature in self.features:
            if feature.source == "scores":
                kind, _, objective = feature.name.partition(":")
                ok = kind in ("score_mean", "score_sd") and objective in self.objectives
                _need(ok, f"features.{feature.name}", feature.name, "name it score_mean:<objective> or score_sd:<objective>")
        _need(0 <= self.gamma < 1, "gamma", self.gamma, "keep it in [0, 1)")
        _need(self.session_gap_s > 0, "session_gap_s", self.session_gap_s, "keep it above 0 seconds")

    @property
    def n_objectives(self) -> int:
        """K."""
        return len(self.objectives)

    @property
    def action_width(self) -> int:
        """A = 2 K."""
        return 2 * len(self.objectives)

    @property
    def state_width(self) -> int:
        """S."""
        return len(self.features)

    @property
    def n_heads(self) -> int:
        """H."""
        return len(self.reward_heads)

    @cached_property
    def given_features(self) -> tuple[Feature, ...]:
        """The features that arrive with a request (source caller or history), in state order."""
        return tuple(f for f in self.features if f.source != "scores")

    @cached_property
    def raw_low(self) -> np.ndarray:
        """float64 [A]: raw powers and biases at a = -1."""
        return np.array(self.power_low + self.bias_low)

    @cached_property
    def raw_high(self) -> np.ndarray:
        """float64 [A]: raw powers and biases at a = +1."""
        return np.array(self.power_high + self.bias_high)

    @cached_property
    def version(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json()).hexdigest()[:12]

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, numbers in their field's type (1 is 1.0), so that equal specs have equal bytes."""
        return msgspec.json.encode(msgspec.convert(msgspec.to_builtins(self), FusionSpec), order="sorted")

    def write(self, path: Path) -> None:
        """Write the spec as readable JSON, atomically."""
        write_atomic(path, msgspec.json.format(self.to_json(), indent=2) + b"\n")

    @staticmethod
    def from_json(data: bytes, where: str = "spec") -> FusionSpec:
        """Parse and check. Raises InputError naming the field."""
        try:
            return msgspec.json.decode(data, type=FusionSpec)
        except msgspec.MsgspecError as error:
            raise InputError(f"{where}: {error}") from error

    @staticmethod
    def read(path: Path) -> FusionSpec:
        """Read and check the spec at `path`."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise InputError(f"spec: {path} does not exist; give --spec FILE, or a folder that holds spec.json") from None
        except OSError as error:
            raise InputError(f"spec: {path} cannot be read ({error.strerror}); give the file itself") from None
        return FusionSpec.from_json(data, str(path))


def _need(condition: bool, field: str, value: object, way_out: str) -> None:
    if not condition:
        raise ValueError(f"{field} = {value!r}: {way_out}")
