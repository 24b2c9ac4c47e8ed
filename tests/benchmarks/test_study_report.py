"""What the study's report makes of cells."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study_report import read, render

ROOT = Path(__file__).parents[2]
FACTS = {"headroom": 0.1, "headroom_se": 0.01, "personal": 0.5, "session_reward": 50.0, "requests": 13.0, "residual_sd": 9.0}
WORLDS = {"personalised": FACTS | {"dimensions": 10, "features": 24}}


def test_table(cell):
    cells = [cell(lifts=(-0.02, 0.04), seed=1), cell(lifts=(0.01, 0.06), seed=2), cell("naive", (0.0, -0.03), pooled=False)]
    cells[0]["rounds"][0]["warnings"] = ["no_signal"]
    cells[2]["rounds"][1]["learned"]["flat"] = True
    said = render(cells, WORLDS)
    rows = [row for row in said.splitlines() if row.startswith("slate_replay ")]
    assert rows[0].split()[1:] == ["D3", "20,000", "0.3", "2", "-0.5", "(1.6)", "+5.0", "(1.2)"]
    # worst end, worst round, half of the headroom, GAUC, valid, duration, nothing that takes steps, one warning of four rounds
    assert rows[1].split()[5:9] == ["+4.0", "%", "-2.0", "50%"]
    assert rows[1].split()[-5:] == ["0.550", "+2.0", "-1.0", "-", "1/4"]
    assert "of the model-free ceiling" in said
    last = [row for row in said.splitlines() if row.startswith("naive (fresh)")][-1]
    assert last.split()[-2:] == ["1/1", "0/2"]
    head, *_ = [row for row in said.splitlines() if "worst end" in row]
    assert head.index("ceiling") + len("ceiling") == rows[1].index("0.550") - 2
    assert "forms of the code" not in said


def test_table_of_a_world_without_facts(cell):
    said = render([cell(world="elsewhere")], WORLDS)
    assert "elsewhere: headroom not known" in said


def test_table_says_where_code_is_mixed(cell):
    """Cells that do not say are one form of their own."""
    cells = [
        cell(seed=1),
        cell(seed=2),
        cell(seed=3, code="aa"),
        cell("naive", seed=1, code="aa"),
        cell("naive", seed=2, code="aa"),
    ]
    said = render(cells, WORLDS).splitlines()
    assert [row for row in said if "forms" in row] == ["slate_replay D3 20,000: cells of 2 forms of the code"]
    assert said[-1] == "slate_replay D3 20,000: cells of 2 forms of the code"


def test_cells_of_the_older_form_are_read():
    """Those of the repository name no code."""
    cells = read(ROOT / "docs" / "results" / "study")
    assert any("code" not in cell for cell in cells)
    assert "personalised: headroom not known" in render(cells, {})
