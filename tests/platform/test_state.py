"""The state folder: secrets that only this user reads, and what Settings sees of a running platform."""

from __future__ import annotations

import configparser
import json
import shlex
import stat
import sys
from pathlib import Path

import pytest

from mtf.errors import InputError
from mtf.platform.environment import environment
from mtf.platform.processes import render
from mtf.platform.run import _place, _settle_spec
from mtf.platform.state import ensure_secrets, password_file, read_secrets, write_platform
from mtf.settings import Settings
from tests.conftest import small_spec

PORTS = {"airflow": 23100, "mlflow": 23110, "serve": 23120, "s3": 23130, "s3_grpc": 23140, "filer": 23150, "filer_grpc": 23160}
PORTS |= {"master": 23170, "master_grpc": 23180, "volume": 23190, "volume_grpc": 23200, "admin": 23210, "admin_grpc": 23220}


@pytest.fixture
def settings(tmp_path):
    return Settings(state_dir=tmp_path / "state")


def test_secrets_are_made_once_and_read_by_this_user_alone(settings):
    made = ensure_secrets(settings)
    assert ensure_secrets(settings) == made == read_secrets(settings)
    assert len(made.airflow_jwt) >= 64
    for path in (settings.state_dir / "secrets.json", password_file(settings)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(password_file(settings).read_text()) == {"admin": made.airflow_password}


def test_two_state_folders_share_nothing(tmp_path):
    a, b = (ensure_secrets(Settings(state_dir=tmp_path / name)) for name in "ab")
    assert not set(a.__struct_fields__) - {name for name in a.__struct_fields__ if getattr(a, name) != getattr(b, name)}


def test_settings_read_where_a_platform_is(settings):
    secrets = ensure_secrets(settings)
    platform = _place(settings, "feed", secrets, PORTS, None)
    write_platform(settings, platform)
    assert stat.S_IMODE((settings.state_dir / "platform.json").stat().st_mode) == 0o600
    found = Settings(state_dir=settings.state_dir)
    assert (found.airflow_url, found.mlflow_url, found.store_url) == (
        platform.airflow_url,
        platform.mlflow_url,
        platform.store_url,
    )
    if platform.s3_endpoint is not None:
        assert found.s3_secret_key.get_secret_value() == secrets.s3_secret_key
        assert secrets.s3_secret_key not in repr(found)


def test_no_secret_is_in_the_rendered_configuration(settings):
    secrets = ensure_secrets(settings)
    platform = _place(settings, "feed", secrets, PORTS, None)
    text = render(settings, platform, secrets).read_text()
    assert not [name for name in secrets.__struct_fields__ if name != "state_id" and getattr(secrets, name) in text]
    assert "127.0.0.1" in text and "0.0.0.0" not in text
    assert environment(settings, platform, secrets)["MTF_STATE_ID"] == secrets.state_id


def test_a_state_folder_with_a_space_stays_one_word(tmp_path):
    settings = Settings(state_dir=tmp_path / "my state")
    platform = _place(settings, "feed", ensure_secrets(settings), PORTS, None)
    conf = configparser.RawConfigParser()
    conf.read(render(settings, platform, ensure_secrets(settings)))
    programs = [name for name in conf.sections() if name.startswith("program:")]
    words = {name: shlex.split(conf[name]["command"]) for name in programs}
    assert words["program:mlflow"][words["program:mlflow"].index("--backend-store-uri") + 1] == (
        f"sqlite:///{settings.state_dir}/mlflow/mlflow.db"
    )
    for name in programs:
        assert Path(words[name][0]).parent == Path(sys.executable).parent
        assert not [word for word in words[name] if word.endswith("/my")], words[name]


def test_the_spec_is_kept_and_another_one_is_refused(settings, tmp_path):
    with pytest.raises(InputError, match="give --spec"):
        _settle_spec(settings, "feed", None)
    small_spec().write(tmp_path / "spec.json")
    assert _settle_spec(settings, "feed", tmp_path / "spec.json") == small_spec()
    assert _settle_spec(settings, "feed", None) == small_spec()
    small_spec(gamma=0.5).write(tmp_path / "other.json")
    with pytest.raises(InputError, match="another MTF_STATE_DIR"):
        _settle_spec(settings, "feed", tmp_path / "other.json")
