"""The server answers in an environment that has neither torch nor Airflow, MLflow, Great Expectations, DVC or scikit-learn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

ABSENT = {"torch", "airflow", "mlflow", "great_expectations", "dvc", "sklearn", "pandas", "onnx", "onnxruntime"}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())

from pathlib import Path

from mtf.settings import Settings
from tests.serving.conftest import running

with running(Settings(state_dir=Path(sys.argv[1]), clock="simulated")) as client:
    items = [{"id": 10 + i, "scores": {"click": 0.1 * (i + 1), "watch": 5.0}} for i in range(5)]
    asked = {"user_id": "u1", "ts": "2026-01-01T00:00:00Z", "features": {"activity": 0.5}, "items": items}
    status, answer = client.post("/v1/rank", asked)
print(status, sorted(answer), sorted(ABSENT & set(sys.modules)))
"""


def test_a_request_is_ranked(simulated):
    command = [sys.executable, "-c", SCRIPT, str(simulated.state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd(), check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    status, rest = done.stdout.split(maxsplit=1)
    assert status in ("200", "201"), done.stdout
    assert "request_id" in rest
    assert rest.strip().endswith("[]"), "it imported what is not there"
