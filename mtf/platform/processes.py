"""The platform's processes under supervisord: rendering its configuration, starting, asking, stopping.

Every process carries the state folder's id in its environment (`MTF_STATE_ID`), so that `stop_all` finds what is left
even when supervisord was killed, and touches nobody else's processes.
"""

from __future__ import annotations

import http.client
import os
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy, Transport

import psutil
from supervisor.xmlrpc import Faults

from mtf.errors import MtfError
from mtf.platform.state import MARKER, Platform, Secrets, read_secrets, socket_file
from mtf.settings import ROOT, Settings

TEMPLATE = ROOT / "infra" / "local" / "supervisord.conf"
AIRFLOW = ("airflow-api", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
STOP_SECONDS = 25.0


class Supervisor:
    """supervisord's XML-RPC interface over its unix socket. Raises MtfError where it does not answer."""

    def __init__(self, state_id: str) -> None:
        self._path = str(socket_file(state_id))
        self._rpc: Any = ServerProxy("http://supervisor", transport=_UnixTransport(self._path))

    def answers(self) -> bool:
        """Is it there? While it stops it refuses every call, and is not."""
        try:
            self._rpc.supervisor.getPID()
        except (OSError, http.client.HTTPException, Fault):
            return False
        return True

    def start(self, *names: str) -> None:
        """Start programs that do not run yet; does not wait for them."""
        for name in names:
            # not asked first: supervisord restarts what died, and may do so between the answer and the call
            self._call("startProcess", name, False, unless=Faults.ALREADY_STARTED)

    def stop(self, *names: str) -> None:
        """Stop programs and wait until they are gone."""
        for name in names:
            self._call("stopProcess", name, False, unless=Faults.NOT_RUNNING)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            states = self.states()
            if all(states[name] in ("STOPPED", "EXITED", "FATAL") for name in names):
                return
            time.sleep(0.1)
        raise MtfError(f"{', '.join(names)}: did not stop within {STOP_SECONDS:.0f} s; run `mtf down`")

    def states(self) -> dict[str, str]:
        """{program: RUNNING | STARTING | BACKOFF | FATAL | STOPPED | EXITED | STOPPING}."""
        return {entry["name"]: entry["statename"] for entry in self._call("getAllProcessInfo")}

    def pids(self) -> dict[str, int]:
        """{program: pid}, 0 where it does not run."""
        return {entry["name"]: entry["pid"] for entry in self._call("getAllProcessInfo")}

    def shutdown(self) -> None:
        """Ask every program to stop, all at once, then supervisord itself; does not wait."""
        self._call("stopAllProcesses", False)
        self._call("shutdown")

    def _call(self, method: str, *arguments: object, unless: int | None = None) -> Any:
        """unless: the fault that says that there is nothing to do."""
        try:
            return getattr(self._rpc.supervisor, method)(*arguments)
        except Fault as fault:
            if fault.faultCode == unless:
                return None
            raise MtfError(f"supervisor {method}{arguments}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException) as error:
            raise MtfError(f"supervisor does not answer at {self._path}: {error}; run `mtf down`, then `mtf up`") from error


class _UnixTransport(Transport):
    """XML-RPC over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        path = self._path

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.sock.connect(path)

        return Connection("localhost", timeout=30)


def render(settings: Settings, platform: Platform, secrets: Secrets) -> Path:
    """Write <state>/run/supervisord.conf from the template; without the S3 server where the store is a folder."""
    run, logs = settings.state_dir / "run", settings.state_dir / "log"
    for folder in (run, logs, settings.state_dir / "mlflow", settings.state_dir / "s3"):
        folder.mkdir(parents=True, exist_ok=True)
    blocks = TEMPLATE.read_text().split("\n\n")
    if platform.s3_endpoint is None:
        blocks = [block for block in blocks if not block.startswith("[program:s3]")]
    names = {
        "state": settings.state_dir,
        "run": run,
        "logs": logs,
        "bin": Path(sys.executable).parent,
        "socket": socket_file(secrets.state_id),
        "artifacts": platform.artifacts_url,
        "surface": platform.surface,
    } | {f"{name}_port": port for name, port in platform.ports.items()}
    # supervisor expands %(...)s itself
    values = {name: str(value).replace("%", "%%") for name, value in names.items()}
    conf = run / "supervisord.conf"
    conf.write_text(string.Template("\n\n".join(blocks)).substitute(values))
    return conf


def start_supervisor(settings: Settings, conf: Path, environment: dict[str, str], secrets: Secrets) -> Supervisor:
    """Start supervisord detached from the terminal; returns when it answers. Raises MtfError with its log's end."""
    socket_file(secrets.state_id).unlink(missing_ok=True)
    log = settings.state_dir / "log" / "supervisord.out"
    command = [str(Path(sys.executable).parent / "supervisord"), "-c", str(conf)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    supervisor = Supervisor(secrets.state_id)
    for _ in range(200):
        if supervisor.answers():
            return supervisor
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise MtfError(f"supervisord does not start: {tail(log)}; see {log}")


def running(settings: Settings) -> Supervisor | None:
    """The supervisor of this state folder, or None where it does not run."""
    secrets = read_secrets(settings)
    if secrets is None:
        return None
    supervisor = Supervisor(secrets.state_id)
    return supervisor if supervisor.answers() else None


def survivors(settings: Settings) -> list[psutil.Process]:
    """Every process of this platform, by the marker in its environment; never the caller or its ancestors."""
    secrets = read_secrets(settings)
    if secrets is None:
        return []
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(MARKER) == secrets.state_id:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return found


def stop_all(settings: Settings) -> int:
    """Stop every process of this platform, also without its supervisord; returns how many there were.

    First politely through supervisord; what is left is asked by SIGTERM, then killed. psutil compares a process's start
    time before it signals it, so a reused pid is safe.
    """
    before = survivors(settings)
    supervisor = running(settings)
    if supervisor is not None:
        supervisor.shutdown()
        _wait_gone(settings, STOP_SECONDS)
    for signal_name in ("terminate", "kill"):
        left = survivors(settings)
        for process in left:
            try:
                getattr(process, signal_name)()
            except psutil.NoSuchProcess:
                continue
        if left:
            _wait_gone(settings, STOP_SECONDS / 2)
    left = survivors(settings)
    if left:
        raise MtfError(f"still running after SIGKILL: {_describe(left)}; look at them with `ps`")
    secrets = read_secrets(settings)
    if secrets is not None:
        socket_file(secrets.state_id).unlink(missing_ok=True)
        (settings.state_dir / "run" / "supervisord.pid").unlink(missing_ok=True)
    return len(before)


def tail(log: Path, lines: int = 5) -> str:
    """The end of a log in one line."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return " | ".join(text.strip().splitlines()[-lines:]) or "(an empty log)"


def _wait_gone(settings: Settings, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while survivors(settings) and time.monotonic() < deadline:
        time.sleep(0.2)


def _describe(processes: Iterable[psutil.Process]) -> str:
    return ", ".join(f"{process.pid} ({process.name()})" for process in processes)
