"""What the study's report makes of cells: against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ceiling import ceiling
from benchmarks.study_report import (
    TRUTH_SEED,
    Difference,
    average,
    holm,
    over_seeds,
    p_value,
    paired,
    primary,
    read,
    render,
    steps_of,
)

ROOT = Path(__file__).parents[2]
FACTS = {"headroom": 0.1, "headroom_se": 0.01, "headroom_discounted": 0.1, "personal_discounted": 0.5, "value": 50.0}
FACTS |= {"discounted_requests": 13.0, "requests": 13.0, "residual_sd": 9.0}
WORLDS = {"personalised": FACTS | {"dimensions": 10, "features": 24}}


@pytest.fixture
def few_seeds(monkeypatch):
    """p-values by hand need few seeds; what is printed asks for five."""
    monkeypatch.setattr("benchmarks.study_report.FEWEST", 2)


def line(text: str, *words: str) -> str:
    """The one line of `text` that holds all the words."""
    (found,) = [row for row in text.splitlines() if all(word in row for word in words)]
    return found


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_over_seeds_judges_do_not_average_out():
    mean, se = over_seeds(np.array([0.01, 0.03]), np.array([0.02, 0.04]))
    assert mean == pytest.approx(0.02)
    assert se == pytest.approx(math.hypot(0.01, 0.03))
    mean, se = over_seeds(np.array([0.05]), np.array([0.02]))
    assert mean == 0.05 and math.isnan(se)


def test_p_values_by_hand():
    """Closed forms of Student's distribution function for 1, 2 and 4 degrees of freedom."""
    assert p_value([Difference(2, 0.02, 0.01, 0.0)]) == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert p_value([Difference(3, -0.02, 0.01, 0.0)]) == pytest.approx(1 - 2 / math.sqrt(2 + 4))
    # both parts alike, two seeds: (a^2 + a^2)^2 / (a^4 / 1) = 4 degrees of freedom, t = sqrt 2
    assert p_value([Difference(2, 0.02, 0.01, 0.01)]) == pytest.approx(1 - 0.75 * math.sqrt(2 / 1.5) * (1 - 2 / 1.5 / 12))


def test_p_value_at_the_edges():
    assert p_value([Difference(2, 0.0196, 0.0, 0.01)]) == pytest.approx(math.erfc(1.96 / math.sqrt(2)))  # judges alone: normal
    assert p_value([Difference(5, 0.0, 0.0, 0.0)]) == 1.0
    assert p_value([Difference(5, 0.01, 0.0, 0.0)]) == 0.0


def test_judges_error_widens():
    alone, both = (p_value([Difference(10, 0.03, 0.008, judges)]) for judges in (0.0, 0.006))
    assert alone < both


def test_average_over_worlds_by_hand():
    parts = [Difference(2, 0.01, 0.03, 0.006), Difference(2, 0.03, 0.04, 0.008)]
    n, mean, seeds, judges = average(parts)
    assert (n, mean, seeds, judges) == (4, pytest.approx(0.02), pytest.approx(0.025), pytest.approx(0.005))
    # two worlds of two seeds, spread alike: two degrees of freedom, se .01 sqrt 2 / 2
    t = 0.02 / (0.01 / math.sqrt(2))
    assert p_value([Difference(2, 0.02, 0.01, 0.0)] * 2) == pytest.approx(1 - t / math.sqrt(2 + t**2))


@pytest.mark.usefixtures("few_seeds")
def test_paired_by_hand(cell):
    """Seeds 1 and 2 are common: away .01 and .03. Judges: .01, the larger of naive's mean of .008 and .012 and .004."""
    cells = [
        cell("slate_replay", (0.9, 0.05), seed=1, se=0.004),
        cell("slate_replay", (0.9, 0.06), seed=2, se=0.004),
        cell("slate_replay", (0.9, 0.70), seed=3, se=0.5),
        cell("naive", (0.04,), seed=1, se=0.008),
        cell("naive", (0.03,), seed=2, se=0.012),
        cell("naive", (0.99,), seed=1, users=2_000),
        cell("naive", (0.99,), seed=3, world="null"),
        cell("naive", (0.99,), seed=3, pooled=False),
    ]
    said = paired(cells, ["personalised"], [("slate_replay@D3", "naive@D3")], 20_000)
    assert "  2 seeds   +2.00 (seeds 1.00, judges 1.00)   p 0.2302" in line(said, "slate_replay@D3", "- naive@D3")
    assert "a second family" in said
    assert "code" not in said


