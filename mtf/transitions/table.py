"""Transitions as arrays: what learning and evaluation read.

Works for our own datasets and for anybody's that follow the Parquet schema: any state and action width, any number of
reward heads, no spec. Rows are sorted by (session_id, step), so a session is a slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mtf import box
from mtf.errors import InputError
from mtf.features import moved_by_action
from mtf.policy import Policy
from mtf.spec import FusionSpec
from mtf.transitions.arrays import Arrays

REQUIRED = ("session_id", "step", "user_id", "state", "action", "center", "lower", "upper", "reward", "next_state", "terminal")
EDGE_TOLERANCE = 1e-3  # of an action in float32 at the edge of the space
USED = {
    *REQUIRED,
    *("next_center", "next_lower", "next_upper", "truncated", "exploring", "policy_sha", "arm", "dt", "fallback", "ts"),
    *("log_propensity", "behaviour", "cand_scores", "shown_scores", "shown_valid", "shown_reward", "spec_version"),
}
Users = Literal["train", "gate", "all"]
MAPPED_FROM = 1_000_000
"""Rows from which the learner maps its data: held in memory they and what is made of them take about 3 KB each."""


def is_gate_user(user_id: str) -> bool:
    """Gate users are those with the first bit of sha256("mtf-gate:" + user_id) set, for ever."""
    return hashlib.sha256(b"mtf-gate:" + user_id.encode()).digest()[0] >= 128


@dataclass(frozen=True)
class TransitionSet:
    """n transitions in s sessions; float32 unless said.

    session: int64 [n], 0..s-1 in order; step: int64 [n]; user: int64 [n], 0..u-1 (codes of `user_ids`);
    state, next_state [n, S]; action, center, lower, upper, next_center, next_lower, next_upper [n, A];
    reward [n, H]; terminal, truncated, exploring: bool [n].
    policy_sha, arm, dt, fallback: object [n] (strings; None where a table has none).
    behaviour [n, B] or None; cand_scores: per row bytes or None (see `candidates`); shown_*: flattened lists or None.
    value_mask: bool [S], True for the columns that a value function may read (not moved by actions).
    arrays: where wide columns lie, and whatever is made of them.
    """

    session: np.ndarray
    step: np.ndarray
    user: np.ndarray
    user_ids: np.ndarray
    state: np.ndarray
    next_state: np.ndarray
    action: np.ndarray
    center: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    next_center: np.ndarray
    next_lower: np.ndarray
    next_upper: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    truncated: np.ndarray
    exploring: np.ndarray
    policy_sha: np.ndarray
    arm: np.ndarray
    dt: np.ndarray
    fallback: np.ndarray
    ts: np.ndarray
    value_mask: np.ndarray
    spec: FusionSpec | None = None
    behaviour: np.ndarray | None = None
    cand_scores: pa.ChunkedArray | None = None
    shown_scores: pa.ChunkedArray | None = None
    shown_valid: pa.ChunkedArray | None = None
    shown_reward: pa.ChunkedArray | None = None
    columns: tuple[str, ...] = field(default=())
    arrays: Arrays = field(default_factory=Arrays)

    def __len__(self) -> int:
        return len(self.step)

    @property
    def state_width(self) -> int:
        """S."""
        return int(self.state.shape[1])

    @property
    def action_width(self) -> int:
        """A."""
        return int(self.action.shape[1])

    @property
    def n_heads(self) -> int:
        """H."""
        return int(self.reward.shape[1])

    @property
    def n_sessions(self) -> int:
        """s."""
        return int(self.session[-1]) + 1 if len(self) else 0

    @property
    def total_reward(self) -> np.ndarray:
        """Sum of the heads, float32 [n]."""
        return self.reward.sum(axis=1)

    @property
    def position(self) -> np.ndarray:
        """x [n, A]: where the action lies in its own box; 0 in dimensions that did not vary."""
        return box.position(self.action, self.center, self.lower, self.upper)

    @property
    def starts(self) -> np.ndarray:
        """int64 [s]: the row at which each session starts."""
        return np.flatnonzero(np.diff(self.session, prepend=-1))

    def returns(self, gamma: float) -> np.ndarray:
        """Realised discounted return-to-go float64 [n] of the total reward, to the end of the rows of the session."""
        reward = self.total_reward.astype(np.float64)
        out = reward.copy()
        last = np.append(self.session[1:] != self.session[:-1], True)
        # backwards by position from the session's end: as many vector operations as the longest session has rows
        ends = np.flatnonzero(last)
        starts = self.starts
        lengths = ends - starts + 1
        for back in range(1, int(lengths.max(initial=1))):
            rows = (ends - back)[lengths > back]
            out[rows] += gamma * out[rows + 1]
        return out

    def select(self, rows: np.ndarray) -> TransitionSet:
        """The rows where `rows` (bool [n]) is True; sessions are renumbered. Keep or drop sessions whole."""
        index = np.flatnonzero(rows)
        changes: dict[str, object] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("user_ids", "value_mask", "spec", "columns", "arrays") or value is None:
                continue
            if isinstance(value, pa.ChunkedArray):
                changes[f.name] = value.take(pa.array(index))
            elif value.ndim == 2:
                (changes[f.name],) = self.arrays.build(len(index), partial(_rows_of, value, index))
            else:
                changes[f.name] = value[index]
        session = changes["session"]
        assert isinstance(session, np.ndarray)
        changes["session"] = np.cumsum(np.diff(session, prepend=-1) != 0) - 1
        return replace(self, **changes)  # type: ignore[arg-type]

    def candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(scores float32 [m, C, K], n_candidates int64 [m]) of the row numbers `rows`, zero-padded to the widest.

        Raises InputError where a row logged none or a part of one, where a score is negative or not finite, or where there is no
        spec to say what K is.
        """
        if self.cand_scores is None or self.spec is None:
            raise InputError("cand_scores: these transitions carry no candidates; log them on explored requests")
        k = self.spec.n_objectives
        taken = _take(self.cand_scores, rows)
        if taken.null_count:
            raise InputError(f"cand_scores: {taken.null_count} of {len(rows)} rows have none; select rows that logged them")
        offsets = np.frombuffer(taken.buffers()[1], np.int32, len(taken) + 1, taken.offset * 4)
        _require_whole(np.diff(offsets), k, rows)
        flat = np.frombuffer(taken.buffers()[2], np.float16)[offsets[0] // 2 : offsets[-1] // 2].astype(np.float32)
        # written so that a score that is no number fails it
        if flat.size and not (flat.min() >= 0 and flat.max() < np.inf):
            place = int(np.argmin((flat >= 0) & (flat < np.inf)))
            row = int(np.searchsorted(offsets, offsets[0] + 2 * place, side="right")) - 1
            raise InputError(
                f"cand_scores: row {rows[row]} has a score of {flat[place]}; mend the log (scores are finite and >= 0) or drop it"
            )
        count = np.diff(offsets) // (2 * k)
        if len(count) and (count == count[0]).all():
            return flat.reshape(len(rows), int(count[0]), k), count.astype(np.int64)
        padded = np.zeros((len(rows), int(count.max(initial=0)), k), np.float32)
        real = np.arange(padded.shape[1]) < count[:, None]
        padded[real] = flat.reshape(-1, k)
        return padded, count.astype(np.int64)

    def require_fit(self, name: str, policy: Policy, way_out: str) -> None:
        """Raises InputError, which begins with `name`, where the policy's widths or its spec are not these rows'."""
        if (policy.state_width, policy.action_width) != (self.state_width, self.action_width):
            raise InputError(
                f"{name} maps {policy.state_width} -> {policy.action_width}, "
                f"the transitions hold {self.state_width} -> {self.action_width}; {way_out}"
            )
        if policy.spec is not None and self.spec is not None and policy.spec.version != self.spec.version:
            raise InputError(
                f"{name} was made for spec {policy.spec.version}, the transitions are of {self.spec.version}; {way_out}"
            )

    def require_whole_candidates(self) -> None:
        """Raises InputError where a row's bytes are no whole number of candidates."""
        if self.cand_scores is not None and self.spec is not None:
            _require_whole(_bytes(self.cand_scores), self.spec.n_objectives, np.arange(len(self)))

    @property
    def has_candidates(self) -> np.ndarray:
        """bool [n]: rows that logged all candidates' scores."""
        if self.cand_scores is None:
            return np.zeros(len(self), bool)
        # a request without any candidate says as little as one that logged none
        return _bytes(self.cand_scores) > 0


def _bytes(column: pa.ChunkedArray) -> np.ndarray:
    """Length of each row's bytes [n], 0 where there are none."""
    length: np.ndarray = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    return length


def _require_whole(length: np.ndarray, k: int, rows: np.ndarray) -> None:
    """`length`: bytes of the candidates of `rows`, float16 scores of k objectives."""
    if (odd := np.flatnonzero(length % (2 * k))).size:
        raise InputError(
            f"cand_scores: row {rows[odd[0]]} has {length[odd[0]]} bytes, no multiple of a candidate's {2 * k} "
            f"({k} scores of 2 bytes); mend the log, or give the spec that wrote it"
        )


def load_transitions(
    path: str | Path,
    *,
    users: Users = "all",
    spec: FusionSpec | None = None,
    scratch: Path | None = None,
    mapped_from: int = MAPPED_FROM,
) -> TransitionSet:
    """Read every transitions Parquet file at or below `path`.

    users: `train` drops the gate users, `gate` keeps only them.
    spec: as given, else `spec.json` beside the files, else none.
    scratch: a folder for wide columns, mapped from there where the files hold `mapped_from` rows or more; None keeps all in
        memory. Mapped data carries no shown slates: it is for learning.
    Raises InputError naming file, column and value for anything that cannot be trained on: a missing column, one of another
    type or spec, lists of unequal length, a value that is not finite, an action outside [-1, 1], a box upside down, a step that a
    session has twice or leaves out, a session that goes on after its terminal row, explored rows without their `log_propensity`
    where there is such a column (where there is none, the box is what they were drawn from), rows of several specs, no rows.
    """
    path = Path(path)
    files = sorted(p for p in path.rglob("*.parquet") if _is_data(p, path)) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise InputError(f"transitions: no Parquet file at {path}; give the folder that `mtf transitions build --out` wrote")
    if spec is None and path.is_dir() and (path / "spec.json").exists():
        spec = FusionSpec.read(path / "spec.json")
    try:
        dataset = ds.dataset([str(f) for f in files], format="parquet")
        missing = [c for c in REQUIRED if c not in dataset.schema.names]
        if missing:
            raise InputError(f"transitions: {path} lacks the column(s) {', '.join(missing)}; see docs/transitions.md")
        everyone = dataset.to_table(columns=["user_id"]).column("user_id")
        keep = _keep(everyone, users)
        rows = dataset.count_rows(filter=keep)
        if not rows:
            raise InputError(f"transitions: {path} holds no rows of {users} users; build a day that has closed sessions")
        # only what a TransitionSet holds is read; the table has no name here, so that `from_table` can free it as it goes
        names = [c for c in dataset.schema.names if c in USED]
        if scratch is not None and rows >= mapped_from:
            from mtf.transitions.mapped import load_mapped

            return load_mapped(dataset, names, keep, folder=scratch, spec=spec, where=str(path))
        return from_table(
            dataset.to_table(columns=names, filter=keep, batch_readahead=2, fragment_readahead=1), spec=spec, where=str(path)
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"transitions: cannot read {path}: {error}") from error


def from_table(table: pa.Table, *, spec: FusionSpec | None = None, where: str = "table") -> TransitionSet:
    """An Arrow table in the transitions schema as arrays (see `load_transitions`)."""
    for name, kind in (("session_id", pa.string()), ("user_id", pa.string()), ("step", pa.int64()), ("terminal", pa.bool_())):
        table = _needed(table, name, kind, where)
    order = pc.sort_indices(table, sort_keys=[("session_id", "ascending"), ("step", "ascending")])
    names = table.column_names
    in_order = {}
    for name in names:
        # column by column, so that there are never two whole tables
        in_order[name] = table.column(name).take(order)
        table = table.drop_columns([name])
    table = pa.table(in_order)
    n = len(table)

    def matrix(name: str, like: np.ndarray | None = None) -> np.ndarray:
        if name not in names and like is not None:
            return np.zeros_like(like)
        return _matrix(table.column(name), name, where)

    def flags(name: str, default: bool) -> np.ndarray:
        if name not in names:
            return np.full(n, default)
        column = _cast(table.column(name), pa.bool_(), name, where)
        return np.asarray(pc.fill_null(column, default).to_numpy(zero_copy_only=False), bool)

    def strings(name: str) -> np.ndarray:
        if name not in names:
            return np.full(n, None, object)
        # few distinct values: the rows share their strings
        encoded = pc.dictionary_encode(_cast(table.column(name), pa.string(), name, where), null_encoding="encode")
        array = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        return np.asarray(array.dictionary.to_pylist() or [None], object)[_codes(array)]

    session_codes = table.column("session_id").combine_chunks().dictionary_encode()
    users = pc.dictionary_encode(table.column("user_id")).combine_chunks()
    users = users.chunk(0) if isinstance(users, pa.ChunkedArray) else users
    session = _codes(session_codes)
    session = np.cumsum(np.diff(session, prepend=-1) != 0) - 1
    state, action = matrix("state"), matrix("action")
    lower, upper = matrix("lower"), matrix("upper")
    center = matrix("center")
    if "next_center" in names:
        next_center, next_lower, next_upper = matrix("next_center"), matrix("next_lower", lower), matrix("next_upper", upper)
    else:
        # rows of one session follow each other: the successor's own columns are the next row's, the last row's its own
        shift = np.arange(n) + np.append(session[1:] == session[:-1], False)
        next_center, next_lower, next_upper = center[shift], lower[shift], upper[shift]
    next_state = matrix("next_state")
    ts = _microseconds(table.column("ts"), where) if "ts" in names else np.arange(n, dtype=np.int64)
    step = table.column("step").to_numpy()
    twice = np.flatnonzero((np.diff(session) == 0) & (np.diff(step) == 0))
    if len(twice):
        which = f"session {table.column('session_id')[int(twice[0])].as_py()!r} has step {step[twice[0]]} twice"
        raise InputError(f"transitions: {where}: {which} ({len(twice)} such rows); keep one row a request")
    boxes = {"center": center, "lower": lower, "upper": upper}
    boxes |= {"next_center": next_center, "next_lower": next_lower, "next_upper": next_upper}
    for name, value in boxes.items():
        _same_width(name, value, "action", action, where)
    _same_width("next_state", next_state, "state", state, where)
    if (below := np.flatnonzero(step < 0)).size:
        which = f"session {table.column('session_id')[int(below[0])].as_py()!r} has step {step[below[0]]}"
        raise InputError(f"transitions: {where}: {which} ({len(below)} such rows); number the steps of a session 0, 1, ...")
    gap = np.flatnonzero((np.diff(session) == 0) & (np.diff(step) != 1))
    if len(gap):
        which = f"session {table.column('session_id')[int(gap[0])].as_py()!r} goes from step {step[gap[0]]} to {step[gap[0] + 1]}"
        raise InputError(
            f"transitions: {where}: {which} ({len(gap)} such places); its returns would miss what lies between: number the steps "
            "of a session 0, 1, ..., or leave it out whole"
        )
    terminal = flags("terminal", False)
    early = np.flatnonzero(terminal[:-1] & (session[1:] == session[:-1]))
    if len(early):
        which = f"session {table.column('session_id')[int(early[0])].as_py()!r} is `terminal` at step {step[early[0]]}"
        raise InputError(
            f"transitions: {where}: {which} and goes on ({len(early)} such rows); give what comes after it a session of its own"
        )
    varied = (upper > lower).any(axis=1)
    _within("action", action, np.abs(action) <= 1 + EDGE_TOLERANCE, "normalise actions to [-1, 1]", where)
    _within("center", center, np.abs(center) <= 1 + EDGE_TOLERANCE, "normalise actions to [-1, 1]", where)
    _within("lower", lower, lower <= upper, "keep it at most `upper`: both are offsets from `center`", where)
    if spec is not None and (state.shape[1], action.shape[1]) != (spec.state_width, spec.action_width):
        raise InputError(
            f"transitions: {where}: state and action have widths {state.shape[1]} and {action.shape[1]}; "
            f"spec {spec.version} has {spec.state_width} and {spec.action_width}; give the spec that made them"
        )
    exploring = np.logical_and(flags("exploring", True), varied)
    if "log_propensity" in names:
        lost = np.flatnonzero(exploring & ~_known(table.column("log_propensity"), "log_propensity", where))
        if len(lost):
            which = f"session {table.column('session_id')[int(lost[0])].as_py()!r}, step {step[lost[0]]}"
            raise InputError(
                f"transitions: {where}: `log_propensity` is not known of {len(lost)} row(s) that explored (the first: {which}); "
                "log what they were drawn with, or say that they did not explore (`exploring` false)"
            )
    behaviour = matrix("behaviour") if "behaviour" in names else None
    if spec is not None and behaviour is not None and behaviour.shape[1] != len(spec.behaviours):
        raise InputError(
            f"transitions: {where}: `behaviour` has width {behaviour.shape[1]}, spec {spec.version} names {len(spec.behaviours)} "
            f"({', '.join(spec.behaviours)}); give the spec that made them"
        )
    versions = sorted({v for v in strings("spec_version") if v is not None}) if "spec_version" in names else []
    if spec is not None and (strange := [v for v in versions if v != spec.version]):
        raise InputError(
            f"transitions: {where}: `spec_version` is {', '.join(strange)} in some rows, {spec.version} given; "
            "give the spec that made them"
        )
    if len(versions) > 1:
        raise InputError(
            f"transitions: {where}: rows are of the specs {', '.join(versions)}: their actions do not mean the same; "
            "keep those of one"
        )
    return TransitionSet(
        session=session,
        step=step,
        user=_codes(users),
        user_ids=np.asarray(users.dictionary.to_numpy(zero_copy_only=False), object),
        state=state,
        next_state=next_state,
        action=action,
        center=center,
        lower=lower,
        upper=upper,
        next_center=next_center,
        next_lower=next_lower,
        next_upper=next_upper,
        reward=matrix("reward"),
        terminal=terminal,
        truncated=flags("truncated", False),
        exploring=exploring,
        policy_sha=strings("policy_sha"),
        arm=strings("arm"),
        dt=strings("dt"),
        fallback=strings("fallback"),
        ts=ts,
        value_mask=~moved_by_action(spec) if spec is not None else np.ones(state.shape[1], bool),
        spec=spec,
        behaviour=behaviour,
        cand_scores=table.column("cand_scores") if "cand_scores" in names else None,
        shown_scores=table.column("shown_scores") if "shown_scores" in names else None,
        shown_valid=table.column("shown_valid") if "shown_valid" in names else None,
        shown_reward=table.column("shown_reward") if "shown_reward" in names else None,
        columns=tuple(names),
    )


def sorted_keys(table: pa.Table, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(row numbers by session_id and step, number of the session of each of them), int64 [n]."""
    for name, kind in (("session_id", pa.string()), ("step", pa.int64())):
        table = _needed(table, name, kind, where)
    order = pc.sort_indices(table, sort_keys=[("session_id", "ascending"), ("step", "ascending")]).to_numpy().astype(np.int64)
    codes = _codes(table.column("session_id").combine_chunks().dictionary_encode())[order]
    return order, np.cumsum(np.diff(codes, prepend=-1) != 0) - 1


def _is_data(file: Path, top: Path) -> bool:
    """Data files are named transitions*.parquet where ours; any *.parquet in a folder of somebody else's."""
    inside = file.relative_to(top).parts
    return not any(p.startswith((".", "_", "carry")) for p in inside)


def _keep(user_ids: pa.ChunkedArray, users: Users) -> ds.Expression | None:
    if users == "all":
        return None
    wanted = [u for u in pc.unique(user_ids).to_pylist() if is_gate_user(str(u)) == (users == "gate")]
    kind = user_ids.type.value_type if pa.types.is_dictionary(user_ids.type) else user_ids.type
    return ds.field("user_id").isin(pa.array(wanted, kind))


def _rows_of(wide: np.ndarray, index: np.ndarray, some: slice) -> tuple[np.ndarray]:
    return (wide[index[some]],)


def _take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """Arrow's own `take` of a column in several chunks copies all of it first; this one reads the rows alone."""
    order = np.argsort(rows, kind="stable")
    in_order = np.asarray(rows)[order]
    starts = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
    cuts = np.searchsorted(in_order, starts)
    parts = [
        chunk.take(pa.array(in_order[low:high] - start))
        for chunk, start, low, high in zip(column.chunks, starts[:-1], cuts[:-1], cuts[1:], strict=True)
        if high > low
    ]
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    together = pa.concat_arrays(parts) if parts else pa.array([], column.type)
    return together if (back[1:] > back[:-1]).all() else together.take(pa.array(back))


def _codes(encoded: pa.DictionaryArray | pa.ChunkedArray) -> np.ndarray:
    array = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    return array.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _known(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """bool [n]: where a number stands."""
    number = _cast(column, pa.float64(), name, where)
    return np.asarray(np.isfinite(pc.fill_null(number, float("nan")).to_numpy(zero_copy_only=False)))


def _cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, where: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise InputError(f"transitions: {where}: `{name}` is {column.type}, needs {kind} ({error})") from None


def _needed(table: pa.Table, name: str, kind: pa.DataType, where: str) -> pa.Table:
    """The table with that column in its type; raises where it holds a null."""
    column = _cast(table.column(name), kind, name, where)
    if column.null_count:
        raise InputError(f"transitions: {where}: `{name}` holds {column.null_count} nulls; every row needs one")
    return table.set_column(table.column_names.index(name), name, column)


def _microseconds(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """int64 [n] of timestamps of any unit; whole numbers are taken to be microseconds."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz))
    if column.null_count:
        raise InputError(f"transitions: {where}: `ts` holds {column.null_count} nulls; every row needs one, or leave it out")
    return np.asarray(_cast(column, pa.int64(), "ts", where).to_numpy())


def _same_width(name: str, value: np.ndarray, other: str, like: np.ndarray, where: str) -> None:
    if value.shape != like.shape:
        raise InputError(f"transitions: {where}: `{name}` has width {value.shape[1]}, `{other}` has {like.shape[1]}")


def _within(name: str, values: np.ndarray, good: np.ndarray, way_out: str, where: str) -> None:
    if not good.all():
        row, place = np.argwhere(~good)[0]
        raise InputError(f"transitions: {where}: `{name}`[{place}] is {values[row, place]} in row {row}; {way_out}")


def _matrix(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """A list column as float32 [n, width]; raises where lengths differ or a value is not finite."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        column = pa.chunked_array([pa.FixedSizeListArray.from_arrays(column.combine_chunks().cast(pa.float32()), 1)])
    try:
        column = column.cast(pa.list_(pa.float32()))
    except pa.ArrowException:
        raise InputError(f"transitions: {where}: `{name}` is {column.type}, needs a list of numbers") from None
    lengths: Sequence[int] = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        raise InputError(
            f"transitions: {where}: `{name}` has lists of lengths {sorted(map(str, lengths))}; every row needs the same"
        )
    values = pc.list_flatten(column).combine_chunks()
    matrix = np.asarray(values.to_numpy(zero_copy_only=False), np.float32).reshape(len(column), lengths[0])
    if not np.isfinite(matrix).all():
        row, place = np.argwhere(~np.isfinite(matrix))[0]
        raise InputError(f"transitions: {where}: `{name}`[{place}] is {matrix[row, place]} in row {row}; drop or mend such rows")
    return matrix
