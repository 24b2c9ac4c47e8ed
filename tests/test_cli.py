"""Every command answers --help, and exit codes are those of the contract."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtf.cli import COMMANDS, SUMMARIES, app

MTF = str(Path(sys.executable).parent / "mtf")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name):
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) > 4
    assert name in SUMMARIES


def test_an_error_for_the_user_is_one_line_and_exit_code_1(tmp_path):
    done = subprocess.run([MTF, "verify", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("mtf: ")
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_exit_code_2():
    assert subprocess.run([MTF, "nothing"], capture_output=True, check=False).returncode == 2


def test_listing_the_commands_imports_nothing_heavy():
    code = "import sys, mtf.cli; print(sorted({'torch','pandas','mlflow','airflow','duckdb','matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
