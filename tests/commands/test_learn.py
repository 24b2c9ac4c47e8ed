"""`mtf train`, `mtf evaluate`, `mtf power`, `mtf explore refresh`: from transitions to a verdict, with their exit codes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mtf as package
from mtf.contracts.exploration import read_exploration
from mtf.policy import Lineage, constant_policy
from tests.commands.conftest import said
from tests.evaluation.conftest import make_sessions
from tests.transitions.files import to_table, write_transitions

SLOPE = np.array([0.8, -0.8])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Somebody else's transitions: no spec, two dimensions, a known slope."""
    return write_transitions(tmp_path_factory.mktemp("others") / "t", make_sessions(3000, seed=1, slope=SLOPE))


def constant(folder, action, state=3):
    constant_policy(np.array(action), state, spec=None, lineage=Lineage(algorithm="test")).write(folder)
    return folder


LEARN = ("--algorithm", "linear_advantage", "--baseline", "logged", "--set", "distil_steps=20")


def test_others_data_trains_and_the_step_is_told(mtf, others, tmp_path):
    done = mtf("train", "--transitions", others, *LEARN, "--out", tmp_path / "p", "--steps", 5)
    said(done, 0, "policy   ")
    policy = package.load_policy(tmp_path / "p")
    report = json.loads((tmp_path / "p" / "train.json").read_text())
    assert policy.sha in done.out
    assert report["policy_sha"] == policy.sha
    assert f"{report['rows']['used']:,} ({report['rows']['explored']:,} explored)" in done.out
    assert "steps_ignored" in done.err
    # training read the training users alone
    from mtf.transitions.table import is_gate_user

    assert report["rows"]["users"] == sum(not is_gate_user(f"u{i}") for i in range(3000))
    assert policy.act(np.zeros((1, 3), np.float32))[0, 0] > 0.03


def test_the_seed_and_the_settings_are_in_the_lineage(mtf, others, tmp_path):
    lineage = ("--seed", 3, "--dataset-md5", "abc", "--dataset-revision", "r1", "--set", "kappa=3", "--set", "hidden=4,4")
    said(mtf("train", "--transitions", others, *LEARN, *lineage, "--out", tmp_path / "p"), 0, "policy")
    found = package.load_policy(tmp_path / "p").lineage
    assert (found.seed, found.dataset_md5, found.dataset_revision) == (3, "abc", "r1")
    assert (found.config["kappa"], found.config["hidden"]) == (3.0, [4, 4])


def test_a_pass_is_exit_code_0_and_any_other_verdict_3(mtf, others, tmp_path):
    better, worse = (constant(tmp_path / name, s * np.sign(SLOPE) * 0.15) for name, s in (("better", 1), ("worse", -1)))
    same, outside = constant(tmp_path / "same", [0.0, 0.0]), constant(tmp_path / "outside", [0.6, 0.0])
    for policy, code, verdict in ((better, 0, "pass"), (worse, 3, "fail"), (same, 3, "inconclusive"), (outside, 3, "fail")):
        out = tmp_path / f"report-{policy.name}"
        done = mtf("evaluate", "--transitions", others, "--policy", policy, "--baseline", "logged", "--out", out)
        said(done, code, f"{verdict}: ")
        report = json.loads((out / "report.json").read_text())
        assert report["verdict"] == verdict
        assert f"{verdict}: {report['reason']}" in done.out
        assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_power_as_text_and_as_json(mtf, others, tour):
    done = mtf("power", "--transitions", others)
    said(done, 0, "gate, smallest lift found four times in five: ")
    found = json.loads(mtf("power", "--transitions", others, "--json").out)
    assert f"{found['detectable_lift']:.2%} half-way" in done.out
    assert found["varied_dimensions"] == 2
    assert json.loads(mtf("power", "--transitions", tour / "transitions", "--json").out)["varied_dimensions"] == 10


def test_the_next_box_is_written_with_its_reasons(mtf, tour, tmp_path):
    box = tmp_path / "exploration.json"
    places = ("--policy", tour / "policy", "--transitions", tour / "transitions", "--baseline", "bootstrap")
    done = mtf("explore", "refresh", *places, "--out", box)
    said(done, 0, "of the reward, budget 3%")
    document = read_exploration(box)
    assert document.policy_sha == package.load_policy(tour / "policy").sha
    assert document.sha in done.out
    assert done.out.count("dimension ") == 10
    for d, (width, seen) in enumerate(zip(document.half_width, document.evidence, strict=True)):
        assert f"dimension {d}: {seen.before:.3f} -> {width:.3f}  {seen.rule}" in done.out
    # it is where the next training or refresh starts from
    again = mtf("explore", "refresh", *places, "--previous", box, "--out", tmp_path / "next.json", "--cap", 0.1)
    said(again, 0, "box  ")
    assert max(read_exploration(tmp_path / "next.json").half_width) <= 0.1
    quick = ("--algorithm", "bc", "--set", "distil_steps=5", "--baseline", "bootstrap")
    trained = mtf("train", "--transitions", tour / "transitions", *quick, "--exploration", box, "--out", tmp_path / "p")
    said(trained, 0, "policy")
    assert json.loads((tmp_path / "p" / "train.json").read_text())["half_width"] == pytest.approx(list(document.half_width))


def test_the_deployed_policy_must_be_named_where_the_new_one_stays_in_its_box(mtf, others, tmp_path):
    places = ("--transitions", others, "--out", tmp_path / "p", "--set", "distil_steps=5")
    done = mtf("train", "--algorithm", "linear_advantage", *places)
    assert done.code == 2
    assert "--baseline is missing" in done.err
    # an unset variable of a shell is no wish
    empty = mtf("train", "--algorithm", "linear_advantage", "--baseline", "", *places)
    assert (empty.code, "--baseline: '': an empty name" in empty.err) == (2, True), empty.err
    twice = mtf("train", "--algorithm", "bc", *places, "--set", "distil_steps=7")
    assert (twice.code, "distil_steps is 5 and 7; give it once" in twice.err) == (2, True), twice.err
    said(mtf("train", "--algorithm", "bc", *places), 0, "policy")


