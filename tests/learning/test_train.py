"""Learners on a tiny recommender with known slopes (tests/evaluation/conftest.py): what they find, and what they must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mtf.errors import InputError
from mtf.learning import slate_replay
from mtf.learning.problem import prepare
from mtf.learning.run import train_on
from mtf.learning.value import fit_value
from mtf.policy import Lineage, Policy, constant_policy
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions

SLOPE = np.array([0.8, -0.8, 0.0])


def trained(data, algorithm, **changes):
    return train_on(data, None, algorithm=algorithm, baseline="logged", progress=False, **changes)


@pytest.mark.parametrize("algorithm", ["linear_advantage", "integrated_rl"])
def test_the_policy_moves_along_the_true_slope(algorithm):
    overrides = {"steps": "600", "batch": "256"} if algorithm == "integrated_rl" else {}
    found = trained(make_sessions(6000, seed=1, slope=SLOPE), algorithm, overrides=overrides)
    move = found.policy.act(np.zeros((1, 3), np.float32))[0] / 0.3
    assert move[0] > 0.15
    assert move[1] < -0.15
    # the ensemble has no evidence gate of its own: noise moves it further than the closed form
    assert abs(move[2]) < min(abs(move[0]), abs(move[1])) / (2 if algorithm == "linear_advantage" else 1)
    assert found.report["step"]["rms_y"] <= 0.5 * 1.05


def test_the_step_is_kept_short_in_the_box_as_it_is_cut_at_the_edge():
    data = make_sessions(4000, seed=8, slope=3 * SLOPE)
    # the centre lies near the edge: the box is .3 below and .05 above
    moved = {name: getattr(data, name) + np.float32(0.95) for name in ("action", "center", "next_center")}
    low, high = np.full_like(data.lower, -0.3), np.full_like(data.upper, 0.05)
    action = np.minimum(moved["action"], 1.0)
    edge = replace(data, **(moved | {"action": action, "lower": low, "upper": high, "next_lower": low, "next_upper": high}))
    found = trained(edge, "linear_advantage")
    step, wanted = found.report["step"], found.report["algorithm"]["rms_wanted"]
    assert step["rms_y"] <= 0.5
    assert step["shrunk"] < 1
    # the box is .35 wide, .58 of what its half-widths say: a move in them is as much shorter than its position in the box
    assert step["rms_move"] == pytest.approx(step["rms_y"] * 0.35 / 0.6, rel=0.02)
    assert step["of_wanted"] == pytest.approx(step["rms_move"] / wanted)
    assert step["of_wanted"] < 0.8
    assert 0.5 < found.report["algorithm"]["sure_edge_share"] <= 1
    assert not any(warning.startswith("corner_everywhere") for warning in found.report["warnings"])


@pytest.mark.parametrize("dimensions", [3, 10])
def test_without_signal_the_policy_stays(dimensions):
    """Reward independent of the action: mean |mu - centre| / half-width < .1, over data sets (one alone may be unlucky)."""
    states = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    moves = []
    for seed in range(6):
        found = trained(make_sessions(2000, seed=20 + seed, slope=np.zeros(dimensions)), "linear_advantage")
        moves.append(np.abs(found.policy.act(states)).mean() / 0.3)
    assert np.mean(moves) < 0.1


@pytest.mark.parametrize("algorithm", ["linear_advantage", "integrated_rl", "bc"])
def test_same_seed_same_bundle(algorithm):
    data = make_sessions(800, seed=3, slope=SLOPE)
    overrides = {"steps": "60"} if algorithm == "integrated_rl" else {}
    first, second = (trained(data, algorithm, seed=5, overrides=overrides) for _ in range(2))
    assert first.sha == second.sha


def test_a_value_never_reads_what_actions_move():
    data = make_sessions(1500, seed=4, slope=SLOPE)
    masked = replace(data, value_mask=np.array([True, True, False]))
    noise = np.random.default_rng(0).normal(size=len(data)).astype(np.float32)
    other = replace(masked, state=np.column_stack([masked.state[:, :2], noise]).astype(np.float32))
    values = [fit_value(prepare(d, "logged")).v for d in (masked, other)]
    assert np.allclose(*values, atol=1e-5)


def test_wrong_input_is_named_before_time_is_spent():
    data = make_sessions(200, seed=5, slope=SLOPE)
    with pytest.raises(InputError, match="`nothing` is not known"):
        trained(data, "nothing")
    with pytest.raises(InputError, match="no such setting"):
        trained(data, "linear_advantage", overrides={"kapa": "2"})
    with pytest.raises(InputError, match=r"none of \d+ rows explored"):
        trained(make_sessions(200, seed=5, slope=SLOPE, half_width=0.0), "linear_advantage")


def with_candidates(n_old, n_new, spec, old, new):
    """One-request sessions of two policies, explored around each; the reward is what the shown items are worth."""
    from mtf import box
    from mtf.fusion import rank

    rng = np.random.default_rng(0)
    n = n_old + n_new
    data = make_sessions(n, seed=6, slope=np.zeros(spec.action_width), end=1.0, longest=1)
    scores = rng.random((n, 8, 2)).astype(np.float16).astype(np.float32)
    center = np.where(np.arange(n)[:, None] < n_old, old.act(data.state), new.act(data.state))
    lower, upper = box.offsets(center, 0.4)
    action = box.sample(rng, center, lower, upper)
    shown = rank(spec, action, scores)
    worth = np.take_along_axis(scores[..., 1], shown, 1).sum(axis=1) + rng.normal(0, 0.1, n)
    sha = np.where(np.arange(n) < n_old, old.sha, new.sha).astype(object)
    payload = pa.chunked_array([pa.array([s.astype("<f2").tobytes() for s in scores], pa.binary())])
    changes = {"action": action, "center": center, "lower": lower, "upper": upper, "next_center": center, "policy_sha": sha}
    changes |= {"next_lower": lower, "next_upper": upper, "reward": worth[:, None].astype(np.float32), "cand_scores": payload}
    return replace(data, spec=spec, **changes)


def test_slate_replay_finds_which_score_matters_also_over_rounds(monkeypatch, tmp_path):
    """Worth is the second score alone: its power must rise against the first's. Chunks hold rows of one round only."""
    spec = small_spec()
    lineage = Lineage(algorithm="test")
    old, new = (constant_policy(np.full(4, c), 3, spec=spec, lineage=lineage) for c in (0.0, 0.1))
    monkeypatch.setattr(slate_replay, "CHUNK", 500)
    data = with_candidates(2000, 4000, spec, old, new)
    new.write(tmp_path / "new")
    found = train_on(data, None, algorithm="slate_replay", baseline=tmp_path / "new", progress=False)
    assert found.report["algorithm"]["used"] == "slate_replay"
    move = (found.policy.act(data.state[:50]) - 0.1).mean(axis=0)
    assert move[1] > 0.05
    assert move[0] < 0


