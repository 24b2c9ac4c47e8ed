"""Settings of the algorithms: frozen dataclasses that explain each field and round-trip through JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import msgspec

from mtf.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every algorithm has.

    max_rms_step: longest step from the deployed policy, the root mean square of the position in the box over states and
        dimensions. The gate's estimator takes the deployed policy's states for the new one's: sound up to about .5.
    margin: share of the box's width kept free at its ends, so that the one network that is served stays inside.
    hidden: widths of the served network's hidden layers, beside its linear part.
    distil_steps: optimiser steps of the distillation.
    needs_exploration: whether rows that did not explore can teach it nothing; of the algorithm, not a setting.
    """

    needs_exploration: ClassVar[bool] = True

    max_rms_step: float = 0.5
    margin: float = 0.02
    hidden: tuple[int, ...] = (32,)
    distil_steps: int = 500

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


C = TypeVar("C", bound=Config)


def from_dict(kind: type[C], data: Mapping[str, Any], *, strict: bool = True) -> C:
    """The inverse of `to_dict`; fields that are missing take their defaults. Raises InputError naming the field."""
    known = {f.name for f in dataclasses.fields(kind)}
    for name in data:
        if name not in known:
            raise InputError(f"--set {name}: no such setting; there are {', '.join(sorted(known))}")
    try:
        config = msgspec.convert(dict(data), kind, strict=strict)
    except msgspec.ValidationError as error:
        raise InputError(f"--set: {error}") from None
    for name in known:
        for value in v if isinstance(v := getattr(config, name), tuple) else (v,):
            _check(name, value)
    return config


def _check(name: str, value: object) -> None:
    """Counts and widths are at least 1; no setting of any algorithm makes sense below 0."""
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise InputError(f"--set {name}={value}: keep it at least 1")
    if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
        raise InputError(f"--set {name}={value}: use a finite number that is not below 0")


def with_overrides(kind: type[C], overrides: Mapping[str, str]) -> C:
    """The defaults of `kind` with text settings (`--set key=value`; lists as 64,64) read as the fields' types."""
    data: dict[str, Any] = {}
    for name, text in overrides.items():
        field = next((f for f in dataclasses.fields(kind) if f.name == name), None)
        is_list = field is not None and isinstance(field.default, tuple)
        data[name] = [part for part in text.split(",") if part] if is_list else text
    return from_dict(kind, data, strict=False)
