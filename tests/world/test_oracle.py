"""The oracle: values of actual policies, in the order that their kinds promise, found again from their file."""

from __future__ import annotations

import pytest

from mtf.errors import InputError
from mtf.world import oracle
from mtf.world.truth import true_value
from mtf.world.world import World

EFFORT = oracle.Effort(requests=1500, generations=12, steps=60, users=1000)


@pytest.fixture(scope="module")
def found():
    world = World.make("default", users=3000, items=400, scalars={"n_candidates": 12})
    return world, *oracle.find(world, users=2500, restarts=1, effort=EFFORT)


def test_the_best_policy_beats_production_and_no_reported_value_is_made_up(found):
    world, figures, policies = found
    best = figures.gain("best")
    assert best.lift > 0.05
    assert best.z > 3
    again = true_value(world, policies["best"], 2500, oracle.REPORT_SEED)
    assert (again.mean, again.se) == figures.values["best"]
    assert figures.policies["best"] == policies["best"].sha
    start = true_value(world, policies["start"], 2500, oracle.REPORT_SEED)
    assert again.lift_over(start) == (best.lift, best.se)


def test_it_comes_back_from_its_file(found, tmp_path):
    _, figures, _ = found
    oracle.write(figures, tmp_path / "oracle.json")
    assert oracle.read(tmp_path / "oracle.json") == figures
    assert oracle.share_of_headroom(figures.gain("best").lift / 2, figures) == pytest.approx(0.5)
    with pytest.raises(InputError, match="mtf world oracle"):
        oracle.read(tmp_path / "none.json")
    text = "\n".join(oracle.lines(figures, 0.9))
    for name in figures.values:
        assert name in text
