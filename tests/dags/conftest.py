"""The DAGs parsed in a clean process, with an AIRFLOW_HOME of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARSE = """
import json, pathlib, sys
from airflow.dag_processing.dagbag import BundleDagBag
bag = BundleDagBag(sys.argv[1], bundle_path=pathlib.Path(sys.argv[1]))
modules = ("torch", "pandas", "great_expectations", "mlflow", "dvc", "duckdb", "ibis", "boto3", "matplotlib")
heavy = [name for name in modules if name in sys.modules]
dags = {
    dag.dag_id: {
        "doc": dag.doc_md, "name": dag.dag_display_name, "tags": sorted(dag.tags),
        "schedule": type(dag.timetable).__name__, "params": list(dag.params),
        "tasks": {
            t.task_id: {
                "owner": t.owner, "retries": t.retries, "timeout": t.execution_timeout and t.execution_timeout.total_seconds(),
                "outlets": [a.name for a in t.outlets], "downstream": sorted(t.downstream_task_ids),
            } for t in dag.tasks
        },
    } for dag in bag.dags.values()
}
print("PARSED" + json.dumps({"errors": bag.import_errors, "heavy": heavy, "dags": dags}))
"""


@pytest.fixture(scope="session")
def parse(tmp_path_factory):
    """parse(clock=..., surfaces=...) -> {"errors", "heavy", "dags"}: what a fresh process finds in dags/."""
    home = tmp_path_factory.mktemp("airflow")
    environment = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "MTF_STATE_DIR": str(home / "state"),
    }
    known: dict[tuple[str, ...], dict] = {}

    def run(clock: str = "simulated", surfaces: tuple[str, ...] = ("feed",)) -> dict:
        key = (clock, *surfaces)
        if key not in known:
            extra = {"MTF_CLOCK": clock, "MTF_SURFACES": json.dumps(surfaces)}
            command = [sys.executable, "-c", PARSE, str(ROOT / "dags")]
            done = subprocess.run(command, env=environment | extra, capture_output=True, text=True, check=True)
            known[key] = json.loads(done.stdout.split("PARSED")[-1])
        return known[key]

    return run
