"""Where settings come from, and what is said of one that cannot be used."""

import json
import time
from pathlib import Path

import pytest

from mtf.errors import InputError
from mtf.settings import ROOT, Settings


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MTF_STATE_DIR", str(tmp_path))
    return tmp_path


def test_a_running_platform_fills_what_the_environment_does_not_say(state, monkeypatch):
    known = {
        "mlflow_url": "http://127.0.0.1:1",
        "serve_url": "http://127.0.0.1:2",
        "store_url": "s3://mtf/store",
        "s3_secret_key": "hidden",
        "airflow_password_file": str(state / "password"),
        "ports": {"mlflow": 1},
    }
    (state / "platform.json").write_text(json.dumps(known))
    monkeypatch.setenv("MTF_SERVE_URL", "http://127.0.0.1:9")
    found = Settings()
    assert found.mlflow_url == "http://127.0.0.1:1"
    assert found.serve_url == "http://127.0.0.1:9"
    assert found.store_url == "s3://mtf/store"
    assert found.airflow_password_file == state / "password"
    assert found.s3_secret_key.get_secret_value() == "hidden"
    assert "hidden" not in repr(found) + str(found.model_dump())
    # an argument wins over both
    assert Settings(mlflow_url="http://127.0.0.1:3").mlflow_url == "http://127.0.0.1:3"


def test_commands_keep_the_running_platforms_clock(state, monkeypatch):
    assert Settings().clock == "real"
    assert abs(Settings().clock_us / 1e6 - time.time()) < 60
    (state / "platform.json").write_text(json.dumps({"clock": "simulated"}))
    assert Settings().clock == "simulated"
    assert Settings().clock_us == 0
    assert Settings(clock="real").clock == "real"
    monkeypatch.setenv("MTF_CLOCK", "real")
    assert Settings().clock == "real"


def test_without_a_platform_the_store_is_a_folder_of_the_state(state):
    found = Settings()
    assert found.store_url == (state / "store").as_uri()
    assert (found.mlflow_url, found.s3_endpoint, found.surfaces) == (None, None, ("feed",))


def test_the_state_folder_is_absolute_and_an_empty_variable_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings(state_dir=Path("var")).state_dir == tmp_path / "var"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings(state_dir=Path("~/var")).state_dir == tmp_path / "var"
    monkeypatch.setenv("MTF_STATE_DIR", "")
    assert Settings().state_dir == ROOT / "var"


def test_each_surface_has_its_own_folders(state):
    found = Settings()
    folders = ("spool_dir", "logs_dir", "quality_dir", "transitions_dir", "rollout_dir")
    paths = {getattr(found, name)(surface) for name in folders for surface in ("feed", "search")}
    assert len(paths) == 10
    assert all(path.is_relative_to(state) for path in paths)
    assert found.docs_dir == found.quality_dir("feed").parent / "site"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MTF_THREADS", "many", r"MTF_THREADS = 'many'.*valid integer"),
        ("MTF_THREADS", "0", r"MTF_THREADS = '0'.*greater than or equal to 1"),
        ("MTF_PROFILE", "laptop", r"MTF_PROFILE = 'laptop'.*'local' or 'cluster'"),
        ("MTF_CLOCK", "slow", "MTF_CLOCK = 'slow'"),
        ("MTF_SURFACES", "feed", "surfaces.*written as JSON"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_variable(state, monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=says):
        Settings()


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_platform_file_is_named_with_the_way_out(state, content):
    (state / "platform.json").write_text(content)
    with pytest.raises(InputError, match=r"platform\.json.*mtf down"):
        Settings()
