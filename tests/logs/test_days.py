import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf.errors import ConflictError, InputError, IntegrityError, NotFoundError
from mtf.logs import days
from mtf.logs.days import day_bounds, day_files, list_days, read_manifest, write_day
from mtf.spec import FusionSpec
from tests.conftest import small_spec
from tests.logs.rows import DT, END, SPEC, START, feedback, requests


def test_a_day_is_sorted_and_described(tmp_path):
    asked = requests(50)
    manifest = write_day(tmp_path, DT, asked.take(np.arange(50)[::-1]), feedback(asked), SPEC)
    assert (manifest.revision, manifest.rows("requests"), manifest.rows("feedback"), manifest.late_rows) == (1, 50, 50, 0)
    assert manifest.spec_version == SPEC.version == FusionSpec.read(tmp_path / "spec.json").version
    assert int(manifest.watermark.timestamp() * 1e6) == START + 49_000
    assert list_days(tmp_path) == [DT] and read_manifest(tmp_path, DT) == manifest
    assert pq.read_table(day_files(tmp_path, DT, "requests")[0]).equals(asked)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), copies=st.integers(1, 3))
def test_the_same_rows_give_the_same_bytes_in_any_order(tmp_path_factory, seed, copies):
    folder, rng = tmp_path_factory.mktemp("days"), np.random.default_rng(seed)
    asked = requests(12, step_us=0)  # equal times, and whole duplicates with other contents
    again = asked.set_column(asked.column_names.index("latency_us"), "latency_us", pa.array(np.arange(12, dtype=np.int32)))
    rows = pa.concat_tables([asked, *[again.cast(asked.schema)] * copies])
    back = pa.concat_tables([feedback(asked)] * copies)
    first = write_day(folder, DT, rows, back, SPEC)
    second = write_day(folder, DT, rows.take(rng.permutation(rows.num_rows)), back.take(rng.permutation(back.num_rows)), SPEC)
    assert second == first


def test_other_rows_make_a_new_revision_and_keep_the_old(tmp_path):
    asked = requests(20)
    write_day(tmp_path, DT, asked.slice(0, 17), feedback(asked), SPEC)
    manifest = write_day(tmp_path, DT, asked, feedback(asked), SPEC)
    assert (manifest.revision, manifest.late_rows) == (2, 3)
    assert read_manifest(tmp_path, DT, revision=1).rows("requests") == 17
    assert [p.parent.name for p in day_files(tmp_path, DT, "requests")] == ["r2"]
    assert pq.read_table(day_files(tmp_path, DT, "requests", revision=1)[0]).num_rows == 17


def test_large_days_have_several_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "SEGMENT_ROWS", 8)
    asked = requests(20)
    write_day(tmp_path, DT, asked, feedback(asked), SPEC)
    files = day_files(tmp_path, DT, "requests")
    assert [p.name for p in files] == [f"requests-00{i}.parquet" for i in range(3)]
    assert pa.concat_tables([pq.read_table(p) for p in files]).equals(asked)


def test_a_changed_segment_is_noticed(tmp_path):
    asked = requests()
    write_day(tmp_path, DT, asked, feedback(asked), SPEC)
    path = day_files(tmp_path, DT, "feedback")[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"feedback-000\.parquet: sha256"):
        day_files(tmp_path, DT, "feedback")
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        day_files(tmp_path, DT, "feedback")
    assert len(day_files(tmp_path, DT, "requests")) == 1


def test_a_crash_before_the_rename_leaves_nothing_visible(tmp_path, monkeypatch):
    asked = requests()
    monkeypatch.setattr(days, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_day(tmp_path, DT, asked, feedback(asked), SPEC)
    assert list_days(tmp_path) == []
    with pytest.raises(NotFoundError, match="no such sealed day"):
        read_manifest(tmp_path, DT)
    monkeypatch.undo()
    assert write_day(tmp_path, DT, asked, feedback(asked), SPEC).revision == 1


def test_of_two_that_write_a_revision_one_wins(tmp_path):
    scratch, revision = tmp_path / "scratch", tmp_path / "r1"
    for folder in (scratch, revision):
        folder.mkdir()
        (folder / "manifest.json").write_text(folder.name)
    with pytest.raises(ConflictError, match="another process seals this day"):
        days._publish(scratch, revision)
    assert (revision / "manifest.json").read_text() == "r1"


def test_what_is_not_a_day_is_refused(tmp_path):
    asked = requests()
    nothing = asked.slice(0, 0), feedback(asked).slice(0, 0)
    cases = [
        (DT, (asked.drop_columns("arm"), feedback(asked)), "column `arm` is missing"),
        (DT, (requests(1, start=END), feedback(asked)), r"ts = 2026-01-02T00:00:00\+00:00 is another day"),
        (DT, nothing, "no row of this day"),
        ("2026-13-01", (asked, feedback(asked)), "not a day; write it as YYYY-MM-DD"),
    ]
    for dt, rows, message in cases:
        with pytest.raises(InputError, match=message):
            write_day(tmp_path, dt, *rows, SPEC)
    assert list_days(tmp_path) == []
    write_day(tmp_path, DT, asked, feedback(asked), SPEC)
    with pytest.raises(InputError, match="keep the logs of another spec in another folder"):
        write_day(tmp_path, DT, asked, feedback(asked), small_spec(gamma=0.5))


def test_day_bounds():
    assert day_bounds("1970-01-02") == (86_400_000_000, 2 * 86_400_000_000)
