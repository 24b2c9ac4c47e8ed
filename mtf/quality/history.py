"""What the days before looked like: where thresholds come from that an expectation names as {"$PARAMETER": name}.

    "kwargs": {"column": "requests", "min_value": {"$PARAMETER": "requests_low"}},
    "meta": {..., "parameters": {"requests_low": {"figure": "requests", "times": 0.5}}}

reads: at least half of the median of the last days' requests. A threshold that the history cannot give yet leaves its
expectation out, with the reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mtf.errors import InputError
from mtf.quality.verdict import Verdict, judged_days, read_verdict

# earlier days that are looked at in all: more than any window reaches back
HISTORY_DAYS = 60


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A threshold: times * median + plus, of a figure over the last `days` usable days; `at_least` of them must have it."""

    figure: str
    times: float = 1.0
    plus: float = 0.0
    days: int = 14
    at_least: int = 3


def earlier(out_dir: Path, dt: str, days: int) -> list[Verdict]:
    """The verdicts on the last `days` judged days before `dt`, oldest first; critical ones are no example of anything."""
    found: list[Verdict] = []
    for day in reversed([d for d in judged_days(out_dir) if d < dt]):
        verdict = read_verdict(out_dir, day)
        if verdict.status != "critical":
            found.append(verdict)
        if len(found) == days:
            break
    return found[::-1]


def parameters_of(expectation: Mapping[str, Any], where: str) -> dict[str, Parameter]:
    """The thresholds that an expectation takes from history, by name. Raises InputError where one is not defined."""
    defined = expectation["meta"].get("parameters", {})
    named = [v["$PARAMETER"] for v in expectation["kwargs"].values() if isinstance(v, dict) and "$PARAMETER" in v]
    try:
        found = msgspec.convert({name: defined[name] for name in named}, dict[str, Parameter])
    except KeyError as error:
        raise InputError(
            f"{where}: parameter {error} is not defined; say in meta.parameters how it follows from history"
        ) from None
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: meta.parameters: {error}; it takes {', '.join(Parameter.__struct_fields__)}") from None
    unused = sorted(set(defined) - set(named))
    if unused:
        raise InputError(f"{where}: meta.parameters defines {unused[0]!r}, which no bound names; remove it")
    return found


def threshold(
    parameter: Parameter, history: Sequence[Mapping[str, float | None]], known: Collection[str], where: str
) -> float | str:
    """The threshold, or why there is none yet. history: the figures of earlier days, oldest first; known: every figure's name."""
    if parameter.figure not in known and not parameter.figure.startswith("rate_"):
        raise InputError(f"{where}: figure = {parameter.figure!r} in meta.parameters; there are {', '.join(sorted(known))}")
    values = [v for day in history[-parameter.days :] if (v := day.get(parameter.figure)) is not None]
    if len(values) < parameter.at_least:
        return f"needs {parameter.at_least} earlier days to compare with, there are {len(values)}"
    return parameter.times * statistics.median(values) + parameter.plus
