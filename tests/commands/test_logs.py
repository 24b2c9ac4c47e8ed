"""`mtf seal`, `mtf logs list`: from the spool to days."""

import pytest

from mtf.logs.days import list_days, read_manifest, write_day
from mtf.logs.spool import open_spool
from tests.commands.conftest import said
from tests.logs.rows import DT, END, SPEC, feedback, requests

HOUR = 3_600_000_000


@pytest.fixture
def spool(state):
    """The spool of the state folder with a day in it, the clock an hour past its end; the surface's spec beside it."""
    asked = requests(30)
    SPEC.write(state / "surfaces" / "feed" / "spec.json")
    opened = open_spool(state / "spool" / "feed")
    opened.append(asked, feedback(asked))
    opened.mark(END + HOUR)
    opened.close()
    return state


def test_a_day_of_the_spool_is_sealed_once(mtf, spool):
    done = mtf("seal", "--dt", DT)
    said(done, 0, f"{DT} r1: 30 requests, 30 feedback rows in {spool / 'logs' / 'feed'}")
    assert mtf("seal", "--dt", DT).out == done.out
    assert read_manifest(spool / "logs" / "feed", DT).revision == 1
    said(mtf("logs", "list"), 0, f"{DT}  r1          30 requests           30 feedback")


def test_late_rows_make_a_new_revision_and_are_named(mtf, spool):
    mtf("seal", "--dt", DT)
    opened = open_spool(spool / "spool" / "feed")
    opened.append(feedback=feedback(requests(30).slice(0, 2), delay_us=5))
    opened.close()
    said(mtf("seal", "--dt", DT), 0, "r2: 30 requests, 32 feedback rows, 2 of them late")


def test_folders_and_grace_can_be_given(mtf, spool, tmp_path):
    SPEC.write(tmp_path / "spec.json")
    places = ("--spool", spool / "spool" / "feed", "--out", tmp_path / "out", "--spec", tmp_path / "spec.json")
    said(mtf("seal", "--dt", DT, *places, "--grace", 7200), 1, "too early to seal")
    assert list_days(tmp_path / "out") == []
    said(mtf("seal", "--dt", DT, *places, "--grace", 3600), 0, "r1: 30 requests")
    assert list_days(tmp_path / "out") == [DT]


@pytest.mark.parametrize(
    ("dt", "says"),
    [
        ("yesterday", "dt = 'yesterday': not a day; write it as YYYY-MM-DD"),
        ("2026-1-1", "not a day"),
        ("2026-01-02", "too early to seal"),
        ("2025-12-31", "no row of this day"),
    ],
)
def test_a_day_that_cannot_be_sealed_is_named(mtf, spool, dt, says, monkeypatch):
    monkeypatch.setenv("MTF_CLOCK", "simulated")
    said(mtf("seal", "--dt", dt), 1, says)
    assert list_days(spool / "logs" / "feed") == []


def test_on_a_real_clock_a_day_that_is_over_is_sealed_although_the_spool_is_quiet(mtf, spool):
    said(mtf("seal", "--dt", DT, "--grace", 7200), 0, "r1: 30 requests")


def test_without_a_spec_it_says_where_one_is_looked_for(mtf):
    said(mtf("seal", "--dt", DT), 1, "spec.json does not exist; give --spec FILE")


def test_a_damaged_manifest_is_named(mtf, tmp_path):
    asked = requests(5)
    write_day(tmp_path, DT, asked, feedback(asked), SPEC)
    (tmp_path / f"dt={DT}" / "r1" / "manifest.json").write_text("{")
    said(mtf("logs", "list", "--logs", tmp_path), 1, "manifest.json is damaged")
    said(mtf("logs", "list", "--logs", tmp_path / "none"), 0, "no sealed day in")
