"""Whole or not at all."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mtf import fileio
from mtf.errors import InputError
from mtf.fileio import CHUNK, folder_atomic, md5_file, sha256_file, write_atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_with_its_mode_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o644
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_write_that_dies_leaves_the_old_bytes(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fileio.os, step, die)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_reader_that_holds_the_old_file_keeps_it(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with path.open("rb") as held:
        write_atomic(path, b"new")
        assert held.read() == b"old"


def test_a_folder_is_replaced_whole_not_mixed(tmp_path):
    out = tmp_path / "a" / "out"
    with folder_atomic(out) as scratch:
        (scratch / "first").write_text("1")
        assert not out.exists()
    with folder_atomic(out) as scratch:
        (scratch / "second").write_text("2")
        assert names(out) == ["first"]
    assert names(out) == ["second"]
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_of_two_that_make_a_folder_at_once_the_last_to_end_wins(tmp_path, monkeypatch):
    out, real = tmp_path / "out", os.replace

    def make(name):
        with folder_atomic(out, "mark") as scratch:
            for file in ("mark", name):
                (scratch / file).write_text("ours")

    def replace(source, target):
        monkeypatch.setattr(fileio.os, "replace", real)
        make("first")  # nothing lies there yet: the other process comes in between
        real(source, target)

    monkeypatch.setattr(fileio.os, "replace", replace)
    make("last")
    assert names(out) == ["last", "mark"]
    assert names(tmp_path) == ["out"]


def test_many_that_replace_a_folder_at_once_all_end_well(tmp_path):
    out = tmp_path / "out"

    def make(name):
        for _ in range(100):
            with folder_atomic(out) as scratch:
                for part in "ab":
                    (scratch / f"{name}{part}").write_text("")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    whole = names(out)
    assert [name[1:] for name in whole] == ["a", "b"] and whole[0][0] == whole[1][0]
    assert names(tmp_path) == ["out"]


def test_what_lies_there_by_then_and_is_not_ours_is_kept(tmp_path):
    out = tmp_path / "out"

    def make():
        with folder_atomic(out, "mark"):
            out.mkdir()
            (out / "file").write_text("theirs")

    with pytest.raises(InputError, match="out is there, holds no mark and would be deleted"):
        make()
    assert (names(out), names(tmp_path)) == (["file"], ["out"])


def test_what_is_not_of_the_kind_that_the_mark_tells_is_never_replaced(tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        with folder_atomic(out, "mark") as scratch:
            (scratch / "mark").write_text("ours")
    (tmp_path / "empty").mkdir()
    with folder_atomic(tmp_path / "empty", "mark") as scratch:
        (scratch / "mark").write_text("ours")
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("theirs")
    for name in ("file", "theirs"):
        with pytest.raises(InputError, match=f"{name} is there, holds no mark and would be deleted"):
            folder_atomic(tmp_path / name, "mark").__enter__()
    assert names(tmp_path) == ["empty", "file", "out", "theirs"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    out = tmp_path / "out"
    with folder_atomic(out) as scratch:
        (scratch / "first").write_text("1")

    def fail():
        with folder_atomic(out) as scratch:
            (scratch / "second").write_text("2")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["first"]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_hashes_are_those_of_the_whole_file(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert md5_file(tmp_path / "file") == hashlib.md5(data).hexdigest()


def test_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed = []

    def fsync(handle):
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(fileio.os, "fsync", fsync)
    with folder_atomic(tmp_path / "made") as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "file").write_bytes(b"1")
        (scratch / "link").symlink_to("nowhere")
        assert not flushed
    assert sorted(flushed) == [str(scratch), str(scratch / "sub"), str(scratch / "sub" / "file")]
