import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest

from mtf.errors import ConflictError, InputError, IntegrityError, MtfError
from mtf.logs.spool import COMPRESS_FROM_ROWS, Spool, SpoolReader, open_spool
from tests.logs.rows import END, START, feedback, requests


@pytest.fixture
def spool(tmp_path):
    with contextlib.closing(Spool(tmp_path / "worker-00.sqlite")) as opened:
        yield opened


def test_rows_come_back_as_they_went_in(spool, tmp_path):
    reader = SpoolReader(tmp_path)
    asked = [requests(n, seed=n) for n in (1, COMPRESS_FROM_ROWS)]
    spool.append(asked[0])
    found, back, cursor = reader.poll({})
    assert [t.equals(asked[0]) for t in found] == [True] and back == []
    spool.append(asked[1], feedback(asked[1]))
    found, back, cursor = reader.poll(cursor)
    assert found[0].equals(asked[1]) and back[0].equals(feedback(asked[1])) and len(found) == len(back) == 1
    assert reader.poll(cursor) == ([], [], cursor)
    assert reader.days() == {"2026-01-01": 1 + 2 * COMPRESS_FROM_ROWS}


def test_rows_are_split_by_day_and_feedback_belongs_to_its_requests(spool, tmp_path):
    asked = requests(10, start=END - 5000)  # five before midnight, five after
    spool.append(asked, feedback(asked, delay_us=10_000_000))
    for dt, part in (("2026-01-01", slice(0, 5)), ("2026-01-02", slice(5, 10))):
        found = {batch.kind: batch.rows for _, batch in SpoolReader(tmp_path).batches({}, dt)}
        wanted = asked.column("request_id").to_pylist()[part]
        assert found["requests"].column("request_id").to_pylist() == wanted
        assert found["feedback"].column("request_id").to_pylist() == wanted


def test_the_watermark_is_the_latest_request_or_mark(spool, tmp_path):
    reader = SpoolReader(tmp_path)
    assert reader.watermark() == 0
    spool.append(requests(3))
    assert reader.watermark() == START + 2000
    spool.append(feedback=feedback(requests(3), delay_us=10**12))  # what callers say of feedback moves no clock
    assert reader.watermark() == START + 2000
    spool.mark(END)
    spool.mark(START)
    assert reader.watermark() == END


def test_where_the_clock_is_simulated_only_marks_move_it(tmp_path):
    """Callers play users in any order of event time: the latest event says nothing about what has passed."""
    with contextlib.closing(Spool(tmp_path / "worker-00.sqlite", events_move_clock=False)) as spool:
        spool.append(requests(3))
        assert SpoolReader(tmp_path).watermark() == 0
        spool.mark(END)
        assert SpoolReader(tmp_path).watermark() == END


def test_a_reader_never_sees_what_is_not_committed(spool, tmp_path):
    reader = SpoolReader(tmp_path)
    asked = requests(100)
    with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as other:
        other.execute("begin immediate")  # holds the one writer's place, so that the spool's commit has to wait
        done = spool.submit(asked)
        time.sleep(0.2)
        assert not done.done() and reader.poll({})[0] == [] and reader.watermark() == 0
        other.execute("rollback")
    done.result(timeout=10)
    assert reader.poll({})[0][0].equals(asked)


def test_appends_that_wait_share_the_next_commit(tmp_path):
    commits = []
    with contextlib.closing(Spool(tmp_path / "s.sqlite", on_commit=lambda _, n: commits.append(n))) as spool:
        one = requests(1)
        with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as other:
            other.execute("begin immediate")
            futures = [spool.submit(one) for _ in range(50)]
            time.sleep(0.1)
            other.execute("rollback")
        for future in futures:
            future.result(timeout=10)
    assert sum(commits) == 50 and len(commits) <= 3
    assert len(SpoolReader(tmp_path).poll({})[0]) == 50


