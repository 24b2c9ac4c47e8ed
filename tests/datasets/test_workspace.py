"""Versions: what is published can be had again; what dies half way is not published."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from mtf import datasets
from mtf.errors import InputError, IntegrityError, MtfError, NotFoundError
from mtf.settings import Settings
from mtf.store import open_store
from tests.conftest import small_spec


@pytest.fixture
def built(tmp_path):
    folder = tmp_path / "transitions"
    small_spec().write(folder / "spec.json")
    add_day(folder, "2026-01-01", 5)
    return folder


def add_day(folder, dt, rows):
    (folder / f"dt={dt}").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": list(range(rows))}), folder / f"dt={dt}" / "transitions.parquet")


def content(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def test_a_version_comes_back_byte_for_byte_also_without_cache_and_sources(settings, built, tmp_path):
    first = datasets.version_dataset(settings, "feed", "2026-01-01", built)
    assert (first.tag, first.rows) == ("data/feed/2026-01-01.r1", 5)
    assert datasets.version_dataset(settings, "feed", "2026-01-01", built) == first
    before = content(built)
    add_day(built, "2026-01-02", 7)
    second = datasets.version_dataset(settings, "feed", "2026-01-02", built)
    add_day(built, "2026-01-02", 8)
    third = datasets.version_dataset(settings, "feed", "2026-01-02", built)
    assert [r.tag for r in datasets.log(settings, "feed")] == [third.tag, second.tag, first.tag]
    assert (third.tag, third.rows) == ("data/feed/2026-01-02.r2", 13)
    shutil.rmtree(built)
    shutil.rmtree(settings.datasets_dir / ".dvc" / "cache")
    assert content(datasets.checkout(settings, "feed", "2026-01-01.r1", tmp_path / "out")) == before
    assert datasets.unpushed(settings) == []
    with pytest.raises(NotFoundError, match=r"2026-01-02\.r2"):
        datasets.checkout(settings, "feed", "2026-01-09.r1", tmp_path / "none")


@pytest.mark.parametrize("name", ["a state", "état", "a, b #1"])
def test_what_a_push_brings_lies_in_the_store_whatever_the_folder_is_called(built, monkeypatch, tmp_path, name):
    settings = Settings(state_dir=tmp_path / name)
    monkeypatch.setattr("mtf.datasets.workspace._put_missing", lambda *_: None)  # DVC alone, or what it left out is put there
    revision = datasets.version_dataset(settings, "feed", "2026-01-01", built)
    shutil.rmtree(settings.datasets_dir / ".dvc" / "cache")
    assert content(datasets.checkout(settings, "feed", revision.tag, tmp_path / "out")) == content(built)
    assert {path.name for path in tmp_path.iterdir()} == {name, "out", "transitions"}


def after_push(monkeypatch, settings, what):
    """Let `what(store, key)` happen to an object right after the real `dvc push`."""
    from mtf.datasets import workspace

    real = workspace._dvc

    def wrapped(settings_, repo, *arguments, cwd=None):
        real(settings_, repo, *arguments, cwd=cwd)
        if arguments[0] == "push":
            store = open_store(settings=settings)
            what(store, next(key for key in store.list("dvc/files/") if not key.endswith(".dir")))

    monkeypatch.setattr(workspace, "_dvc", wrapped)


def test_an_object_that_the_push_left_out_is_put_there(settings, built, monkeypatch, tmp_path):
    after_push(monkeypatch, settings, lambda store, key: store.delete(key))
    revision = datasets.version_dataset(settings, "feed", "2026-01-01", built)
    shutil.rmtree(settings.datasets_dir / ".dvc" / "cache")
    assert content(datasets.checkout(settings, "feed", revision.tag, tmp_path / "out")) == content(built)


def test_an_object_with_other_bytes_publishes_nothing(settings, built, monkeypatch):
    after_push(monkeypatch, settings, lambda store, key: store.put(key, b"x" * store.size(key)))
    with pytest.raises(IntegrityError, match="do not have the hash"):
        datasets.version_dataset(settings, "feed", "2026-01-01", built)
    assert datasets.log(settings, "feed") == []


def test_a_store_that_is_away_is_named_and_publishes_nothing(settings, built):
    away = settings.model_copy(update={"store_url": "s3://mtf/store", "s3_endpoint": "http://127.0.0.1:9"})
    with pytest.raises(MtfError, match="is the store up"):
        datasets.version_dataset(away, "feed", "2026-01-01", built)
    assert datasets.log(settings, "feed") == []


def test_a_stores_keys_are_nowhere_in_the_workspace(settings, built):
    keys = {"s3_access_key": SecretStr("the-access-key"), "s3_secret_key": SecretStr("the-secret-key")}
    bucket = settings.model_copy(update={"store_url": "s3://mtf/store", "s3_endpoint": "http://127.0.0.1:9"} | keys)
    with pytest.raises(MtfError, match="is the store up") as said:
        datasets.version_dataset(bucket, "feed", "2026-01-01", built)
    written = {path: path.read_bytes() for path in settings.datasets_dir.rglob("*") if path.is_file()}
    assert b"endpointurl = http://127.0.0.1:9" in written[settings.datasets_dir / ".dvc" / "config"]
    for key in keys.values():
        assert key.get_secret_value() not in str(said.value)
        assert [path for path, data in written.items() if key.get_secret_value().encode() in data] == []


def test_two_writers_wait_for_each_other(settings, built, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(built, other)
    add_day(other, "2026-01-02", 3)
    found, threads = [], []
    for folder in (built, other):
        thread = threading.Thread(
            target=lambda f=folder: found.append(datasets.version_dataset(settings, "feed", "2026-01-02", f))
        )
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    assert len({r.tag for r in found}) == 2
    assert {r.tag for r in datasets.log(settings, "feed")} == {r.tag for r in found}


def test_nothing_built_is_said(settings, tmp_path):
    with pytest.raises(InputError, match="no built day"):
        datasets.version_dataset(settings, "feed", "2026-01-01", tmp_path)
    assert datasets.log(settings, "feed") == []


def test_the_workspace_is_a_clean_repository_of_its_own(settings, built):
    datasets.version_dataset(settings, "feed", "2026-01-01", built)
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=settings.datasets_dir, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""
