"""The dataset workspace: publish a version, list versions, check one out.

    <state>/datasets/            its own git + DVC repository
        <surface>.dvc            names the content of <surface>/ (md5 of the folder)
        <surface>/               spec.json, dt=YYYY-MM-DD/transitions.parquet
    tags data/<surface>/<dt>.r<k>  annotated; the message is the Revision as JSON

A version is published in this order: add, push, verify every object in the store, commit, tag. Whatever dies on the way
leaves no tag, and a version without a tag does not exist. DVC and git run as commands; a lock of our own lets a second
writer wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from mtf.errors import ConflictError, InputError, IntegrityError, MtfError, NotFoundError
from mtf.fileio import folder_atomic
from mtf.logs.days import day_bounds
from mtf.settings import Settings
from mtf.store import FolderStore, Store, open_store

LOCK_SECONDS = 900.0
REMOTE = "store"
PREFIX = "dvc"
MARK = ".revision.json"


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """A published version. md5: DVC's hash of the folder; rows: transitions in it; commit: of the workspace."""

    tag: str
    surface: str
    dt: str
    md5: str
    rows: int
    commit: str = ""


def version_dataset(settings: Settings, surface: str, dt: str, transitions_dir: Path) -> Revision:
    """Publish what `transitions_dir` holds (spec.json and every dt=*/transitions.parquet) as a version of day `dt`.

    Content that the newest version has already gives that version. Waits while another process writes. Raises InputError
    where there is nothing to version, MtfError where the store cannot be reached, IntegrityError where an object is not in
    the store with its size and hash after the push; then nothing is published.
    """
    day_bounds(dt)
    files = sorted(transitions_dir.glob("dt=*/transitions.parquet"))
    if not files or not (transitions_dir / "spec.json").exists():
        raise InputError(f"dataset: {transitions_dir} holds no built day with its spec.json; run `mtf transitions build` first")
    with _locked(settings):
        repo = _ensure_repository(settings)
        _place(repo / surface, transitions_dir, files)
        _dvc(settings, repo, "add", "--quiet", surface)
        md5 = _folder_md5((repo / f"{surface}.dvc").read_text())
        known = _log(repo, surface)
        if known and known[0].md5 == md5:
            return known[0]
        _dvc(settings, repo, "push", "--quiet", "--remote", REMOTE, surface)
        store = open_store(settings=settings)
        _put_missing(store, repo, md5)
        _verify(store, repo, md5)
        number = 1 + sum(revision.dt == dt for revision in known)
        found = Revision(tag=f"data/{surface}/{dt}.r{number}", surface=surface, dt=dt, md5=md5, rows=_rows(files))
        _git(repo, "add", f"{surface}.dvc", ".gitignore", ".dvc/config", ".dvc/.gitignore")
        _git(repo, "commit", "--quiet", "--allow-empty", "-m", f"{surface}: {dt}, {found.rows} transitions")
        _git(repo, "tag", "-a", found.tag, "-m", msgspec.json.encode(found).decode())
        return msgspec.structs.replace(found, commit=_git(repo, "rev-parse", "HEAD"))


def log(settings: Settings, surface: str) -> list[Revision]:
    """The published versions, newest first; none where nothing was published yet."""
    repo = settings.datasets_dir
    return _log(repo, surface) if (repo / ".git").is_dir() else []


def checkout(settings: Settings, surface: str, rev: str, out: Path) -> Path:
    """Write version `rev` (a tag, or its last part, e.g. 2026-03-02.r1) to the folder `out`, whole or not at all.

    Bytes come from the local cache, or from the store where the cache lacks them. Raises NotFoundError naming the versions
    that there are.
    """
    found = _find(settings, surface, rev)
    out = out.absolute()  # DVC runs in another folder
    mark = out / MARK
    if mark.exists() and msgspec.json.decode(mark.read_bytes(), type=Revision) == found:
        return out
    with _locked(settings):
        repo = settings.datasets_dir
        with folder_atomic(out, MARK) as scratch:
            target = scratch / "data"
            _dvc(settings, repo, "get", "--quiet", str(repo), surface, "--rev", found.tag, "-o", str(target), cwd=scratch)
            if not list(target.glob("dt=*/transitions.parquet")):
                raise IntegrityError(f"dataset {found.tag}: the checkout holds no transitions; its version is damaged")
            for entry in target.iterdir():
                entry.rename(scratch / entry.name)
            target.rmdir()
            (scratch / MARK).write_bytes(msgspec.json.encode(found))
    return out


