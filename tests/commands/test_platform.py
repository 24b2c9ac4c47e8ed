"""`mtf status | doctor | clean | down | up | verify` where nothing runs; with servers they are tested in tests/platform."""

import json

import pytest

from mtf.platform.doctor import Finding
from mtf.settings import ROOT
from tests.commands.conftest import said


def test_nothing_runs(mtf, state):
    said(mtf("status"), 1, f"no platform runs in {state}; start it with `mtf up`")
    said(mtf("down"), 0, "nothing runs")
    said(mtf("clean"), 0, f"nothing to delete in {state}")


def test_clean_deletes_the_state_folder_and_nothing_else(mtf, state):
    (state / "tour").mkdir(parents=True)
    (state.parent / "mine").write_text("keep")
    said(mtf("clean"), 0, f"deleted {state}")
    assert not state.exists()
    assert (state.parent / "mine").read_text() == "keep"


def test_clean_never_deletes_the_checkout(mtf, monkeypatch):
    monkeypatch.setenv("MTF_STATE_DIR", str(ROOT))
    said(mtf("clean", "--force"), 1, "holds the checkout itself; set MTF_STATE_DIR to a folder of its own")


def test_doctor_lists_what_it_looked_at(mtf):
    done = mtf("doctor")
    assert done.code in (0, 1), done
    assert "Python" in done.out
    assert ("BAD " in done.out) is (done.code == 1)
    for line in done.out.splitlines():
        assert line[:4] in ("ok  ", "note", "BAD ", "    "), line


def test_doctors_bad_finding_is_exit_code_1_with_its_mend(mtf, monkeypatch):
    findings = [
        Finding(level="bad", what="disk", found="0.1 GiB free", mend="free 5 GiB"),
        Finding(level="ok", what="git", found="found"),
    ]
    monkeypatch.setattr("mtf.platform.doctor.examine", lambda _: findings)
    done = mtf("doctor")
    said(done, 1, "BAD   disk               0.1 GiB free")
    assert "-> free 5 GiB" in done.out


def test_up_is_refused_before_anything_starts(mtf, world_dir, state, tmp_path):
    said(mtf("up", "--spec", world_dir / "spec.json", "--world", world_dir), 2, "give --spec or --world, not both")
    said(mtf("up", "--box", 30), 2, "30.0 is not in the range 0<=x<=1")
    said(mtf("up"), 1, "spec")
    (tmp_path / "spec.json").write_text('{"objectives": []}')
    said(mtf("up", "--spec", tmp_path / "spec.json"), 1, str(tmp_path / "spec.json"))
    said(mtf("status"), 1, "no platform runs")


@pytest.mark.parametrize("name", ["platform.json", "secrets.json"])
def test_a_damaged_file_of_the_platform_is_named(mtf, state, name):
    state.mkdir()
    (state / name).write_text("{")
    for command in ("status", "doctor", "down"):
        said(mtf(command), 1, f"{state / name} is damaged")


def test_verify_needs_a_summary(mtf, state, tmp_path):
    said(mtf("verify"), 1, f"{state / 'demo' / 'summary.json'} does not exist; run `mtf demo` first")
    (tmp_path / "summary.json").write_text(json.dumps({"rounds": 3}))
    said(mtf("verify", tmp_path), 1, "summary.json: ")


def test_verify_tells_every_number_that_differs_and_exits_with_1(mtf, tmp_path, monkeypatch):
    from mtf.demo.verify import Check

    checks = [
        Check(name="rounds[1].gate.lift", recorded=0.05, recomputed=0.04, source="gate run again on the checkout"),
        Check(name="rounds[1].dataset.rows", recorded=7, recomputed=7, source="rows of the checkout"),
    ]
    monkeypatch.setattr("mtf.demo.verify.verify", lambda folder, progress: checks)
    done = mtf("verify", tmp_path)
    said(done, 1, "rounds[1].gate.lift: the summary says 0.05, gate run again on the checkout gives 0.04")
    assert "dataset.rows" not in done.out
    monkeypatch.setattr("mtf.demo.verify.verify", lambda folder, progress: checks[1:])
    said(mtf("verify", tmp_path), 0, "all 1 numbers agree")
