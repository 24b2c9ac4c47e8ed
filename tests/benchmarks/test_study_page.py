"""The study's page: numbers worked out by hand, and the committed page beside the committed cells."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.study import WORLDS as FACTS
from benchmarks.study_page import families, figure, moves, overview, page, write
from benchmarks.study_report import read

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def facts():
    return json.loads(FACTS.read_text())


@pytest.fixture
def cells(cell):
    return [
        cell("slate_replay", (0.01, 0.02, 0.04), seed=1),
        cell("slate_replay", (0.01, 0.02, 0.06), seed=2),
        cell("naive", (0.0, 0.01, 0.01), seed=1),
        cell("naive", (0.0, 0.01, 0.02), seed=2),
        cell("naive", (0.07,), seed=1, exploration="D2"),
        cell("naive:lam=0", (0.5,), seed=1),
        cell("naive", (0.9,), seed=1, users=2000),
        cell("slate_replay", (0.9,), seed=3, pooled=False),
    ]


def test_overview_by_hand(cells):
    """Mean .05, spread over seeds .01, judges .006; settings, other sizes and fresh rounds are not the learner as it ships."""
    error = 100 * math.hypot(0.01, 0.006)
    rows = overview(cells).splitlines()
    assert f"| `slate_replay` | +5.0 +- {error:.1f} (+4.0; 2) |  |  |  |  |" in rows
    assert "| `naive` | +7.0 (one seed) |  |  |  |  |" in rows
    assert not [row for row in rows if "90.0" in row or "50.0" in row]
    assert [row for row in rows if row.startswith("###")] == ["### Three rounds (D3)", "### One box (D2)"]


def test_by_discounted_reward_another_order_may_hold(cells):
    """What is printed is the discounted lift and its own error."""
    for c, value in zip(cells, (0.01, 0.03, 0.04, 0.04), strict=False):
        c["rounds"][-1] |= {"discounted": value, "discounted_se": 0.002}
    rows = overview(cells[:4], "discounted").splitlines()
    assert rows[0].startswith("True discounted reward over the start")
    assert [row for row in rows if row.startswith("| `")] == [
        "| `naive` | +4.0 +- 0.2 (+4.0; 2) |  |  |  |  |",
        f"| `slate_replay` | +2.0 +- {100 * math.hypot(0.01, 0.002):.1f} (+1.0; 2) |  |  |  |  |",
    ]


def test_each_world_counts_once(cell):
    """Two worlds, the better learner of one has many seeds there: order is by the mean over worlds."""
    many = [cell("es", (0.03,), seed=seed) for seed in range(1, 9)] + [cell("es", (0.0,), world="null")]
    few = [cell("bc", (0.02,)), cell("bc", (0.02,), world="null")]
    names = re.findall(r"^\| `(\w+)` \|", overview(many + few), re.MULTILINE)
    assert names == ["bc", "es"]


def test_moves_by_hand(cell):
    """Five seeds: the default moves .01, td3 .02 and .01 more each seed: mean .04, differences .01 to .05, t 3 / sqrt(.5)."""
    cells = []
    for seed in range(1, 6):
        for learner, ends in (("slate_replay", 0.01), ("td3", 0.01 * (seed + 1)), ("corner", 0.5)):
            made = cell(learner, (0.0, 0.0), world="null", seed=seed)
            for of, move in zip(made["rounds"], (0.3 if learner == "slate_replay" else 0.0, ends), strict=True):
                of["step"] = {"mean_abs_move": move}
            cells.append(made)
    table = moves(cells)[-1].splitlines()
    t, error = 3 / math.sqrt(0.5), 0.01 * math.sqrt(0.5)
    p = 2 * stats.t.sf(t, 4) * 7
    assert [row for row in table if row.startswith("| `")] == [
        "| `slate_replay` | 5 | 0.010 +- 0.000 | 0.300 |  |  |",
        f"| `td3` | 5 | 0.040 +- {error:.3f} | 0.060 | +0.030 +- {error:.3f} | {p:.4f} |",
        "| `corner` | 5 | 0.500 +- 0.000 | 0.500 | +0.490 +- 0.000 |  |",
    ]
    assert moves([c for c in cells if c["learner"] != "slate_replay"]) == []


def test_page_asks_what_has_two_seeds(cells, facts):
    text = page(cells, facts, "study.svg")
    assert "slate_replay@D3              - naive@D3                       2 seeds   +3.50" in text
    assert "slate_replay@D3              - corner@D3" not in text
    assert "### global_only" not in text


def test_figure_has_every_learner_and_the_same_bytes_twice(cells, facts):
    drawn = figure(cells, facts)
    assert drawn == figure(cells, facts)
    assert all(name in drawn for name in ("slate replay", "naive", "headroom found", "global_only"))
    assert "corner rule" not in drawn


def test_families_ask_each_pair_once():
    for question, world, pairs in families():
        assert len(set(pairs)) == len(pairs), (question, world)


def test_write_is_page_and_figure(cells, facts, tmp_path):
    write(cells, facts, tmp_path / "page.md")
    assert "(page.svg)" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.svg").read_text().startswith("<?xml")


def test_committed_page_is_what_the_committed_cells_say(facts):
    assert (RESULTS / "study.md").read_text() == page(read(RESULTS / "study"), facts, "study.svg")
