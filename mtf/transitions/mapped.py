"""Transitions that memory does not hold: put in order on disk, then read a few sessions at a time into mapped columns.

The keys alone are sorted in memory. They say to which part each row belongs; parts hold whole sessions and follow each other.
A part goes through `table.from_table`, so that what is checked and assumed is the same as in memory. Keys, flags and strings
stay in memory, about a hundred bytes a row.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mtf.errors import InputError
from mtf.spec import FusionSpec
from mtf.transitions.arrays import Arrays
from mtf.transitions.table import TransitionSet, from_table, sorted_keys

PART = 65_536
BATCH = 16_384
NOT_LEARNED_FROM = ("shown_scores", "shown_valid", "shown_reward")


def load_mapped(
    dataset: ds.FileSystemDataset,
    names: Sequence[str],
    keep: ds.Expression | None,
    *,
    folder: Path,
    spec: FusionSpec | None,
    where: str,
) -> TransitionSet:
    """The rows `keep` of `dataset` as `table.from_table` gives them, but for the shown slates; wide columns lie in `folder`.

    Raises InputError as `table.load_transitions` does.
    """
    part = _parts(dataset, keep, where)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".transitions-") as scratch:
        files = _distribute(dataset, [n for n in names if n not in NOT_LEARNED_FROM], keep, part, Path(scratch))
        return _read(files, len(part), Arrays(folder), spec, where)


def _tables(dataset: ds.FileSystemDataset, names: Sequence[str], keep: ds.Expression | None) -> Iterator[pa.Table]:
    """Some rows at a time, file by file. The dataset's own scanner reads ahead without a bound."""
    schema = pa.schema([dataset.schema.field(name) for name in names])
    for path in dataset.files:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(BATCH, columns=list(names), use_threads=False):
                table = pa.table([batch.column(n) if n in batch.schema.names else pa.nulls(len(batch)) for n in names], [*names])
                yield table.cast(schema) if keep is None else table.cast(schema).filter(keep)


def _parts(dataset: ds.FileSystemDataset, keep: ds.Expression | None, where: str) -> np.ndarray:
    """int32 [n]: the part of each row of the dataset. A session starts at some row in order, and is of that row's part."""
    order, session = sorted_keys(pa.concat_tables(_tables(dataset, ["session_id", "step", "user_id"], keep)), where)
    starts = np.flatnonzero(np.diff(session, prepend=-1))
    part = np.empty(len(order), np.int32)
    part[order] = (starts // PART)[session]
    return np.unique(part, return_inverse=True)[1].astype(np.int32)


def _distribute(
    dataset: ds.FileSystemDataset, names: Sequence[str], keep: ds.Expression | None, part: np.ndarray, scratch: Path
) -> list[Path]:
    """Write each row to its part's file; the files in order."""
    files = [scratch / f"part-{k:06d}.arrow" for k in range(int(part.max()) + 1)]
    writers: dict[int, pa.RecordBatchStreamWriter] = {}
    done = 0
    with contextlib.ExitStack() as stack:
        for table in _tables(dataset, names, keep):
            of = part[done : done + len(table)]
            done += len(table)
            for k in np.unique(of):
                if k not in writers:
                    writers[k] = stack.enter_context(pa.ipc.new_stream(files[k], table.schema))
                writers[k].write_table(table.take(pa.array(np.flatnonzero(of == k))))
    return files


def _read_each(files: Sequence[Path]) -> Iterator[pa.Table]:
    for file in files:
        with pa.ipc.open_stream(file) as reader:
            yield reader.read_all()
        file.unlink()


def _read(files: Sequence[Path], n: int, arrays: Arrays, spec: FusionSpec | None, where: str) -> TransitionSet:
    columns: dict[str, np.ndarray] = {}
    users: dict[object, int] = {}
    words: dict[object, object] = {}
    candidates: pa.ipc.RecordBatchFileWriter | None = None
    found = files[0].parent / "candidates.arrow"
    done = sessions = 0
    first: TransitionSet | None = None
    for table in _read_each(files):
        part = from_table(table, spec=spec, where=where)
        if first is None:
            first = part
            for f in fields(part):
                value = getattr(part, f.name)
                if isinstance(value, np.ndarray) and f.name not in ("user_ids", "value_mask"):
                    of = arrays if value.ndim == 2 else Arrays()
                    columns[f.name] = of.zeros((n, *value.shape[1:]), value.dtype)
        rows = slice(done, done + len(part))
        code = np.array([users.setdefault(user, len(users)) for user in part.user_ids], np.int64)
        for name, column in columns.items():
            value = getattr(part, name)
            if name in ("session", "user"):
                value = value + sessions if name == "session" else code[value]
            elif name == "ts" and "ts" not in part.columns:
                value = value + done
            elif value.dtype == object:
                value = np.array([words.setdefault(word, word) for word in value], object)
            if value.shape[1:] != column.shape[1:]:
                width, expected = value.shape[1], column.shape[1]
                raise InputError(f"transitions: {where}: `{name}` has lists of lengths {expected} and {width}; keep one length")
            column[rows] = value
        if part.cand_scores is not None:
            scores = pa.table({"cand_scores": part.cand_scores.cast(pa.binary())})
            candidates = candidates or pa.ipc.new_file(found, scores.schema)
            candidates.write_table(scores)
        done, sessions = rows.stop, sessions + part.n_sessions
    assert first is not None
    if candidates is not None:
        candidates.close()
    return TransitionSet(
        **columns,
        user_ids=np.array(list(users), object),
        value_mask=first.value_mask,
        spec=spec,
        # mapped: its bytes stay on the disk until the last reader is gone, also without a name
        cand_scores=None if candidates is None else pa.ipc.open_file(pa.memory_map(str(found))).read_all().column(0),
        columns=first.columns,
        arrays=arrays,
    )