def test_no_p_of_few_seeds_and_a_family_is_as_large_as_it_was_asked(cell):
    cells = [
        cell(name, (lift + seed / 1000,), seed=seed) for name, lift in (("naive", 0.0), ("iql", 0.06)) for seed in range(1, 6)
    ]
    cells += [cell(lifts=(0.05 + seed / 500,), seed=seed) for seed in range(1, 6)]
    cells += [cell("bc", (0.0,), seed=seed) for seed in range(1, 5)]
    pairs = [("slate_replay@D3", f"{name}@D3") for name in ("naive", "iql", "bc")]
    said = paired(cells, ["personalised"], pairs, 20_000, asked=7)
    assert "after Holm over the 7 asked for" in said
    spread = np.std(np.arange(5) / 1000, ddof=1) / math.sqrt(5)
    p = [p_value([Difference(5, mean, spread, 0.006)]) for mean in (0.053, -0.007)]
    assert line(said, "- naive@D3").endswith(f"p {7 * p[0]:.4f}")
    assert line(said, "- iql@D3").endswith(f"p {min(1, 6 * p[1]):.4f}")
    assert line(said, "- bc@D3").endswith("p -")


def test_judges_by_their_groups_by_hand(cell):
    """The start's groups say 40 and 60, mean 50. One is .1 above the other in the mean over two seeds, and groups say
    (4, 8) and (2, 6) of it: in the mean 3 and 7, less the .1 of what they say of the start -1 and 1, of which the mean has
    a standard error of 1, a share of .02."""
    cells = [cell(lifts=(lift,), seed=seed) for seed, lift in ((1, 0.12), (2, 0.08))]
    cells += [cell("naive", (0.0,), seed=seed) for seed in (1, 2)]
    for made, said in zip(cells, ([46.0, 66.0], [42.0, 66.0], [42.0, 58.0], [40.0, 60.0]), strict=True):
        made["judges"] = [40.0, 60.0]
        made["rounds"][-1]["judges"] = said
    pairs = [("slate_replay@D3", "naive@D3"), ("naive@D3", "start")]
    rows = paired(cells, ["personalised"], pairs, 20_000)
    assert "(seeds 2.00, judges 2.00)" in line(rows, "- naive@D3")
    # (2, -2) and (0, 0): 1 and -1
    assert "(seeds 0.00, judges 2.00)" in line(rows, "- start")
    # a third seed whose cells do not say: those of the two that do stand for it
    more = [*cells, cell(lifts=(0.1,), seed=3), cell("naive", (0.0,), seed=3)]
    assert "  3 seeds  +10.00 (seeds 1.15, judges 2.00)" in line(paired(more, ["personalised"], pairs, 20_000), "- naive@D3")
    del cells[0]["judges"]
    assert "(seeds 2.00, judges 0.60)" in line(
        paired(cells, ["personalised"], [("slate_replay@D3", "naive@D3")], 20_000), "- naive"
    )


@pytest.mark.parametrize("what", ["world_sha", "truth_users"])
def test_cells_of_other_worlds_or_judges_are_not_compared(cell, what):
    cells = [cell(learner, seed=seed) | {what: n} for n, learner in enumerate(("slate_replay", "naive")) for seed in (1, 2)]
    with pytest.raises(SystemExit, match=f"cells with {what} 0 and 1; compare those of one"):
        paired(cells, ["personalised"], [("slate_replay@D3", "naive@D3")], 20_000)


@pytest.mark.usefixtures("few_seeds")
def test_by_discounted_reward_judges_groups_do_not_count(cell):
    """They said session reward: the error is that of a lift, the larger of the two policies'."""
    cells = [cell(name, (0.5,), seed=seed) for name in ("slate_replay", "naive") for seed in (1, 2)]
    for c, value, se in zip(cells, (0.03, 0.05, 0.01, 0.01), (0.001, 0.003, 0.004, 0.004), strict=True):
        c["rounds"][-1] |= {"discounted": value, "discounted_se": se, "judges": [1.0, 2.0]}
        c["judges"] = [1.0, 1.0]
    said = paired(cells, ["personalised"], [("slate_replay@D3", "naive@D3")], 20_000, measure="discounted")
    assert "difference of true discounted reward" in said
    assert "  2 seeds   +3.00 (seeds 1.00, judges 0.40)" in said


def test_cells_that_do_not_say_by_which_draw_were_judged_by_the_usual_one(cell):
    cells = [cell(learner, seed=seed) for learner in ("slate_replay", "naive") for seed in (1, 2)]
    pairs = [("slate_replay@D3", "naive@D3")]
    cells[0]["truth_seeds"] = [TRUTH_SEED]
    paired(cells, ["personalised"], pairs, 20_000)
    cells[0]["truth_seeds"] = [7, 8]
    with pytest.raises(SystemExit, match=rf"cells with truth_seeds \[7, 8\] and \[{TRUTH_SEED}\]; compare"):
        paired(cells, ["personalised"], pairs, 20_000)


