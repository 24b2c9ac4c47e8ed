"""One contract for every backend; the S3 one runs against a real server (marker integration)."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtf.errors import ConflictError, InputError, IntegrityError, MtfError, NotFoundError
from mtf.platform.ports import DEFAULTS, choose
from mtf.settings import Settings
from mtf.store import FolderStore, open_store


@pytest.fixture(scope="module")
def s3_settings(tmp_path_factory):
    binary = shutil.which("weed", path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip("no SeaweedFS binary for this machine")
    folder = tmp_path_factory.mktemp("weed")
    wanted = {name: 20_000 + port for name, port in DEFAULTS.items() if name not in ("airflow", "mlflow", "serve")}
    ports = choose(wanted)
    port = ports.pop("s3")
    keys = {"AWS_ACCESS_KEY_ID": "contract", "AWS_SECRET_ACCESS_KEY": "contract-secret"}
    flags = ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-bucket=box", f"-s3.port={port}"]
    names = {"s3_grpc": "s3.port.grpc", "filer": "filer.port", "filer_grpc": "filer.port.grpc", "master": "master.port"}
    names |= {"master_grpc": "master.port.grpc", "volume": "volume.port", "volume_grpc": "volume.port.grpc"}
    names |= {"admin": "admin.port", "admin_grpc": "admin.port.grpc"}
    flags += [f"-{names[name]}={number}" for name, number in ports.items()]
    command = [binary, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *flags]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | keys)
    try:
        given = {
            "store_url": "s3://box/prefix",
            "s3_endpoint": f"http://127.0.0.1:{port}",
            "s3_access_key": "contract",
            "s3_secret_key": "contract-secret",
            "state_dir": folder / "state",
        }
        for _ in range(150):
            try:  # the server answers before its bucket is there
                open_store(settings=Settings(**given)).list("")
                break
            except MtfError:
                time.sleep(0.2)
        yield given
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def store(request, tmp_path):
    if request.param == "folder":
        return FolderStore(tmp_path)
    settings = Settings(**request.getfixturevalue("s3_settings"))
    found = open_store(settings=settings)
    for key in found.list(""):
        found.delete(key)
    return found


def test_put_replaces_and_get_returns_it(store):
    store.put("a/b", b"1")
    store.put("a/b", b"22")
    assert store.get("a/b") == b"22"
    assert store.exists("a/b")
    assert store.size("a/b") == 2


def test_put_new_lets_one_writer_win(store):
    store.put_new("once", b"1")
    with pytest.raises(ConflictError, match="once"):
        store.put_new("once", b"2")
    assert store.get("once") == b"1"


@pytest.mark.integration
def test_an_answer_that_was_lost_is_no_conflict(s3_settings, monkeypatch):
    """The client sends a put again whose answer it did not get; the second one finds the first one's bytes."""
    store = open_store(settings=Settings(**s3_settings))
    put = store._client.put_object

    def twice(**arguments):
        put(**arguments)
        return put(**arguments)

    monkeypatch.setattr(store._client, "put_object", twice)
    store.put_new("asked twice", b"1")
    assert store.get("asked twice") == b"1"
    with pytest.raises(ConflictError, match="asked twice"):
        store.put_new("asked twice", b"2")


def test_what_is_missing_says_so(store):
    with pytest.raises(NotFoundError, match="nope"):
        store.get("nope")
    assert not store.exists("nope")
    store.delete("nope")


def test_list_is_sorted_and_by_prefix(store, tmp_path):
    for key in ("x/2", "x/1", "y/1"):
        store.put(key, b"")
    (tmp_path / "file").write_bytes(b"data")
    store.put_file("x/3", tmp_path / "file")
    assert store.list("x/") == ["x/1", "x/2", "x/3"]
    assert store.get("x/3") == b"data"
    store.delete("x/1")
    assert store.list("x/") == ["x/2", "x/3"]


def test_content_is_checked_against_its_hash(store):
    store.put("h", b"data")
    with pytest.raises(IntegrityError, match="expected"):
        store.get_verified("h", "0" * 64)
    assert store.get_verified("h", "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7") == b"data"


@pytest.mark.integration
def test_a_wrong_secret_is_refused(s3_settings, tmp_path):
    store = open_store(settings=Settings(**(s3_settings | {"s3_secret_key": "wrong"})))
    (tmp_path / "file").write_bytes(b"data")
    for put in (lambda: store.put("k", b""), lambda: store.put_file("k", tmp_path / "file")):
        with pytest.raises(MtfError, match=r"SignatureDoesNotMatch|AccessDenied|Forbidden|403"):
            put()


def test_keys_stay_inside_and_other_schemes_are_refused(tmp_path, settings):
    with pytest.raises(InputError, match="leaves the store"):
        FolderStore(tmp_path / "s").put("../out", b"")
    with pytest.raises(InputError, match="ftp"):
        open_store("ftp://x", settings)


@pytest.mark.parametrize("url", ["file://var/store", "file:var/store", "file://"])
def test_a_folder_is_named_from_the_root(url, settings):
    with pytest.raises(InputError, match=f"store_url = '{url}': use file:///folder, the path from the root"):
        open_store(url, settings)
