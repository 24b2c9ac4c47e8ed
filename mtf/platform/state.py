"""What a platform keeps about itself in the state folder: its identity, its secrets, and where its servers are.

<state>/run/           supervisord.conf, supervisord.pid
<state>/secrets.json   generated once, mode 0600
<state>/platform.json  ports and URLs, mode 0600 (it names the store's keys); mtf.settings reads it
"""

from __future__ import annotations

import json
import secrets
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

from mtf.errors import InputError
from mtf.fileio import write_atomic
from mtf.settings import Settings

T = TypeVar("T")
MARKER = "MTF_STATE_ID"


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Random, generated once a state folder; nothing else protects the servers from other users of the machine."""

    state_id: str
    airflow_password: str
    airflow_jwt: str
    airflow_fernet: str
    s3_access_key: str
    s3_secret_key: str


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """platform.json: the fields that mtf.settings.Settings reads by name, and the ports."""

    ports: dict[str, int]
    surface: str
    clock: str = "real"
    store_url: str
    artifacts_url: str
    mlflow_url: str
    airflow_url: str
    serve_url: str
    airflow_password_file: str
    s3_endpoint: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: str | None = None


def read_secrets(settings: Settings) -> Secrets | None:
    """The state folder's secrets, or None where no platform was ever started in it."""
    return _read(settings.state_dir / "secrets.json", Secrets)


def ensure_secrets(settings: Settings) -> Secrets:
    """`read_secrets`, generated on first use; also writes Airflow's password file."""
    found = read_secrets(settings)
    if found is None:
        found = Secrets(
            state_id=secrets.token_hex(8),
            airflow_password=secrets.token_urlsafe(12),
            airflow_jwt=secrets.token_urlsafe(72),
            airflow_fernet=_fernet_key(),
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_urlsafe(30),
        )
        write_atomic(settings.state_dir / "secrets.json", msgspec.json.encode(found), mode=0o600)
    passwords = json.dumps({"admin": found.airflow_password}).encode()
    write_atomic(password_file(settings), passwords, mode=0o600)
    return found


def password_file(settings: Settings) -> Path:
    """{"admin": password}, in the form that Airflow's simple auth manager reads."""
    return settings.state_dir / "airflow" / "password"


def read_platform(settings: Settings) -> Platform | None:
    """platform.json, or None where there is none."""
    return _read(settings.state_dir / "platform.json", Platform)


def write_platform(settings: Settings, platform: Platform) -> None:
    """Write platform.json for this user's eyes only."""
    data = msgspec.json.format(msgspec.json.encode(platform), indent=2) + b"\n"
    write_atomic(settings.state_dir / "platform.json", data, mode=0o600)


def socket_file(state_id: str) -> Path:
    """supervisord's socket. Outside the state folder: a socket's path may not exceed 107 bytes."""
    return Path(tempfile.gettempdir()) / f"mtf-{state_id}.sock"


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is damaged ({error}); stop what runs, delete it and run `mtf up`") from None


def _fernet_key() -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(secrets.token_bytes(32)).decode()
