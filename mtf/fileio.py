"""Files that appear whole or not at all: written aside, flushed, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mtf.errors import InputError

CHUNK = 1 << 20


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or the new ones, also after a crash (secrets: mode 0o600)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def require_writable(path: Path) -> None:
    """Raises InputError where no file or folder can be made at `path`; makes nothing."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{path}: {folder} is a file, not a folder; give another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {folder} cannot be written to; give another place")


def replaceable(path: Path, mark: str) -> None:
    """Raises InputError where `path` holds something else than an earlier folder of the kind that the file `mark` tells, or where
    none can be made."""
    require_writable(path)
    try:
        looked_at = path.stat().st_ino
        strange = not (path / mark).is_file() and (not path.is_dir() or any(path.iterdir()))
        # while we looked another process may have replaced it: then it is of this kind
        strange = strange and path.stat().st_ino == looked_at
    except (FileNotFoundError, NotADirectoryError):  # there is none, or it was just moved aside
        return
    if strange:
        raise InputError(f"{path} is there, holds no {mark} and would be deleted; give a new or empty folder")


@contextlib.contextmanager
def folder_atomic(path: Path, mark: str | None = None) -> Iterator[Path]:
    """Yield a scratch folder beside `path`; rename it to `path` when the block ends well.

    An existing `path` is replaced (it is moved aside first, so for an instant there is none, but never a mixture). mark: a file
    that such a folder holds; what lies at `path` without it is not ours to delete (see `replaceable`). None: nobody else writes
    there. Of processes that make the same folder at once the one that ends last wins, as if it had begun after the others; each
    ends well, and what is there is always the whole of one.
    """
    if mark is not None:
        replaceable(path, mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield scratch
        os.chmod(scratch, 0o755)
        _flush(scratch)
        aside = []
        while not _renamed(scratch, path):  # also where another process made one just now
            if mark is not None:
                replaceable(path, mark)
            aside.append(Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old.")))
            with contextlib.suppress(FileNotFoundError):  # another process has moved it aside
                os.replace(path, aside[-1] / "was")
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    for old in aside:
        shutil.rmtree(old)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return _digest(path, hashlib.sha256())


def md5_file(path: Path) -> str:
    """Hex MD5 of a file's bytes: the name that DVC gives to content."""
    return _digest(path, hashlib.md5(usedforsecurity=False))


def _flush(folder: Path) -> None:
    """Have the disk hold what is in `folder`: a rename may else outlive, after a power cut, what it gave a name to."""
    for path in (*(inside for inside in folder.rglob("*") if not inside.is_symlink()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _renamed(folder: Path, path: Path) -> bool:
    """Rename `folder` to `path`; False where something is there."""
    try:
        os.replace(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # a folder that holds something, or a file
            return False
        raise
    return True


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
