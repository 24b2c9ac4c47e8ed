"""Airflow's REST interface, as a person would use its UI: trigger a DAG, look at its runs."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import requests

from mtf.errors import MtfError

DONE = ("success", "failed")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one DAG. state: queued | running | success | failed. tasks: {task id: state}."""

    dag_id: str
    run_id: str
    state: str
    partition_key: str | None
    tasks: dict[str, str]

    @property
    def failed_task(self) -> str | None:
        """The first task that failed."""
        return next((task for task, state in self.tasks.items() if state in ("failed", "upstream_failed")), None)


class Airflow:
    """A logged-in client. Tokens are renewed when they expire.

    A server that is away or fails is asked again for a minute: on SQLite its event loop waits in a request's audit entry for
    another request, which that same loop would have to finish, and gives up after five seconds. Nothing here acts twice.
    """

    def __init__(self, url: str, password_file: Path) -> None:
        self.url = url
        self._password = json.loads(password_file.read_text())["admin"]
        self._session = requests.Session()
        self._session.trust_env = False

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run with parameters; returns its id.

        The id is made here, so that asking again starts no second run: a run that is there already (409) is this one.
        """
        run_id = f"manual__{datetime.now(UTC).isoformat()}_{uuid.uuid4().hex[:8]}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self._call("POST", f"/dags/{dag_id}/dagRuns", body, there=409)
        return run_id

    def runs(self, dag_id: str) -> list[Run]:
        """The DAG's last 100 runs (the most that a page holds), oldest first, without their tasks."""
        found = self._call("GET", f"/dags/{dag_id}/dagRuns?order_by=-run_after&limit=100")["dag_runs"]
        return [self._run(dag_id, entry, {}) for entry in reversed(found)]

    def run(self, dag_id: str, run_id: str) -> Run:
        """One run with the states of its tasks."""
        entry = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        tasks = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return self._run(dag_id, entry, {t["task_id"]: t["state"] or "none" for t in tasks})

    def known(self, dag_ids: list[str]) -> dict[str, set[str]]:
        """{DAG: ids of the runs that there are now}."""
        return {dag_id: {run.run_id for run in self.runs(dag_id)} for dag_id in dag_ids}

    def wait_parsed(self, dag_ids: list[str], timeout_s: float = 120) -> None:
        """Wait until the DAG processor has read the DAGs."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = {dag["dag_id"] for dag in self._call("GET", "/dags?limit=200")["dags"]}
            if set(dag_ids) <= found:
                return
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(set(dag_ids) - found))
                raise MtfError(f"Airflow has not read the DAGs {missing}; see Import Errors on {self.url}")
            time.sleep(0.5)

    def _run(self, dag_id: str, entry: dict[str, Any], tasks: dict[str, str]) -> Run:
        return Run(
            dag_id=dag_id,
            run_id=entry["dag_run_id"],
            state=entry["state"],
            partition_key=entry.get("partition_key"),
            tasks=tasks,
        )

    def _call(self, method: str, path: str, body: object = None, there: int | None = None) -> Any:
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = self._session.request(method, f"{self.url}/api/v2{path}", json=body, timeout=30)
            except requests.RequestException as error:
                if time.monotonic() > deadline:
                    raise MtfError(f"Airflow does not answer at {self.url}: {error}; see `mtf status`") from error
                time.sleep(1)
                continue
            if answer.status_code == 401 and time.monotonic() < deadline:
                self._login()
                continue
            if answer.status_code >= 500 and time.monotonic() < deadline:
                time.sleep(1)
                continue
            if not answer.ok and answer.status_code != there:
                raise MtfError(f"Airflow {method} {path}: {answer.status_code} {answer.text[:300]}")
            return answer.json()

    def _login(self) -> None:
        body = {"username": "admin", "password": self._password}
        answer = self._session.post(f"{self.url}/auth/token", json=body, timeout=30)
        if not answer.ok:
            raise MtfError(f"Airflow refuses the password of the state folder: {answer.status_code}; run `mtf down`, `mtf up`")
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