def test_slate_replay_falls_back_where_no_candidates_were_logged():
    found = trained(make_sessions(1500, seed=7, slope=SLOPE), "slate_replay")
    assert found.report["algorithm"]["used"] == "linear_advantage"
    assert any("candidates_missing" in w for w in found.report["warnings"])


def test_a_training_that_takes_no_step_gives_the_deployed_network_itself(tmp_path):
    """Fitted again, a network with a hidden layer would be another one, and the day's own rows a round old."""
    rng = np.random.default_rng(0)
    arrays = {"mean": np.zeros(3), "scale": np.ones(3), "skip": np.zeros((3, 3)), "bias_0": np.zeros(8), "bias_1": np.zeros(3)}
    arrays |= {"weight_0": rng.normal(size=(3, 8)), "weight_1": 0.1 * rng.normal(size=(8, 3))}
    deployed = Policy(arrays, spec=None, lineage=Lineage(algorithm="test"))
    sha = deployed.write(tmp_path / "deployed")
    data = make_sessions(800, seed=3, slope=np.zeros(3))
    center = deployed.act(data.state)
    at = {"center": center, "action": data.action - data.center + center, "next_center": deployed.act(data.next_state)}
    data = replace(data, **at, policy_sha=np.full(len(data), sha, object))
    found = train_on(
        data, None, algorithm="linear_advantage", baseline=tmp_path / "deployed", overrides={"confirm": "1000"}, progress=False
    )
    assert any(warning.startswith("no_step") for warning in found.report["warnings"])
    assert found.report["step"]["rms_y"] == 0
    np.testing.assert_array_equal(found.policy.act(data.state), center)
    assert found.policy.lineage.parent == sha
    # a step is still a network of its own
    moved = train_on(data, None, algorithm="corner", baseline=tmp_path / "deployed", progress=False)
    assert moved.report["step"]["rms_y"] > 0.1
