"""The client where Airflow is slow, restarting or refuses; against Airflow itself it runs in tests/integration."""

from __future__ import annotations

import http.server
import json
import re
import threading

import pytest

from mtf.demo import airflow
from mtf.demo.airflow import Airflow
from mtf.errors import MtfError


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers from `server.script`: {(method, path): [answers]}, the last one for ever; an answer is (status, body)."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        key = (self.command, self.path)
        self.server.asked.append((*key, json.loads(body) if body else None, self.headers.get("authorization")))
        left = self.server.script[key]
        status, answer = left.pop(0) if len(left) > 1 else left[0]
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(airflow.time, "sleep", lambda _: None)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    made.script = {("POST", "/auth/token"): [(201, {"access_token": "t1"}), (201, {"access_token": "t2"})]}
    made.asked = []
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def client(server, tmp_path):
    (tmp_path / "password").write_text('{"admin": "secret"}')
    return Airflow(f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "password")


RUNS = "/api/v2/dags/d/dagRuns?order_by=-run_after&limit=100"
RUN = {"dag_run_id": "r1", "state": "running", "partition_key": "2026-03-02"}


def test_it_logs_in_when_asked_to_and_again_when_the_token_has_expired(server, client):
    server.script[("GET", RUNS)] = [(401, {}), (200, {"dag_runs": [RUN]}), (401, {}), (200, {"dag_runs": []})]
    (run,) = client.runs("d")
    assert (run.dag_id, run.run_id, run.state, run.partition_key) == ("d", "r1", "running", "2026-03-02")
    assert client.runs("d") == []
    assert [a[3] for a in server.asked if a[1] == RUNS] == [None, "Bearer t1", "Bearer t1", "Bearer t2"]
    assert server.asked[1][2] == {"username": "admin", "password": "secret"}


def test_a_run_has_the_states_of_its_tasks_and_names_the_one_that_failed(server, client):
    tasks = [{"task_id": "a", "state": "success"}, {"task_id": "b", "state": "failed"}, {"task_id": "c", "state": None}]
    server.script[("GET", "/api/v2/dags/d/dagRuns/r1")] = [(200, RUN)]
    server.script[("GET", "/api/v2/dags/d/dagRuns/r1/taskInstances")] = [(200, {"task_instances": tasks})]
    run = client.run("d", "r1")
    assert run.tasks == {"a": "success", "b": "failed", "c": "none"}
    assert run.failed_task == "b"


def test_a_change_is_asked_for_again_where_the_database_was_locked(server, client):
    server.script[("PATCH", "/api/v2/dags/d")] = [(500, {"detail": "Database error"}), (200, {"is_paused": True})]
    assert client._call("PATCH", "/dags/d", {"is_paused": True}) == {"is_paused": True}


def posts(server):
    return [a[2] for a in server.asked if a[:2] == ("POST", "/api/v2/dags/d/dagRuns")]


def test_a_dag_is_triggered_with_its_parameters_once(server, client):
    server.script[("POST", "/api/v2/dags/d/dagRuns")] = [(401, {}), (200, {})]
    run_id = client.trigger("d", {"dt": "2026-03-02"})
    # refused before login, then taken: the same body, and no date of Airflow's
    assert posts(server) == [{"dag_run_id": run_id, "logical_date": None, "conf": {"dt": "2026-03-02"}}] * 2
    assert re.fullmatch(r"manual__[A-Za-z0-9_.~:+-]+", run_id)  # Airflow's allowed_run_id_pattern
    assert client.trigger("d", {"dt": "2026-03-02"}) != run_id


def test_a_run_is_asked_for_again_under_its_own_id_so_that_there_is_one(server, client):
    server.script[("POST", "/api/v2/dags/d/dagRuns")] = [(500, {"detail": "Database error"}), (409, {"detail": "exists"})]
    run_id = client.trigger("d", {})
    assert [body["dag_run_id"] for body in posts(server)] == [run_id, run_id]


def test_a_server_that_stays_in_trouble_is_told_with_its_answer(server, client, monkeypatch):
    server.script[("GET", RUNS)] = [(503, {}), (500, {}), (200, {"dag_runs": []})]
    assert client.runs("d") == []
    server.script[("POST", "/api/v2/dags/d/dagRuns")] = [(503, {"detail": "busy"})]
    now = iter(range(0, 1000, 25))
    monkeypatch.setattr(airflow.time, "monotonic", lambda: next(now))
    with pytest.raises(MtfError, match=r"POST /dags/d/dagRuns: 503.*busy"):
        client.trigger("d", {})
    assert len({body["dag_run_id"] for body in posts(server)}) == 1 < len(posts(server))


def test_what_it_refuses_is_told_with_its_answer(server, client):
    server.script[("GET", RUNS)] = [(404, {"detail": "no such DAG"})]
    with pytest.raises(MtfError, match=r"404.*no such DAG"):
        client.runs("d")
    server.script[("GET", RUNS)] = [(401, {})]
    server.script[("POST", "/auth/token")] = [(401, {})]
    with pytest.raises(MtfError, match="refuses the password of the state folder: 401; run `mtf down`, `mtf up`"):
        client.runs("d")


def test_dags_are_waited_for_and_missing_ones_named(server, client):
    listing = ("GET", "/api/v2/dags?limit=200")
    server.script[listing] = [(200, {"dags": []}), (200, {"dags": [{"dag_id": "a"}, {"dag_id": "b"}]})]
    client.wait_parsed(["a", "b"])
    with pytest.raises(MtfError, match="has not read the DAGs c; see Import Errors"):
        client.wait_parsed(["a", "c"], timeout_s=0)


def test_a_server_that_is_away_is_named(tmp_path, monkeypatch):
    (tmp_path / "password").write_text('{"admin": "secret"}')
    away, waited = Airflow("http://127.0.0.1:9", tmp_path / "password"), []
    monkeypatch.setattr(airflow.time, "sleep", waited.append)
    now = iter(range(0, 1000, 25))
    monkeypatch.setattr(airflow.time, "monotonic", lambda: next(now))
    with pytest.raises(MtfError, match=r"does not answer at http://127\.0\.0\.1:9.*see `mtf status`"):
        away.trigger("d", {})
    assert waited and next(now) >= 75  # a minute
