"""`mtf transitions build`: once, by day, and again where something changed. Bad days are in `test_quality.py`."""

import shutil

import pytest

from mtf.transitions.pool import read_pool
from tests.commands.conftest import said


def test_a_day_that_is_built_is_not_built_again(mtf, tour):
    file = tour / "transitions" / "dt=2026-03-02" / "transitions.parquet"
    before = file.stat().st_mtime_ns
    done = mtf("transitions", "build", "--logs", tour / "logs", "--out", tour / "transitions")
    said(done, 0, "2026-03-02")
    assert file.stat().st_mtime_ns == before
    pool = read_pool(tour / "transitions")
    assert f"pool        {pool.rows} transitions of 1 days, md5 {pool.md5}" in done.out
    assert "in 250 sessions; 0 requests carried over" in done.out


def test_only_the_day_that_is_asked_for(mtf, tour, world_dir, tmp_path):
    shutil.copytree(tour / "logs", tmp_path / "logs")
    day = ("--users", 10, "--dt", "2026-03-03", "--seed", 2)
    mtf("simulate", "--world", world_dir, *day, "--out", tmp_path / "logs")
    done = mtf("transitions", "build", "--logs", tmp_path / "logs", "--out", tmp_path / "t", "--dt", "2026-03-03")
    said(done, 0, "2026-03-03")
    assert "2026-03-02" not in done.out
    assert "in 10 sessions" in done.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"--spec": "/nowhere/spec.json"}, "/nowhere/spec.json does not exist"),
        ({"--expectations": "/nowhere"}, "/nowhere/requests.json does not exist"),
    ],
)
def test_what_is_not_there_is_named(mtf, tour, tmp_path, options, says):
    extra = [part for pair in options.items() for part in pair]
    said(mtf("transitions", "build", "--logs", tour / "logs", "--out", tmp_path / "t", *extra), 1, says)


def test_another_spec_is_refused(mtf, tour, tmp_path):
    from tests.conftest import small_spec

    small_spec().write(tmp_path / "spec.json")
    done = mtf("transitions", "build", "--logs", tour / "logs", "--out", tmp_path / "t", "--spec", tmp_path / "spec.json")
    said(done, 1, "give the logs' spec")


def test_a_file_in_the_place_of_the_folder_is_one_line(mtf, tour, tmp_path):
    (tmp_path / "file").write_text("")
    said(mtf("transitions", "build", "--logs", tour / "logs", "--out", tmp_path / "file" / "t"), 1, str(tmp_path / "file"))
