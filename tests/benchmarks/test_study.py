"""The study's commands and files, without a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

from benchmarks import study
from mtf.learning.run import code_sha


def test_a_new_cell_says_its_code_and_keeps_its_name(tmp_path, monkeypatch):
    """The name hashes the settings alone: what was run before is found again."""
    monkeypatch.setattr(study, "_truths", lambda folder, users: SimpleNamespace(world=None))
    monkeypatch.setattr(study, "play", lambda world, cell, truth: iter([{"round": 1}]))
    study.run_cell(tmp_path, study.cell_of("personalised", "corner", "D3", 1, 20_000), tmp_path, 500)
    (file,) = tmp_path.iterdir()
    assert file.name == "personalised-D3-corner-s1-23fee10b.json"
    written = json.loads(file.read_text())
    assert written["code"] == code_sha()
    assert written["rounds"] == [{"round": 1}]