def unpushed(settings: Settings) -> list[str]:
    """Tags of versions that a folder store lacks a file of. Those in a bucket were verified there before they got their tag."""
    repo = settings.datasets_dir
    if not (repo / ".git").is_dir() or not str(settings.store_url).startswith("file:"):
        return []
    store, lost = open_store(settings=settings), []
    for surface in settings.surfaces:
        for revision in _log(repo, surface):
            try:
                listing = json.loads(store.get(f"{PREFIX}/{_cache_path(revision.md5)}"))
            except NotFoundError:
                lost.append(revision.tag)
                continue
            if not all(store.exists(f"{PREFIX}/{_cache_path(entry['md5'])}") for entry in listing):
                lost.append(revision.tag)
    return lost


def _find(settings: Settings, surface: str, rev: str) -> Revision:
    known = log(settings, surface)
    for revision in known:
        if rev in (revision.tag, revision.tag.rsplit("/", 1)[-1]):
            return revision
    names = ", ".join(r.tag for r in known[:10]) or "none yet"
    raise NotFoundError(f"dataset version {rev!r} does not exist; there are: {names}")


def _log(repo: Path, surface: str) -> list[Revision]:
    form = "%(*objectname) %(contents:subject)"
    found = []
    for line in _git(repo, "for-each-ref", f"--format={form}", f"refs/tags/data/{surface}").splitlines():
        commit, _, message = line.partition(" ")
        found.append(msgspec.structs.replace(msgspec.json.decode(message, type=Revision), commit=commit))
    order = {commit: i for i, commit in enumerate(_git(repo, "rev-list", "HEAD").splitlines())} if found else {}
    return sorted(found, key=lambda revision: order.get(revision.commit, -1))


def _ensure_repository(settings: Settings) -> Path:
    repo = settings.datasets_dir
    if not (repo / ".git").is_dir():
        repo.mkdir(parents=True, exist_ok=True)
        _git(repo, "init", "--quiet", "--initial-branch=main")
        _git(repo, "config", "user.name", "mtf")
        _git(repo, "config", "user.email", "mtf@localhost")
    if not (repo / ".dvc" / "config").exists():
        _dvc(settings, repo, "init", "--quiet", "--force")
    _git(repo, "config", "gc.auto", "0")
    (repo / ".dvc" / "config").write_text(_dvc_config(settings), encoding="utf-8")
    return repo


def _dvc_config(settings: Settings) -> str:
    """No secret in here: credentials reach DVC through its environment."""
    store = open_store(settings=settings)
    # DVC takes a folder's path as it is written, not as a URL that stands for it
    url = str(store.root / PREFIX) if isinstance(store, FolderStore) else store.url(PREFIX)
    lines = ["[core]", "    analytics = false", "    autostage = false", "    check_update = false", f"    remote = {REMOTE}"]
    lines += [f"['remote \"{REMOTE}\"']", f'    url = "{url}"']
    if url.startswith("s3:"):
        lines.append(f"    region = {settings.s3_region}")
        if settings.s3_endpoint:
            lines.append(f"    endpointurl = {settings.s3_endpoint}")
    return "\n".join(lines) + "\n"