@pytest.mark.usefixtures("few_seeds")
def test_paired_with_the_start_takes_the_policys_own_error(cell):
    cells = [cell(lifts=(lift,), seed=seed, se=0.01) for seed, lift in ((1, 0.01), (2, 0.03))]
    said = paired(cells, ["personalised"], [("slate_replay@D3", "start")], 20_000)
    assert "  2 seeds   +2.00 (seeds 1.00, judges 1.00)   p 0.2302" in said


@pytest.mark.usefixtures("few_seeds")
def test_paired_over_worlds(cell):
    """Seeds are paired within a world: each has its own."""
    lifts = {"a": {1: (0.05, 0.04), 2: (0.05, 0.02)}, "b": {7: (0.01, 0.01), 8: (0.03, 0.01)}}
    cells = [
        cell(learner, (lift,), seed=seed, se=0.006, world=world)
        for world, seeds in lifts.items()
        for seed, both in seeds.items()
        for learner, lift in zip(("slate_replay", "naive"), both, strict=True)
    ]
    said = paired(cells, ["a", "b"], [("slate_replay@D3", "naive@D3")], 20_000)
    rows = [row for row in said.splitlines() if " - naive@D3" in row]
    assert [" ".join(row.split()[3:]) for row in rows] == [
        "a 2 seeds +2.00 (seeds 1.00, judges 0.60)",
        "b 2 seeds +1.00 (seeds 1.00, judges 0.60)",
        f"mean of 2 4 seeds +1.50 (seeds 0.71, judges 0.42) p {p_value([Difference(2, 0.015, 0.01, 0.006)] * 2):.4f}",
    ]


@pytest.mark.usefixtures("few_seeds")
def test_worlds_apart_are_comparisons_of_their_own_in_one_family(cell):
    lifts = {"a": 0.02, "b": 0.01}
    cells = [
        cell(learner, (0.05 - away + noise,), seed=seed, se=0.006, world=world)
        for world, lift in lifts.items()
        for learner, away, noises in (("slate_replay", 0, (0.001, -0.001)), ("naive", lift, (0, 0)))
        for seed, noise in zip((1, 2), noises, strict=True)
    ]
    said = paired(cells, ["a", "b"], [("slate_replay@D3", "naive@D3")], 20_000, apart=True)
    smaller, larger = (p_value([Difference(2, lift, 0.001, 0.006)]) for lift in (0.02, 0.01))
    rows = [" ".join(row.split()[3:]) for row in said.splitlines() if " - naive@D3" in row]
    assert rows == [
        f"a 2 seeds +2.00 (seeds 0.10, judges 0.60) p {2 * smaller:.4f}",
        f"b 2 seeds +1.00 (seeds 0.10, judges 0.60) p {max(2 * smaller, larger):.4f}",
    ]
    assert "Holm over the 2 given" in said


FIVE = {"naive@D3": 0.02, "linear_advantage@D3": 0.01, "corner@D3": -0.02, "slate_replay@D2": 0.05, "plug_in@D3": -0.09}


def family(cell, names=tuple(FIVE), **changes):
    """Three seeds of slate replay and of each that it is compared with."""
    lifts = {"slate_replay@D3": 0.055, **{name: FIVE[name] for name in names}}
    return [
        cell(name.split("@")[0], (lift + noise * rank,), seed=seed, exploration=name.split("@")[1], **changes)
        for rank, (name, lift) in enumerate(lifts.items())
        for seed, noise in ((1, 0.001), (2, 0.0), (3, -0.001))
    ]


@pytest.mark.usefixtures("few_seeds")
def test_primary_is_the_committed_family(cell):
    """The five of docs/study.md, corrected for five, from cells of the committed size and world alone."""
    cells = family(cell)
    others = [cell("iql", (0.5,), seed=seed) for seed in (1, 2, 3)]
    others += family(cell, world="null", users=20_000) + family(cell, users=100_000)
    said = primary(cells + others)
    assert [row.split()[2] for row in said.splitlines() if row.startswith("slate_replay@D3 ")] == list(FIVE)
    assert "personalised" in said and "Holm over the 5 given: the primary family" in said
    assert said == primary(cells)
    # seeds' error .001 / sqrt 3, judges' .006: what is left after Holm is five times the smallest, and D2's alone
    p = p_value([Difference(3, 0.005, 0.004 / math.sqrt(3), 0.006)])
    assert line(said, "- slate_replay@D2").endswith(f"+0.50 (seeds 0.23, judges 0.60)   p {p:.4f}")
    p = 2 * p_value([Difference(3, 0.035, 0.001 / math.sqrt(3), 0.006)])
    assert line(said, "- naive@D3").endswith(f"p {p:.4f}")


