"""The study's commands and files, without a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks import study
from benchmarks.study import Judges
from mtf.errors import InputError
from mtf.learning.run import code_sha
from mtf.policy import bootstrap_policy
from mtf.world.presets import Knobs, build
from mtf.world.world import World


def test_a_new_cell_says_its_code_and_keeps_its_name(tmp_path, monkeypatch):
    """The name hashes the settings alone: what was run before is found again."""
    judged = SimpleNamespace(world=None, users=500, judges=lambda: [1.0, 2.0])
    monkeypatch.setattr(study, "_truths", lambda folder, judges: judged)
    monkeypatch.setattr(study, "play", lambda world, cell, truth: iter([{"round": 1}]))
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.json").write_text("{}")
    study.run_cell(tmp_path / "world", study.cell_of("personalised", "corner", "D3", 1, 20_000), tmp_path, Judges(500, (1, 2)))
    (file,) = tmp_path.glob("*.json")
    assert file.name == "personalised-D3-corner-s1-23fee10b.json"
    written = json.loads(file.read_text())
    assert written["code"] == f"{code_sha()} {study.played_by()}"
    assert written["rounds"] == [{"round": 1}]
    sha = study.world_sha(tmp_path / "world")
    assert (written["world_sha"], written["judges"]) == (sha, [1.0, 2.0])
    assert (written["truth_users"], written["truth_seeds"]) == (500, [1, 2])
    study.require_alike(file, sha, Judges(500, (1, 2)))
    study.require_alike(tmp_path / "not there.json", sha, Judges())
    with pytest.raises(InputError, match="truth_users is 500, here it is 40000; give another --out"):
        study.require_alike(file, sha, Judges(40_000, (1, 2)))
    with pytest.raises(InputError, match=r"truth_seeds is \[1, 2\], here it is \[1, 3\]; give another --out"):
        study.require_alike(file, sha, Judges(500, (1, 3)))
    (tmp_path / "old.json").write_text(json.dumps({"seed": 1}))
    study.require_alike(tmp_path / "old.json", sha, Judges())
    with pytest.raises(InputError, match=rf"truth_seeds is \[{study.TRUTH_SEED}\], here it is \[1\]"):
        study.require_alike(tmp_path / "old.json", sha, Judges(seeds=(1,)))
    (tmp_path / "world" / "world.json").write_text("{ }")
    with pytest.raises(InputError, match=f"world_sha is {sha}, here it is"):
        study.require_alike(file, study.world_sha(tmp_path / "world"), Judges(500, (1, 2)))


def test_a_learner_that_does_not_exist_is_named_before_a_cell_is_played(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("it began"))
    cells = [study.cell_of("personalised", learner, "D3", 1, 20_000) for learner in ("corner", "nonsense")]
    with pytest.raises(InputError, match="`nonsense` is not known; use one of"):
        study.run_cells(tmp_path, cells, tmp_path, Judges(500), 1)


def test_cells_that_fail_are_named_when_the_others_are_done(tmp_path):
    """A folder that holds no world fails in its process; what can be played is played, and the command ends with an error."""
    cells = [study.cell_of("personalised", "corner", "D3", seed, 20_000) for seed in (1, 2)]
    (tmp_path / "world").mkdir()
    with pytest.raises(SystemExit, match="2 of 2 cells failed and left no file:"):
        study.run_cells(tmp_path / "world", cells, tmp_path / "out", Judges(500), 1)


@pytest.fixture
def out(tmp_path, cell):
    """Two seeds of the primary comparisons, and of slate replay in another world."""
    names = ("slate_replay@D3", "naive@D3", "linear_advantage@D3", "corner@D3", "slate_replay@D2", "plug_in@D3")
    cells = [
        cell(learner, (rank / 100 + seed / 1000,), seed=seed, exploration=exploration)
        for rank, (learner, exploration) in enumerate(name.split("@") for name in names)
        for seed in (1, 2)
    ]
    cells += [cell(seed=seed, world="null") for seed in (1, 2)]
    for number, made in enumerate(cells):
        (tmp_path / f"{number}.json").write_text(json.dumps(made))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["primary"], "the primary family"),
        (
            ["compare", "--world", "personalised", "--pairs", "naive@D3/start,corner@D3/naive@D3"],
            "over the 2 given: a second family",
        ),
        (["compare", "--world", "personalised,null", "--pairs", "slate_replay@D3/start"], "mean of 2"),
        (["table"], "of the model-free ceiling"),
    ],
)
def test_commands(out, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study", arguments[0], "--out", str(out), *arguments[1:]])
    study.main()
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("learner", "deployed"), [("linear_advantage:confirm=1000", False), ("corner", True)])
def test_a_training_without_a_step_leaves_what_is_deployed(learner, deployed, monkeypatch):
    """Another bundle of the same policy would make the day's own rows look a round old."""
    baselines, train_on = [], study.train_on

    def seen(*args, baseline, **settings):
        baselines.append(baseline)
        return train_on(*args, baseline=baseline, **settings)

    monkeypatch.setattr(study, "train_on", seen)
    world = World(build("default", Knobs(users=2_000, items=300)))
    truth = SimpleNamespace(of=lambda policy: {"policy": policy})
    cell = study.cell_of("default", learner, "D3", 1, 300, days=2)
    rounds = list(study.play(world, cell, truth))
    assert [r["step"]["rms_y"] > 0 for r in rounds] == [deployed, deployed]
    assert [baseline != "bootstrap" for baseline in baselines] == [False, deployed]
    assert (rounds[0]["policy"].sha == bootstrap_policy(world.spec).sha) is not deployed


def test_a_cell_that_is_played_can_be_reported(tmp_path, monkeypatch):
    """From a world to the page's table, nothing stands in: a learner of steps, whose curve says whether it came to rest."""
    monkeypatch.setattr(study, "GAUC_USERS", 100)
    World(build("default", Knobs(users=2_000, items=300))).save(tmp_path / "world")
    cell = study.cell_of("default", "td3_bc:steps=40:batch=64", "D2", 1, 300, days=2)
    study.run_cell(tmp_path / "world", cell, tmp_path / "cells", Judges(400))
    (made,) = study.read(tmp_path / "cells")
    (of,) = made["rounds"]
    assert (len(made["judges"]), len(of["judges"]), len(of["held_out_error"])) == (study.JUDGES, study.JUDGES, 20)
    (row,) = [line for line in study.render([made], {}).splitlines() if line.startswith("td3_bc") and " x " in line]
    assert row.split()[-5:] == ["40", "x", "64", f"{int(of['learned']['flat'])}/1", f"{int(bool(of['warnings']))}/1"]