def test_many_threads_append_and_order_is_kept(spool, tmp_path):
    def work(k):
        for i in range(10):
            spool.append(requests(1, seed=100 * k + i, start=START + (100 * k + i) * 1000))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [t.column("ts").cast(pa.int64())[0].as_py() for t in SpoolReader(tmp_path).poll({})[0]]
    order = [(t - START) // 1000 for t in found]
    assert len(order) == 80
    for k in range(8):
        mine = [i for i in order if i // 100 == k]
        assert mine == sorted(mine)


def test_one_file_a_process_and_a_restart_goes_on(tmp_path):
    first, second = open_spool(tmp_path), open_spool(tmp_path)
    assert (first.path.name, second.path.name) == ("worker-00.sqlite", "worker-01.sqlite")
    with pytest.raises(ConflictError, match="held by another server"):
        Spool(first.path)
    first.append(requests(1))
    second.append(requests(2))
    _, _, cursor = SpoolReader(tmp_path).poll({})
    first.close()
    again = open_spool(tmp_path)
    assert again.path == first.path
    again.append(requests(3))
    assert [t.num_rows for t in SpoolReader(tmp_path).poll(cursor)[0]] == [3]
    for spool in (again, second):
        spool.close()


def test_closing_commits_what_waits_and_refuses_more(tmp_path):
    spool = Spool(tmp_path / "s.sqlite")
    futures = [spool.submit(requests(1)) for _ in range(20)]
    spool.close()
    spool.close()
    assert all(f.done() and f.exception() is None for f in futures)
    with pytest.raises(MtfError, match="closed"):
        spool.append(requests(1))


def test_an_append_that_cannot_be_kept_says_so(spool, tmp_path):
    with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as other:
        other.execute("create trigger full before insert on batch begin select raise(abort, 'disk is full'); end")
        with pytest.raises(MtfError, match="disk is full; nothing of this append was kept"):
            spool.append(requests(1))
        assert spool.error == "disk is full"
        other.execute("drop trigger full")
    spool.append(requests(1))
    assert spool.error is None
    assert len(SpoolReader(tmp_path).poll({})[0]) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_spool_whose_writer_has_ended_says_so(tmp_path):
    spool = Spool(tmp_path / "worker-00.sqlite", on_commit=lambda *_: sys.exit())
    spool.submit(requests(1))
    spool._writer.join(10)
    assert spool.error == "its writer has ended"
    with pytest.raises(MtfError, match="its writer has ended; restart the server"):
        spool.append(requests(1))
    spool.close()


def test_feedback_without_a_day_is_refused(spool, tmp_path):
    rows = feedback(requests(1))
    rows = rows.set_column(0, rows.schema.field(0), pa.array(["nobody"]))
    with pytest.raises(InputError, match="request_id = 'nobody': not a UUIDv7"):
        spool.append(feedback=rows)


def test_damage_is_told_with_its_place(spool, tmp_path):
    spool.append(requests(1))
    with contextlib.closing(sqlite3.connect(spool.path, isolation_level=None)) as other:
        other.execute("update batch set payload = x'00112233'")
    with pytest.raises(IntegrityError, match=r"worker-00\.sqlite, batch 1 is damaged"):
        SpoolReader(tmp_path).poll({})
    (tmp_path / "worker-01.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(IntegrityError, match=r"worker-01\.sqlite cannot be read"):
        SpoolReader(tmp_path).watermark()


def test_no_folder_and_no_file_are_an_empty_spool(tmp_path):
    reader = SpoolReader(tmp_path / "nothing")
    assert (reader.poll({}), reader.watermark(), reader.days()) == (([], [], {}), 0, {})


WRITER = """
import sys
from pathlib import Path
from mtf.logs.spool import Spool
from tests.logs.rows import requests, START
spool = Spool(Path(sys.argv[1]))
for i in range(100_000):
    spool.append(requests(3, start=START + i))
    print(i, flush=True)
"""


@pytest.mark.reliability
def test_what_was_acknowledged_survives_kill_9(tmp_path):
    path = tmp_path / "worker-00.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    ) as writer:
        acknowledged = -1
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged == 40:
                os.kill(writer.pid, signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    found = [t.column("ts").cast(pa.int64())[0].as_py() - START for t in SpoolReader(tmp_path).poll({})[0]]
    assert found == list(range(len(found))) and len(found) > acknowledged >= 40
    with contextlib.closing(open_spool(tmp_path)) as again:  # its lock died with it
        again.append(requests(1))
        assert again.path == path


def test_a_caller_that_gives_up_stops_nobody_else(tmp_path):
    """A server that is told to stop cancels what still waits for the disk."""
    begin = threading.Event()
    with contextlib.closing(Spool(tmp_path / "worker-00.sqlite", on_commit=lambda *_: begin.wait(5))) as spool:
        first = spool.submit(requests(1, seed=1))
        given_up = spool.submit(requests(1, seed=2))
        assert given_up.cancel()
        begin.set()
        first.result(5)
        spool.append(requests(1, seed=3))
    found, _, _ = SpoolReader(tmp_path).poll({})
    assert sum(table.num_rows for table in found) == 3
