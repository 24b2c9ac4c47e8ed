import contextlib
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.errors import InputError, IntegrityError
from mtf.logs import days
from mtf.logs.days import day_files, list_days, read_manifest
from mtf.logs.seal import prune, seal_day
from mtf.logs.spool import SpoolReader, open_spool
from tests.logs.rows import DT, END, SPEC, START, feedback, requests

GRACE_S = 1800
DUE = END + GRACE_S * 1_000_000


@pytest.fixture
def place(tmp_path):
    with contextlib.closing(open_spool(tmp_path / "spool")) as spool:
        yield spool, tmp_path / "spool", tmp_path / "logs"


def seal(place, dt=DT):
    return seal_day(place[1], place[2], dt, SPEC, surface="feed", grace_s=GRACE_S)


def ids(logs, kind="requests"):
    return [i for path in day_files(logs, DT, kind) for i in pq.read_table(path).column("request_id").to_pylist()]


def test_a_day_is_sealed_once_the_clock_has_passed_its_grace(place):
    spool, _, logs = place
    asked = requests(30, start=END - 15_000)  # half of them belong to the next day
    spool.append(asked, feedback(asked))
    spool.mark(DUE - 1)
    with pytest.raises(InputError, match=r"too early to seal; the event clock has reached 2026-01-02T00:29:59"):
        seal(place)
    assert list_days(logs) == []
    spool.mark(DUE)
    manifest = seal(place)
    assert (manifest.revision, manifest.rows("requests"), manifest.rows("feedback")) == (1, 15, 15)
    assert int(manifest.watermark.timestamp() * 1e6) == DUE
    assert ids(logs) == ids(logs, "feedback") == asked.column("request_id").to_pylist()[:15]


def test_sealing_again_changes_nothing(place):
    spool, _, logs = place
    spool.append(requests(5))
    spool.mark(DUE)
    manifest = seal(place)
    spool.mark(DUE + 10**9)
    assert seal(place) == manifest == read_manifest(logs, DT)


def test_rows_that_come_late_make_a_new_revision(place):
    spool, _, logs = place
    asked = requests(5)
    spool.append(asked)
    spool.mark(DUE)
    seal(place)
    spool.append(feedback=feedback(asked, delay_us=10**12))
    spool.append(requests(2, start=START + 100_000, seed=9))
    manifest = seal(place)
    assert (manifest.revision, manifest.late_rows, manifest.rows("requests"), manifest.rows("feedback")) == (2, 7, 7, 5)
    assert seal(place) == manifest


def test_duplicates_stay(place):
    spool, _, _ = place
    asked = requests(5)
    for _ in range(2):
        spool.append(asked, feedback(asked))
    spool.mark(DUE)
    manifest = seal(place)
    assert (manifest.rows("requests"), manifest.rows("feedback")) == (10, 10)


def test_the_rows_of_all_servers_are_one_day(place):
    spool, folder, logs = place
    with contextlib.closing(open_spool(folder)) as other:
        other.append(requests(3, seed=1))
        spool.append(requests(4, start=START + 500, seed=2))
        other.mark(DUE)
        assert seal(place).rows("requests") == 7
        other.append(requests(1, start=START + 7, seed=3))
        assert seal(place).late_rows == 1
    times = pq.read_table(day_files(logs, DT, "requests")[0]).column("ts").cast(pa.int64()).to_pylist()
    assert times == sorted(times) and len(set(ids(logs))) == 8


def test_an_empty_day_is_said_to_be_empty(place):
    spool, _, logs = place
    with pytest.raises(InputError, match="the spool is empty"):
        seal(place)
    spool.mark(DUE)
    with pytest.raises(InputError, match="dt = 2026-01-01: no row of this day; nothing was sealed"):
        seal(place)
    assert list_days(logs) == []


def test_a_damaged_segment_stops_the_next_seal(place):
    spool, _, logs = place
    spool.append(requests(5))
    spool.mark(DUE)
    seal(place)
    path = day_files(logs, DT, "requests")[0]
    path.write_bytes(path.read_bytes()[:-9])
    for late in (None, requests(1, seed=4)):
        spool.append(late)
        with pytest.raises(IntegrityError, match="the file was changed after the day was sealed"):
            seal(place)
    assert read_manifest(logs, DT).revision == 1


def test_a_damaged_batch_seals_nothing(place):
    spool, _, logs = place
    spool.append(requests(5))
    spool.mark(DUE)
    with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as other:
        other.execute("update batch set payload = x'00'")
    with pytest.raises(IntegrityError, match="batch 1 is damaged"):
        seal(place)
    assert list_days(logs) == []


def test_a_crash_half_way_leaves_nothing_and_the_next_try_completes(place, monkeypatch):
    spool, _, logs = place
    spool.append(requests(5))
    spool.mark(DUE)
    monkeypatch.setattr(days, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        seal(place)
    monkeypatch.undo()
    assert list_days(logs) == [] and seal(place).rows("requests") == 5


def test_pruning_takes_only_what_is_sealed_and_loses_nothing(place):
    spool, folder, logs = place
    asked = requests(200, seed=1)
    for i in range(0, 200, 2):
        spool.append(asked.slice(i, 2))
    spool.append(requests(1, start=END + 5))
    spool.mark(DUE)
    seal(place)
    spool.append(requests(1, start=START + 3, seed=5))
    assert prune(folder, DT, logs) == {}
    assert prune(folder, "2026-02-01", logs) == {DT: 100}
    assert SpoolReader(folder).days() == {DT: 1, "2026-01-02": 1}  # the late row, and the day that is not sealed
    manifest = seal(place)
    assert (manifest.revision, manifest.rows("requests"), manifest.late_rows) == (2, 201, 1)
    assert prune(folder, "2026-02-01", logs) == {DT: 1}
    assert seal(place) == manifest


def test_a_new_spool_in_the_place_of_an_old_one_is_not_mistaken_for_it(place):
    spool, folder, _ = place
    spool.append(requests(5))
    spool.mark(DUE)
    seal(place)
    spool.close()
    for path in folder.iterdir():
        path.unlink()
    with contextlib.closing(open_spool(folder)) as fresh:
        fresh.append(requests(1, start=START + 77, seed=8))
        assert seal(place).late_rows == 1


def test_rows_of_another_spec_are_refused(place):
    spool, _, logs = place
    asked = requests(2)
    rows = feedback(asked).drop_columns("click")
    spool.append(asked, rows)
    spool.mark(DUE)
    with pytest.raises(InputError, match=r"spool, feedback of 2026-01-01: column `click` is missing"):
        seal(place)
    assert list_days(logs) == []


def test_the_pieces_are_read_in_one_order_whatever_the_batches(place, tmp_path):
    spool, _, logs = place
    asked = requests(40)
    for i in (3, 1, 0, 2):
        spool.append(asked.slice(i * 10, 10))
    spool.mark(DUE)
    seal(place)
    assert pa.concat_tables([pq.read_table(p) for p in day_files(logs, DT, "requests")]).equals(asked)