def _place(folder: Path, transitions_dir: Path, files: list[Path]) -> None:
    """The dataset's folder: hard links where the disk allows (DVC copies into its cache)."""
    with folder_atomic(folder) as scratch:
        shutil.copy(transitions_dir / "spec.json", scratch / "spec.json")
        for file in files:
            target = scratch / file.parent.name / file.name
            target.parent.mkdir()
            try:
                os.link(file, target)
            except OSError:
                shutil.copy(file, target)


def _put_missing(store: Store, repo: Path, md5: str) -> None:
    """Upload what a push left out: DVC trusts its own index of the remote, which knows nothing of an object that was lost."""
    for name in _objects(repo, md5):
        if not store.exists(f"{PREFIX}/{_cache_path(name)}"):
            store.put_file(f"{PREFIX}/{_cache_path(name)}", repo / ".dvc" / "cache" / _cache_path(name))


def _verify(store: Store, repo: Path, md5: str) -> None:
    """Every object of the folder `md5` is in the store, with its bytes: `dvc push` may say so when it is not."""

    def check(name: str) -> None:
        key = f"{PREFIX}/{_cache_path(name)}"
        size = (repo / ".dvc" / "cache" / _cache_path(name)).stat().st_size
        try:
            found = store.size(key)
        except NotFoundError:
            raise IntegrityError(
                f"{store.url(key)}: missing after the upload; nothing was published, look at the store"
            ) from None
        if found != size:
            raise IntegrityError(f"{store.url(key)}: {found} bytes, pushed {size}; delete that object and run it again")
        if hashlib.md5(store.get(key), usedforsecurity=False).hexdigest() != name.removesuffix(".dir"):
            raise IntegrityError(f"{store.url(key)}: its bytes do not have the hash {name}; delete that object and run it again")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, _objects(repo, md5)))


def _objects(repo: Path, md5: str) -> list[str]:
    """The folder's listing and every file that it names, by hash."""
    listing = json.loads((repo / ".dvc" / "cache" / _cache_path(md5)).read_bytes())
    return sorted({md5, *(entry["md5"] for entry in listing)})


def _cache_path(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def _folder_md5(dvc_file: str) -> str:
    for line in dvc_file.splitlines():
        name, _, value = line.strip().lstrip("- ").partition(": ")
        if name == "md5":
            return value
    raise IntegrityError(f"the .dvc file names no md5: {dvc_file!r}")


def _rows(files: list[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in files)


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    settings.datasets_dir.parent.mkdir(parents=True, exist_ok=True)
    path = settings.datasets_dir.with_suffix(".lock")
    try:
        with FileLock(path, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise ConflictError(f"{path}: another process holds the dataset workspace for over {LOCK_SECONDS:.0f} s") from None


def _dvc(settings: Settings, repo: Path, *arguments: str, cwd: Path | None = None) -> None:
    """One DVC command, with the store's credentials in its environment and nowhere on disk."""
    secret, access = settings.s3_secret_key, settings.s3_access_key
    keys = {
        "AWS_ACCESS_KEY_ID": access.get_secret_value() if access else None,
        "AWS_SECRET_ACCESS_KEY": secret.get_secret_value() if secret else None,
    }
    environment = os.environ | {name: value for name, value in keys.items() if value} | {"DVC_NO_ANALYTICS": "1", "NO_PROXY": "*"}
    environment["DVC_SITE_CACHE_DIR"] = str(repo / ".dvc" / "tmp" / "site")
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=cwd or repo, env=environment, stdout=out, stderr=out, check=False
        )
        if done.returncode:
            out.seek(0)
            text = " ".join(out.read().decode(errors="replace").split())[-1500:]
            raise MtfError(f"dvc {' '.join(arguments[:1])} failed: {text}; is the store up ({settings.store_url})?")


def _git(repo: Path, *arguments: str) -> str:
    # the workspace must not take the checkout's hooks, signing or templates
    command = ["git", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false", "-c", "core.hooksPath=/dev/null", *arguments]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MtfError(f"git {' '.join(arguments[:2])} failed in {repo}: {done.stderr.strip()[-800:]}")
    return done.stdout.strip()
