"""Data that is mapped instead of held: the same values, the same refusals."""

from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.errors import InputError
from mtf.transitions import arrays, mapped
from mtf.transitions.arrays import Arrays
from mtf.transitions.table import load_transitions
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions
from tests.transitions.files import to_table


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Many parts, batches and chunks of few rows."""
    monkeypatch.setattr(mapped, "PART", 100)
    monkeypatch.setattr(mapped, "BATCH", 37)
    monkeypatch.setattr(arrays, "CHUNK", 64)


@pytest.fixture
def table():
    """Rows in no order, with candidates in some of them."""
    data = make_sessions(120, seed=1, slope=np.zeros(4))
    rng = np.random.default_rng(0)
    found = to_table(data)
    scores = [rng.random(2 * c).astype("<f2").tobytes() if c else None for c in rng.integers(0, 6, len(data))]
    found = found.append_column("cand_scores", pa.array(scores, pa.binary()))
    found = found.append_column("policy_sha", pa.array(rng.choice(["a", "b"], len(data))))
    found = found.append_column("shown_valid", pa.array([[True]] * len(data)))
    return found.take(pa.array(rng.permutation(len(data))))


def both(path, scratch, **changes):
    """In memory, and mapped."""
    held = load_transitions(path, **changes)
    return held, load_transitions(path, scratch=scratch, mapped_from=1, **changes)


@pytest.mark.parametrize("users", ["all", "train"])
def test_the_values_are_those_in_memory(table, tmp_path, users):
    source, scratch = tmp_path / "rows", tmp_path / "scratch"
    source.mkdir()
    scratch.mkdir()
    # sessions lie across the files, and one file lacks a column that need not be there
    pq.write_table(table.slice(0, 300), source / "a.parquet", row_group_size=70)
    pq.write_table(table.slice(300).drop_columns(["policy_sha"]), source / "b.parquet")
    held, found = both(source, scratch, users=users, spec=small_spec())
    assert len(found) > 300
    for f in fields(held):
        a, b = getattr(held, f.name), getattr(found, f.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=f.name)
            assert a.dtype == b.dtype, f.name
    assert isinstance(found.state.base, np.memmap)
    assert found.shown_valid is None
    np.testing.assert_array_equal(held.has_candidates, found.has_candidates)
    rows = np.random.default_rng(1).permutation(np.flatnonzero(held.has_candidates))
    for a, b in zip(held.candidates(rows), found.candidates(rows), strict=True):
        np.testing.assert_array_equal(a, b)
    # a selection is mapped, too
    some = found.select(found.session % 3 == 1)
    assert isinstance(some.state.base, np.memmap)
    np.testing.assert_array_equal(some.state, held.select(held.session % 3 == 1).state)
    # nothing that has a name is left
    assert list(scratch.iterdir()) == []


def test_below_the_threshold_and_without_a_folder_rows_are_held(table, tmp_path):
    pq.write_table(table, tmp_path / "x.parquet")
    for changes in ({"mapped_from": 1}, {"scratch": tmp_path, "mapped_from": len(table) + 1}):
        assert not isinstance(load_transitions(tmp_path / "x.parquet", **changes).state.base, np.memmap)


def change(table, name, row, value):
    values = table[name].to_pylist()
    values[row] = value
    i = table.column_names.index(name)
    return table.set_column(i, name, pa.array(values, table.schema.field(name).type))


BAD = {
    "nan": ("action", [0.0, float("nan"), 0.0, 0.0], r"`action`\[1\] is nan"),
    "another width": ("state", [0.0], "`state` has lists of lengths"),
    "null": ("session_id", None, "`session_id` holds 1 nulls"),
    "step without a number": ("step", None, "`step` holds 1 nulls"),
}


@pytest.mark.parametrize(("name", "value", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_learned_from_is_named_and_nothing_left(table, tmp_path, name, value, says):
    (tmp_path / "s").mkdir()
    pq.write_table(change(table, name, 250, value), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=says):
        load_transitions(tmp_path / "x.parquet", scratch=tmp_path / "s", mapped_from=1)
    assert list((tmp_path / "s").iterdir()) == []


def test_a_width_that_changes_between_parts_is_named(table, tmp_path):
    wide = table["session_id"].to_pylist()
    late = sorted(wide)[len(wide) // 2]
    values = [v[: 1 if s >= late else 3] for s, v in zip(wide, table["state"].to_pylist(), strict=True)]
    for name in ("state", "next_state"):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.list_(pa.float32())))
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has lists of lengths"):
        load_transitions(tmp_path / "x.parquet", scratch=tmp_path, mapped_from=1)


def test_a_step_twice_in_two_files_is_found(table, tmp_path):
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.slice(5, 1), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"twice \(1 such rows\)"):
        load_transitions(tmp_path, scratch=tmp_path, mapped_from=1)


def test_columns_are_built_alike_and_a_full_disk_is_named(tmp_path, monkeypatch):
    source = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    made = [where.build(200, lambda rows: (source[rows], source[rows, 0] > 0)) for where in (Arrays(), Arrays(tmp_path))]
    for column in made:
        np.testing.assert_array_equal(column[0], source)
        np.testing.assert_array_equal(column[1], source[:, 0] > 0)
    assert [isinstance(column[0].base, np.memmap) for column in made] == [False, True]
    assert [c.shape for c in Arrays(tmp_path).build(0, lambda rows: (source[rows],))] == [(0, 3)]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(InputError, match="no room for a column"):
        Arrays(tmp_path).zeros((10, 3))