WRONG = {
    "no transitions": ("train", {"--transitions": "/nowhere"}, "no Parquet file at /nowhere"),
    "no baseline": ("train", {"--baseline": "/nowhere"}, "/nowhere holds no policy.json"),
    "no spec for bootstrap": ("train", {"--baseline": "bootstrap"}, "have no spec; use `logged`"),
    "a word for a number": ("train", {"--set": "kappa=much"}, "--set kappa=much: Expected `float`"),
    "an unknown setting": ("train", {"--set": "kapa=1"}, "--set kapa: no such setting"),
    "a setting below its least": ("train", {"--set": "distil_steps=0"}, "--set distil_steps=0: keep it at least 1"),
    "no box": ("train", {"--exploration": "/nowhere"}, "/nowhere does not exist; give the file that `mtf explore refresh"),
    "no spec file": ("train", {"--spec": "/nowhere"}, "spec: /nowhere does not exist"),
    "no candidates": ("train", {"--algorithm": "es"}, "es: needs a spec and the candidates' scores"),
    "no policy": ("evaluate", {"--policy": "/nowhere"}, "/nowhere holds no policy.json"),
    "no spec to evaluate": ("evaluate", {"--baseline": "bootstrap"}, "have no spec.json; give --spec FILE"),
    "nothing to evaluate": ("evaluate", {"--transitions": "/nowhere"}, "no Parquet file at /nowhere"),
    "nothing to size": ("power", {"--transitions": "/nowhere"}, "no Parquet file at /nowhere"),
    "a box upside down": ("explore", {"--floor": 0.5}, "keep 0 < floor <= cap"),
    "no such previous box": ("explore", {"--previous": "/nowhere"}, "/nowhere does not exist"),
    "no policy to explore around": ("explore", {"--policy": "/nowhere"}, "/nowhere holds no policy.json"),
    "no spec to start from": ("explore", {"--policy": "bootstrap"}, "have no spec; give a bundle"),
}


@pytest.mark.parametrize(("command", "options", "says"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_one_line_and_exit_code_1(mtf, others, tmp_path, command, options, says):
    policy = constant(tmp_path / "policy", [0.0, 0.0])
    given = {
        "train": {"--transitions": others, "--algorithm": "linear_advantage", "--baseline": "logged", "--out": tmp_path / "out"},
        "evaluate": {"--transitions": others, "--policy": policy, "--baseline": "logged", "--out": tmp_path / "out"},
        "power": {"--transitions": others},
        "explore": {"--policy": policy, "--transitions": others, "--baseline": "logged", "--out": tmp_path / "out"},
    }[command] | options
    words = ["explore", "refresh"] if command == "explore" else [command]
    said(mtf(*words, *(part for pair in given.items() for part in pair)), 1, says)
    assert not (tmp_path / "out").exists()


def test_a_policy_of_another_width_is_named(mtf, others, tmp_path):
    policy = constant(tmp_path / "p", [0.0, 0.0, 0.0])
    places = ("--transitions", others, "--policy", policy, "--out", tmp_path / "r")
    said(
        mtf("evaluate", *places, "--baseline", "logged"),
        1,
        "policy: maps 3 -> 3, the transitions hold 3 -> 2; evaluate it",
    )
    said(mtf("train", "--transitions", others, *LEARN, "--baseline", policy, "--out", tmp_path / "o"), 1, "maps 3 -> 3")


def test_rows_without_exploration_train_nothing_and_are_inconclusive(mtf, tmp_path):
    folder = write_transitions(tmp_path / "t", make_sessions(300, seed=0, slope=SLOPE, half_width=0.0))
    said(mtf("train", "--transitions", folder, *LEARN, "--out", tmp_path / "p"), 1, "rows explored (lower = upper everywhere)")
    policy = constant(tmp_path / "c", [0.0, 0.0])
    done = mtf("evaluate", "--transitions", folder, "--policy", policy, "--baseline", "logged", "--out", tmp_path / "r")
    said(done, 3, "inconclusive: None of the")
    assert json.loads((tmp_path / "r" / "report.json").read_text())["lift"]["mean"] is None
    said(mtf("power", "--transitions", folder), 0, "gate: nothing to detect with")


def test_a_nan_among_others_rows_is_named_with_file_column_and_row(mtf, tmp_path):
    table = to_table(make_sessions(50, seed=0, slope=SLOPE))
    action = table["action"].to_pylist()
    action[7][1] = float("nan")
    i = table.column_names.index("action")
    pq.write_table(table.set_column(i, "action", pa.array(action, pa.list_(pa.float32()))), tmp_path / "x.parquet")
    done = [
        mtf(*words, "--transitions", tmp_path / "x.parquet") for words in (("train", *LEARN, "--out", tmp_path / "p"), ("power",))
    ]
    # the row is of a training user or of a gate user, and only the command that reads him may mind
    assert sorted(d.code for d in done) == [0, 1]
    (refused,) = (d for d in done if d.code)
    said(refused, 1, f"{tmp_path / 'x.parquet'}: `action`[1] is nan in row")


def test_an_output_that_cannot_be_written_is_one_line(mtf, others, tmp_path):
    (tmp_path / "file").write_text("")
    said(mtf("train", "--transitions", others, *LEARN, "--out", tmp_path / "file" / "p"), 1, str(tmp_path / "file"))
