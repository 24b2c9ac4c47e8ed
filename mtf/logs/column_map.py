"""The column map: where in a company's files each column of the contract comes from. docs/import.md walks through one.

    {"spec": "spec.json",
     "exposures": {"files": "exposures/*.parquet", "rows": "impressions",
                   "columns": {"request_id": "req", "user_id": "uid", "ts": {"column": "t", "unit": "ms"}, "item_id": "item",
                               "score:click": "p_click", "state:age": "age"}},
     "feedback":  {"files": "feedback/*.parquet",
                   "columns": {"request_id": "req", "item_id": "item", "watch_s": {"column": "play_ms", "scale": 0.001},
                               "click": "is_click"}}}

A map is checked whole before a row is read: an unknown name, a column that the files lack, a behaviour that nothing
reports are errors that name the way out. What may be missing is filled, and the report says with what.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from mtf.errors import InputError
from mtf.spec import FusionSpec

Unit = Literal["s", "ms", "us", "ns"]
US_A_UNIT: dict[Unit, float] = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a value comes from: a column, or a constant `value`. A plain text in the map is a column's name.

    unit: of a time that is a number. zone: of a time without one. missing: values that mean null. scale: factor.
    values: numbers for texts; others are null. above: 1 where the number is above it, else 0. any_of: 1 where one of these
    columns is above 0.
    """

    column: str | None = None
    value: float | str | None = None
    any_of: tuple[str, ...] = ()
    unit: Unit | None = None
    zone: str | None = None
    missing: tuple[float | str, ...] = ()
    scale: float = 1.0
    values: dict[str, float] = {}
    above: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (*([self.column] if self.column is not None else []), *self.any_of)


Columns = dict[str, str | Source]


class Exposures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """files: a pattern in the given folder. rows: what one row is: an impression, or a request with lists.

    where: {column: values}: rows with other values are left out. request_gap_s: where no request_id is mapped, impressions of a
    user with at most so many seconds between them are one request, up to the spec's n_shown.
    """

    files: str
    columns: Columns
    rows: Literal["impressions", "requests"] = "impressions"
    where: dict[str, list[float | str]] = {}
    request_gap_s: float = 0.0


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A log of what users did, one row a (request, item); repeats and unknown requests may be in it."""

    files: str
    columns: Columns
    where: dict[str, list[float | str]] = {}


class Users(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of user attributes, joined by user_id; only `state:` columns. key: its column of the user's id."""

    files: str
    key: str
    columns: Columns


class ColumnMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """spec: file of the FusionSpec, relative to the map. notes: what the report must say about this log."""

    spec: str
    exposures: Exposures
    feedback: Feedback | None = None
    users: Users | None = None
    notes: tuple[str, ...] = ()


def read_map(path: Path) -> tuple[ColumnMap, FusionSpec]:
    """The map and its spec, each checked by itself and against the other. Raises InputError."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=ColumnMap)
    except FileNotFoundError:
        raise InputError(f"map: {path} does not exist; docs/import.md shows one") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"map: {path}: {error}; docs/import.md lists what it takes") from None
    spec = FusionSpec.read(Path(path).parent / found.spec)
    check_targets(found, spec, str(path))
    return found, spec


def source(value: str | Source) -> Source:
    """The long form."""
    return Source(column=value) if isinstance(value, str) else value


def check_targets(column_map: ColumnMap, spec: FusionSpec, where: str) -> None:
    """Raises InputError where a target is unknown, needed and not mapped, or half mapped."""
    exposures, feedback = column_map.exposures, column_map.feedback
    named = {"exposures": set(exposures.columns), "feedback": set(feedback.columns) if feedback else set()}
    outcome = {"watch_s", "duration_s", *(b for b in spec.behaviours if b != "watch")}
    known = {"exposures": exposure_targets(spec, exposures.rows), "feedback": {*FEEDBACK, *outcome}}
    if feedback is None:
        known["exposures"] |= outcome
    if column_map.users is not None:
        named["users"], known["users"] = set(column_map.users.columns), state_targets(spec)
    for section, targets in named.items():
        for target in sorted(targets - known[section]):
            raise InputError(f"{where}: {section}.columns.{target}: no such column; it takes {', '.join(sorted(known[section]))}")
    needed = {"user_id", "ts", "item_id" if exposures.rows == "impressions" else "item_ids"}
    if exposures.rows == "requests" or feedback is not None:
        needed.add("request_id")
    _need("exposures", needed - named["exposures"], where)
    if feedback is not None:
        _need("feedback", {"request_id", "item_id"} - named["feedback"], where)
    if feedback is None and exposures.rows == "requests":
        raise InputError(f"{where}: feedback: is missing; rows that are requests cannot carry what users did with each item")
    reported = named["feedback" if feedback is not None else "exposures"]
    for behaviour in spec.behaviours:
        target = "watch_s" if behaviour == "watch" else behaviour
        if target not in reported:
            raise InputError(f"{where}: columns.{target}: is not mapped; map it, or take `{behaviour}` out of {column_map.spec}")
    for group in (score_targets(spec), raw_targets(spec)):
        half = [t for t in group if t not in named["exposures"]]
        if half and len(half) < len(group):
            raise InputError(f"{where}: exposures.columns.{half[0]}: is not mapped, others of its kind are; map all or none")
    if named["exposures"] & {"lower", "upper"} and not {"center", "lower", "upper", "action"} <= named["exposures"]:
        raise InputError(f"{where}: exposures.columns: a box needs action, center, lower and upper; map all four, or no box")
    if "action" in named["exposures"] and named["exposures"] & set(raw_targets(spec)):
        raise InputError(f"{where}: exposures.columns: map `action` or the raw power: and bias: columns, not both")
    if len(named["exposures"] & {"cand_item_ids", "cand_scores"}) == 1:
        raise InputError(f"{where}: exposures.columns: candidates need both cand_item_ids and cand_scores")


FEEDBACK = ("request_id", "item_id", "ts", "received_at")
LISTS = ("action", "center", "lower", "upper", "cand_item_ids", "cand_scores")
REQUEST = ("request_id", "user_id", "ts", "received_at", "log_propensity", "policy_sha", "policy_version", "arm", *LISTS)


def exposure_targets(spec: FusionSpec, rows: str) -> set[str]:
    """What `exposures.columns` may name."""
    each = {"item_id", "position", *score_targets(spec)} if rows == "impressions" else {"item_ids", "scores"}
    return {*REQUEST, *raw_targets(spec), *state_targets(spec), *each}


def state_targets(spec: FusionSpec) -> set[str]:
    """`state:<feature>`."""
    return {f"state:{f.name}" for f in spec.features}


def score_targets(spec: FusionSpec) -> list[str]:
    """`score:<objective>`, in the spec's order."""
    return [f"score:{o}" for o in spec.objectives]


def raw_targets(spec: FusionSpec) -> list[str]:
    """`power:<objective>` and `bias:<objective>`: the raw weights that were served, in the action's order."""
    return [f"{kind}:{o}" for kind in ("power", "bias") for o in spec.objectives]


def _need(section: str, missing: set[str], where: str) -> None:
    if missing:
        raise InputError(f"{where}: {section}.columns: {', '.join(sorted(missing))} must be mapped")
