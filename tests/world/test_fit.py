"""A world fitted to the real log; skipped, saying so, where MTF_KUAIRAND does not name its folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.policy import bootstrap_policy
from mtf.world.fit import fit_world
from mtf.world.truth import true_value
from mtf.world.world import World


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = os.environ.get("MTF_KUAIRAND")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MTF_KUAIRAND does not name the folder of the KuaiRand Parquet files")
    out = tmp_path_factory.mktemp("fitted") / "world"
    return fit_world(Path(folder), out, seed=0, progress=False), out


@pytest.mark.kuairand
def test_the_fitted_world_is_made_of_the_log(fitted):
    world, out = fitted
    assert world.params.kind == "fitted"
    assert world.n_users > 20_000
    assert world.n_items > 5_000
    labels = {source.label for source in world.params.sources.values()}
    assert labels == {"learned", "borrowed", "assumed"}
    assert world.params.sources["leave_base"].label == "borrowed"
    assert world.params.sources["leave_elasticity"].label == "assumed"
    start = true_value(World.load(out), bootstrap_policy(world.spec), 2000, 5)
    assert start.metrics["requests"] == pytest.approx(13.55, rel=0.15)


@pytest.mark.kuairand
def test_responses_under_exposure_have_the_logs_rates(fitted):
    """Candidates are drawn by the log's exposure: their mean response is the log's, .44 clicked and .38 watched over 10 s."""
    world, _ = fitted
    users = world.sample_users(3000, "2026-03-02", 1)
    items = world.candidates(np.arange(3000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    expected = world.expected(world.truth(users, items), items)
    behaviours = expected[0] if isinstance(expected, tuple) else expected
    watch, click, valid, like, _ = behaviours.reshape(-1, 5).mean(axis=0)
    assert 0.3 < click < 0.6
    assert 0.25 < valid < 0.55
    assert 0.005 < like < 0.04
    assert 10 < watch < 40


def test_a_folder_without_the_log_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        fit_world(tmp_path, tmp_path / "out", progress=False)


def test_what_is_no_world_is_refused_before_the_log_is_read(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no world\.json and would be deleted"):
        fit_world(tmp_path / "no_log", tmp_path, progress=False)
    assert (tmp_path / "mine.txt").read_text() == "mine"
