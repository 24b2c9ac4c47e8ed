"""The whole platform: started, looked at, its manager killed with -9, stopped, started again on the same addresses."""

from __future__ import annotations

import json
import os
import signal
import stat
import time

import psutil
import pytest
import requests

from mtf.errors import ConflictError
from mtf.platform.clean import clean
from mtf.platform.health import healthy
from mtf.platform.processes import AIRFLOW, running, survivors
from mtf.platform.run import down, status, stop_airflow, up
from mtf.platform.state import read_platform, read_secrets, socket_file
from mtf.rollout.documents import read_latest
from mtf.settings import Settings
from mtf.store import open_store
from tests.conftest import small_spec

pytestmark = pytest.mark.reliability
PORTS = {"airflow": 2330, "mlflow": 2331, "serve": 2332, "s3": 2333, "s3_grpc": 2334, "filer": 2335, "filer_grpc": 2336}
PORTS |= {"master": 2337, "master_grpc": 2338, "volume": 2339, "volume_grpc": 2340, "admin": 2341, "admin_grpc": 2342}
MEMORY_MB = 3500


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The state folder of a platform that was started once; stopped at the end whatever happens."""
    folder = tmp_path_factory.mktemp("state")
    small_spec().write(folder / "spec.json")
    settings = Settings(state_dir=folder / "var", clock="simulated")
    said: list[str] = []

    def say(line):
        print(line)
        said.append(line)

    try:
        up(settings, spec=folder / "spec.json", ports=PORTS, say=say)
        yield folder / "var", said
    finally:
        down(settings)


@pytest.fixture
def settings(state):
    return Settings(state_dir=state[0], clock="simulated")


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)


def test_everything_is_well_and_said_so(state, settings):
    rows = status(settings)
    assert {row.program for row in rows} >= {*AIRFLOW, "mlflow", "serve", "rollout"}
    assert {row.state for row in rows} == {"running"}
    assert {row.health for row in rows} <= {"well", "-"}
    assert all(any(row.program in line for line in state[1]) for row in rows)
    assert sum(row.megabytes for row in rows) < MEMORY_MB


def test_every_server_listens_on_loopback_only(settings):
    listening = {
        connection.laddr.ip
        for process in survivors(settings)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1"}


def test_the_first_document_names_a_registered_version(settings):
    document = read_latest(open_store(settings=settings), "feed")
    assert (document.generation, document.champion.version) == (1, "1")
    if settings.s3_endpoint is not None:
        assert open_store(settings=settings).url().startswith("s3://")


def test_the_store_refuses_strangers(settings):
    if settings.s3_endpoint is None:
        pytest.skip("the store is a folder here")
    assert requests.get(f"{settings.s3_endpoint}/mtf", timeout=5).status_code == 403


def test_airflow_asks_for_the_password_also_for_our_pages(settings):
    pages = ("/mtf/rollout/feed", "/mtf/docs/index.html", "/api/v2/dags")
    for page in pages:
        assert requests.get(settings.airflow_url + page, timeout=10).status_code == 401
    body = {"username": "admin", "password": password(settings)}
    token = requests.post(f"{settings.airflow_url}/auth/token", json=body, timeout=10).json()["access_token"]
    for page in pages:
        answer = requests.get(settings.airflow_url + page, headers={"Authorization": f"Bearer {token}"}, timeout=20)
        assert answer.status_code == 200, page
    wrong = body | {"password": "admin"}
    assert requests.post(f"{settings.airflow_url}/auth/token", json=wrong, timeout=10).status_code == 401


def test_a_server_that_dies_is_started_again(settings):
    supervisor = running(settings)
    before = supervisor.pids()["serve"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: supervisor.pids()["serve"] not in (0, before) and healthy("serve", read_platform(settings)))


def test_starting_it_again_changes_nothing(settings):
    before = running(settings).pids()
    said: list[str] = []
    up(settings, ports=PORTS, say=said.append)
    assert running(settings).pids() == before


def test_airflow_alone_can_be_stopped(settings):
    stop_airflow(settings)
    states = running(settings).states()
    assert {states[name] for name in AIRFLOW} == {"STOPPED"}
    assert healthy("serve", read_platform(settings))
    up(settings, ports=PORTS, say=lambda _: None)
    assert {row.health for row in status(settings)} <= {"well", "-"}


def test_clean_refuses_while_it_runs(settings):
    with pytest.raises(ConflictError, match="mtf down"):
        clean(settings)


def test_down_after_the_manager_was_killed_leaves_nothing(settings):
    document = read_latest(open_store(settings=settings), "feed")
    urls = read_platform(settings)
    os.kill(int((settings.state_dir / "run" / "supervisord.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: running(settings) is None)
    left = survivors(settings)
    assert len(left) >= 7  # the servers go on without their manager
    assert down(settings) == len(left)
    assert survivors(settings) == []
    for name in PORTS:
        assert not listens(urls.ports[name]), name
    # and from there it goes on: same addresses, same document
    up(settings, ports=PORTS, say=lambda _: None)
    assert read_platform(settings) == urls
    assert read_latest(open_store(settings=settings), "feed") == document


def test_down_leaves_nothing_behind(settings):
    secret = settings.state_dir / "secrets.json"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    marker = read_secrets(settings).state_id
    assert down(settings) > 7
    assert survivors(settings) == []
    assert not socket_file(marker).exists()
    assert status(settings) == []
    assert clean(settings)


def password(settings):
    return json.loads(settings.airflow_password_file.read_text())["admin"]


def listens(port):
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in psutil.net_connections(kind="inet"))
