"""The manager of the processes, a real supervisord: what is asked for twice, or has happened already, is no error."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from mtf.errors import MtfError
from mtf.platform.processes import running, start_supervisor, stop_all, survivors
from mtf.platform.state import MARKER, ensure_secrets, socket_file
from mtf.settings import Settings

CONF = """
[unix_http_server]
file = {socket}

[supervisord]
logfile = {folder}/supervisord.log
pidfile = {folder}/supervisord.pid
nodaemon = true

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[program:sleeper]
command = {python} -S -c "import time; time.sleep(600)"
autostart = false
startsecs = 0

[program:stubborn]
command = {python} -S {folder}/stubborn.py
autostart = false
startsecs = 0
stopwaitsecs = 60

[program:broken]
command = {folder}/missing
autostart = false
"""


@pytest.fixture
def supervisor(tmp_path):
    settings = Settings(state_dir=tmp_path / "state")
    secrets = ensure_secrets(settings)
    (settings.state_dir / "log").mkdir()
    (tmp_path / "stubborn.py").write_text(
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path / 'deaf')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    conf = tmp_path / "supervisord.conf"
    conf.write_text(CONF.format(socket=socket_file(secrets.state_id), folder=tmp_path, python=sys.executable))
    try:
        yield start_supervisor(settings, conf, os.environ | {MARKER: secrets.state_id}, secrets)
    finally:
        stop_all(settings)


def test_starting_what_runs_and_stopping_what_does_not_change_nothing(supervisor):
    supervisor.stop("sleeper")
    supervisor.start("sleeper")
    pid = supervisor.pids()["sleeper"]
    supervisor.start("sleeper")
    assert pid and supervisor.pids()["sleeper"] == pid
    supervisor.stop("sleeper")
    supervisor.stop("sleeper")
    assert supervisor.states()["sleeper"] == "STOPPED"


def test_starting_what_the_manager_starts_again_at_the_same_moment(supervisor):
    """What was killed is started again by supervisord itself: whoever comes first, one of it runs in the end."""
    supervisor.start("sleeper")
    for _ in range(20):
        killed = supervisor.pids()["sleeper"]
        os.kill(killed, signal.SIGKILL)
        supervisor.start("sleeper")
        deadline = time.monotonic() + 10
        while supervisor.pids()["sleeper"] in (0, killed):
            assert time.monotonic() < deadline, supervisor.states()
            time.sleep(0.01)


def test_a_manager_that_stops_is_not_there_and_what_it_leaves_is_stopped(supervisor, tmp_path):
    """While it waits for a program that is slow to stop it refuses every call."""
    settings = Settings(state_dir=tmp_path / "state")
    supervisor.start("stubborn")
    while not (tmp_path / "deaf").exists():
        time.sleep(0.01)
    supervisor._call("shutdown")
    assert running(settings) is None
    assert stop_all(settings) == 2
    assert survivors(settings) == []


def test_a_program_that_cannot_start_is_named(supervisor):
    with pytest.raises(MtfError, match="broken"):
        supervisor.start("broken")