def test_missing_cells_are_all_named(cell):
    cells = family(cell, names=("naive@D3", "corner@D3", "slate_replay@D2"))
    cells.append(cell("plug_in", seed=1))
    with pytest.raises(SystemExit, match=r"20,000 users a day, 3 days, box 0\.3") as stop:
        primary(cells)
    assert str(stop.value).splitlines()[1:] == [
        "slate_replay@D3 / linear_advantage@D3 in personalised: 0",
        "slate_replay@D3 / plug_in@D3 in personalised: 1",
    ]


def test_table(cell):
    cells = [cell(lifts=(-0.02, 0.04), seed=1), cell(lifts=(0.01, 0.06), seed=2), cell("naive", (0.0, -0.03), pooled=False)]
    cells[0]["rounds"][0]["warnings"] = ["no_signal"]
    for number, of in enumerate(cells[2]["rounds"]):
        of["learned"]["flat"] = True
        # the first is of the form that kept a TD error: what was flat there says nothing of the critics
        of["held_out_error" if number else "held_out"] = [0.9, 0.8]
    said = render(cells, WORLDS)
    rows = [row for row in said.splitlines() if row.startswith("slate_replay ")]
    assert rows[0].split()[1:] == ["D3", "20,000", "0.3", "2", "-0.5", "(1.6)", "+5.0", "(1.2)"]
    # worst end, worst round, half of the headroom, GAUC, valid, duration, nothing that takes steps, one warning of four rounds
    assert rows[1].split()[5:9] == ["+4.0", "%", "-2.0", "50%"]
    assert rows[1].split()[-6:] == ["0.550", "+2.0", "-1.0", "-", "-", "1/4"]
    assert "of the model-free ceiling" in said
    # like for like: a quarter of what discounted reward has to give, beside the ceiling's share of it
    share = {
        "value": 50.0,
        "discounted_requests": 13.0,
        "requests": 13.0,
        "residual_sd": 9.0,
        "half_width": 0.3,
        "dimensions": 10,
    }
    few, every = (0.25 / ceiling(0.1, 0.5, 10_000, rounds=1, features=n, **share) for n in (5, 24))
    assert rows[1].split()[9:12] == [f"{few:.0%}", "to", f"{every:.0%}"]
    last = [row for row in said.splitlines() if row.startswith("naive (fresh)")][-1]
    assert last.split()[-5:] == ["4,000", "x", "1,024", "1/1", "0/2"]
    head, *_ = [row for row in said.splitlines() if "worst end" in row]
    assert head.index("ceiling") + len("ceiling") == rows[1].index("0.550") - 2
    assert "forms of the code" not in said


def test_steps_are_those_of_the_settings():
    assert steps_of("td3_bc:steps=9000:tau=0.05") == "9,000 x 512"
    assert steps_of("slate_replay:confirm=0") == "-"


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
    assert [row for row in said if "forms" in row] == said[-1:]
    assert said[-1] == "cells of several forms of the code (how many): slate_replay D3 20,000 (2)"


def test_paired_says_where_code_is_mixed(cell):
    """Also where each policy has one form, and not of seeds that the other lacks."""
    cells = [cell(lifts=(0.05 + seed / 100,), seed=seed, code="aa") for seed in (1, 2)]
    cells += [cell("naive", seed=seed, code="bb") for seed in (1, 2)] + [cell("corner", seed=seed, code="aa") for seed in (1, 2)]
    cells += [cell(seed=3, code="cc"), cell("iql", seed=1), cell("iql", seed=2)]
    pairs = [("slate_replay@D3", f"{other}@D3") for other in ("naive", "corner", "iql")]
    said = paired(cells, ["personalised"], pairs, 20_000).splitlines()
    assert [row for row in said if "forms" in row] == said[-1:]
    mixed = "slate_replay@D3 / naive@D3 (2), slate_replay@D3 / iql@D3 (2)"
    assert said[-1] == f"cells of several forms of the code (how many): {mixed}"


def test_cells_of_the_older_form_are_read():
    """Those of the repository name no code."""
    cells = read(ROOT / "docs" / "results" / "study")
    assert any("code" not in cell for cell in cells)
    assert "personalised: headroom not known" in render(cells, {})
