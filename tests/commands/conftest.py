"""The command line in this process: `mtf(...)` runs it as a shell would, without the seconds that a new interpreter takes."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from mtf.cli import main
from tests.conftest import made_once


class Done(NamedTuple):
    """Exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    """Run `mtf ARGUMENTS`. What `main` does not turn into an exit code would be a traceback, and is raised."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["mtf", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def mtf() -> Callable[..., Done]:
    """`run`."""
    return run


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder of each test's own."""
    monkeypatch.setenv("MTF_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="session")
def tour(world_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `logs` (an explored day of 250 users), its `transitions` and a cloned `policy`, made by commands."""

    def make(folder: Path) -> None:
        day = ("--users", 250, "--dt", "2026-03-02", "--seed", 1, "--box", 0.3)
        learn = ("--algorithm", "bc", "--set", "distil_steps=20", "--baseline", "bootstrap")
        for command in (
            ("simulate", "--world", world_dir, "--policy", "bootstrap", *day, "--out", folder / "logs"),
            ("transitions", "build", "--logs", folder / "logs", "--out", folder / "transitions"),
            ("train", "--transitions", folder / "transitions", *learn, "--out", folder / "policy"),
        ):
            done = run(*command)
            assert done.code == 0, done

    return made_once(tmp_path_factory, "commands", make)


def said(done: Done, code: int, text: str) -> None:
    """The command ended so and said this; an error for the user begins with the program's name and is no traceback."""
    assert done.code == code, done
    assert text in done.out + done.err, done
    assert "Traceback" not in done.err
    if code == 1 and done.err:
        assert any(line.startswith("mtf: ") for line in done.err.splitlines()), done
