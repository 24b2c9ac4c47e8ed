"""Objects by URL: a folder (`file:///...`) or a bucket (`s3://bucket/prefix`). The only module that knows boto3.

A put is atomic (a reader sees the old bytes, the new ones or none). `put_new` is create-only: of two writers one wins and
the other gets a ConflictError, which is all the compare-and-swap that documents need. `get_verified` checks content
against the hash by which it is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mtf.errors import ConflictError, InputError, IntegrityError, MtfError, NotFoundError
from mtf.fileio import write_atomic
from mtf.settings import Settings


class Store(ABC):
    """Keys are relative paths with `/`; bytes in, bytes out."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Create or replace."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> None:
        """Create; ConflictError where the key exists (with other bytes, where a store may have been asked twice)."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The object's bytes; NotFoundError where there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Is there an object?"""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes; NotFoundError where there is none."""

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove; a missing key is no error."""

    @abstractmethod
    def url(self, key: str = "") -> str:
        """The object's URL."""

    def get_verified(self, key: str, sha256: str) -> bytes:
        """`get`, and IntegrityError where the bytes do not have this SHA-256."""
        data = self.get(key)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise IntegrityError(f"{self.url(key)}: SHA-256 is {found}, expected {sha256}; upload it again")
        return data

    def put_file(self, key: str, path: Path) -> None:
        """`put` the bytes of a file."""
        self.put(key, path.read_bytes())


def open_store(url: str | None = None, settings: Settings | None = None) -> Store:
    """The store at `url` (default: the settings' store_url). Raises InputError on another scheme or a relative folder."""
    settings = settings or Settings()
    url = url or settings.store_url
    parts = urlparse(url)
    if parts.scheme == "file" and not parts.netloc and str(parts.path).startswith("/"):  # file://a/b would silently be /b
        return FolderStore(Path(unquote(str(parts.path))))
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(str(parts.netloc), str(parts.path).strip("/"), settings)
    raise InputError(f"store_url = {url!r}: use file:///folder, the path from the root, or s3://bucket/prefix")


class FolderStore(Store):
    """A folder; atomic by write-aside and rename, create-only by hard link."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise InputError(f"store key {key!r} leaves the store; use a relative path without '..'")
        return path

    def put(self, key: str, data: bytes) -> None:
        write_atomic(self._path(key), data)

    def put_new(self, key: str, data: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".new.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(scratch, 0o644)
            os.link(scratch, path)
        except FileExistsError:
            raise ConflictError(f"{self.url(key)} exists already; read it again before writing the next one") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise NotFoundError(f"{self.url(key)} does not exist") from None

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            raise NotFoundError(f"{self.url(key)} does not exist") from None

    def list(self, prefix: str) -> list[str]:
        folder = self.root / (prefix if prefix.endswith("/") else os.path.dirname(prefix))
        if not folder.is_dir():
            return []
        files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        keys = (p.relative_to(self.root).as_posix() for p in files)
        return sorted(k for k in keys if k.startswith(prefix))

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()

    def put_file(self, key: str, path: Path) -> None:
        write_atomic(self._path(key), path.read_bytes())

    def url(self, key: str = "") -> str:
        return (self.root / key).as_uri()


class S3Store(Store):
    """A bucket of any S3 server that honours If-None-Match."""

    def __init__(self, bucket: str, prefix: str, settings: Settings) -> None:
        import boto3
        from botocore.config import Config

        secret = settings.s3_secret_key
        access = settings.s3_access_key
        self.bucket, self.prefix = bucket, prefix
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=access.get_secret_value() if access else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 5, "mode": "standard"},
                connect_timeout=5,
                read_timeout=60,
                proxies={},
            ),
        )

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextlib.contextmanager
    def _errors(self, key: str) -> Any:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("NoSuchKey", "404", "NotFound"):
                raise NotFoundError(f"{self.url(key)} does not exist") from None
            if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise ConflictError(f"{self.url(key)} exists already; read it again before writing the next one") from None
            raise MtfError(f"{self.url(key)}: the store says {code}: {error.response['Error'].get('Message', '')}") from error
        except S3UploadFailedError as error:  # an uploaded file's ClientError, which boto3 wraps
            raise MtfError(
                f"{self.url(key)}: the store says: {error}; is the bucket there, and are MTF_S3_ACCESS_KEY and "
                "MTF_S3_SECRET_KEY its own?"
            ) from error
        except BotoCoreError as error:
            raise MtfError(f"{self.url(key)}: cannot reach the store: {error}; is it up, and MTF_S3_ENDPOINT right?") from error

    def put(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def put_new(self, key: str, data: bytes) -> None:
        try:
            with self._errors(key):
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
        except ConflictError:
            # the client sends again what was stored and whose answer was lost: then it is our own bytes that are there
            if self.get(key) != data:
                raise

    def get(self, key: str) -> bytes:
        with self._errors(key):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"].read()
        return body

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        with self._errors(key):
            return int(self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"])

    def list(self, prefix: str) -> list[str]:
        skip = len(self.prefix) + 1 if self.prefix else 0
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            return sorted(o["Key"][skip:] for page in pages for o in page.get("Contents", []))

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def put_file(self, key: str, path: Path) -> None:
        with self._errors(key):
            self._client.upload_file(str(path), self.bucket, self._key(key))

    def url(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{self._key(key)}"
