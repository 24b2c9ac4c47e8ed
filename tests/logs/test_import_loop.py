"""A log without propensities through the whole loop, command by command: it trains and reports, and the gate says why it cannot
judge. Somebody else's columns, one row an impression, no weights, no scores."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from mtf.cli import app
from tests.logs.test_import import OUTCOMES, a_map, write


def run(*arguments):
    """(exit code, output) of `mtf ...`; an error of ours is its code and line, as on the command line."""
    from mtf.errors import MtfError

    done = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, MtfError):
        return 1, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 users with a session of four impressions each, five minutes apart."""
    folder = tmp_path_factory.mktemp("theirs")
    rng = np.random.default_rng(0)
    users, n = 300, 1200
    start = 1_767_225_600 + rng.integers(0, 60_000, users)
    play = rng.exponential(12_000, n).astype(int)
    log = {"user": [f"u{i}" for i in np.repeat(np.arange(users), 4)], "video": rng.integers(0, 500, n).tolist()}
    log |= {"at": (np.repeat(start, 4) + np.tile(300 * np.arange(4), users)).tolist(), "play_ms": play.tolist()}
    log |= {"length_ms": rng.integers(5_000, 60_000, n).tolist(), "level": np.repeat(rng.random(users), 4).tolist()}
    log |= {"comment": (rng.random(n) < 0.05).tolist(), "follow": (rng.random(n) < 0.02).tolist()}
    write(folder, "log.parquet", log)
    columns = {"user_id": "user", "item_id": "video", "ts": {"column": "at", "unit": "s"}, "state:activity": "level"} | OUTCOMES
    a_map(folder, {"exposures": {"files": "log.parquet", "columns": columns}})
    return folder


def test_the_loop(folder):
    code, said = run("logs", "import", folder, "--format", "parquet", "--map", folder / "map.json", "--out", folder / "logs")
    assert code == 0 and "makes    1,200 requests and 1,200 feedback rows of 300 users" in said, said
    code, said = run("validate", "--logs", folder / "logs", "--out", folder / "quality")
    assert code == 0 and "0 rows set aside" in said, said
    built = ("--logs", folder / "logs", "--out", folder / "transitions", "--quality", folder / "quality")
    code, said = run("transitions", "build", *built)
    assert code == 0 and "1200 transitions in 300 sessions" in said, said
    code, said = run("power", "--transitions", folder / "transitions")
    assert code == 0 and "nothing to detect with" in said and "log a day with exploration" in said, said
    code, said = run(
        "train",
        "--transitions",
        folder / "transitions",
        "--algorithm",
        "slate_replay",
        "--baseline",
        "logged",
        "--out",
        folder / "no",
    )
    assert code == 1 and "log actions drawn from a box" in said and not (folder / "no").exists(), said
    code, said = run("train", "--transitions", folder / "transitions", "--algorithm", "bc", "--out", folder / "policy")
    assert code == 0 and "(0 explored)" in said and "no_exploration" in said, said
    judge = ("--transitions", folder / "transitions", "--policy", folder / "policy", "--baseline", "logged")
    code, said = run("evaluate", *judge, "--out", folder / "report")
    assert code == 3 and "inconclusive" in said, said
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["verdict"] == "inconclusive" and "log a day with exploration" in report["reason"]
    assert (folder / "report" / "report.html").exists()
