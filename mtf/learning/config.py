"""Settings of the algorithms: frozen dataclasses that explain each field and round-trip through JSON."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from mtf.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every algorithm has.

    max_rms_step: longest step from the deployed policy, the root mean square of the position in the box over states and
        dimensions. The gate's estimator takes the deployed policy's states for the new one's: sound up to about .5 (.2 to .5).
    margin: share of the box's width kept free at its ends, so that the one network that is served stays inside (.01 to .05).
    hidden: widths of the served network's hidden layers, beside its linear part (16 to 64 each).
    distil_steps: optimiser steps of the distillation (300 to 2000).
    needs_exploration: whether rows that did not explore can teach it nothing; of the algorithm, not a setting.
    """

    needs_exploration: ClassVar[bool] = True

    max_rms_step: float = 0.5
    margin: float = 0.02
    hidden: tuple[int, ...] = (32,)
    distil_steps: int = 500

    def to_dict(self) -> dict[str, Any]:
        """All settings, also those left at their defaults, in plain JSON types."""
        # to_builtins of the whole leaves out what `convert` did not have to set
        return {f.name: msgspec.to_builtins(getattr(self, f.name)) for f in dataclasses.fields(self)}


C = TypeVar("C", bound=Config)
SMALL = 1e-3
BOUNDS: dict[str, tuple[float, float]] = {
    "max_rms_step": (SMALL, math.inf),
    "kappa": (SMALL, math.inf),
    "beta": (SMALL, math.inf),
    "sigma": (SMALL, 1),
    "margin": (0, 0.06),
    "tau": (0, 1),
    "expectile": (SMALL, 1 - SMALL),
    "held_out": (0, 0.9),
    "batch": (1, 1_000_000),
    "population": (2, math.inf),
    "segments": (2, math.inf),
}
"""Least and most of settings that break, or mean nothing, beyond."""


def explained(kind: type[Config]) -> str:
    """All settings with their defaults, then what they mean: the texts of the classes that they come from, its own first."""
    texts = {name: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for name, v in kind().to_dict().items()}
    defaults = [f"  {name} = {text}" for name, text in texts.items()]
    made = [c for c in kind.__mro__ if issubclass(c, Config) and c.__annotations__ and c.__doc__ and "(*" not in c.__doc__]
    return "\n\n".join(["\n".join(defaults), *(inspect.cleandoc(str(c.__doc__)) for c in made)])


def from_dict(kind: type[C], data: Mapping[str, Any], *, strict: bool = True) -> C:
    """The inverse of `to_dict`; fields that are missing take their defaults. Raises InputError naming the field."""
    known = {f.name for f in dataclasses.fields(kind)}
    for name in data:
        if name not in known:
            raise InputError(f"--set {name}: no such setting; there are {', '.join(sorted(known))}")
    try:
        config = msgspec.convert(dict(data), kind, strict=strict)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")
        name = place.strip(".`").partition("[")[0]
        given = ",".join(map(str, v)) if isinstance(v := data.get(name), list) else v
        meant = get_type_hints(kind).get(name)
        choices = f"; there are {', '.join(get_args(meant))}" if get_origin(meant) is Literal else ""
        raise InputError(f"--set {name}={given}: {what}{choices}") from None
    for name in known:
        for value in v if isinstance(v := getattr(config, name), tuple) else (v,):
            _check(name, value)
    return config


def _check(name: str, value: object) -> None:
    """Counts and widths are at least 1; no setting of any algorithm makes sense below 0; BOUNDS has the others."""
    least, most = BOUNDS.get(name, (1 if isinstance(value, int) else 0, math.inf))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not (math.isfinite(value) and least <= value <= most):
        whole = "" if isinstance(value, int) or math.isfinite(value) else "finite and "
        ends = f"{whole}at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InputError(f"--set {name}={value:g}: keep it {ends}")


def with_overrides(kind: type[C], overrides: Mapping[str, str]) -> C:
    """The defaults of `kind` with text settings (`--set key=value`; lists as 64,64) read as the fields' types."""
    data: dict[str, Any] = {}
    for name, text in overrides.items():
        field = next((f for f in dataclasses.fields(kind) if f.name == name), None)
        is_list = field is not None and isinstance(field.default, tuple)
        data[name] = [part for part in text.split(",") if part] if is_list else text
    return from_dict(kind, data, strict=False)
