"""Slate replay on one-request sessions with logged candidates, where the slate's worth is known."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtf import box
from mtf.errors import InputError
from mtf.exploration.noise import sample
from mtf.fusion import rank
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.ridge import Moments, empirical_bayes
from mtf.learning.slate_replay import Replay, SlateReplayConfig, direct_effect, learn
from mtf.learning.value import fit_value
from mtf.policy import Lineage, constant_policy
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions
from tests.learning.test_train import with_candidates

SPEC = small_spec()


@pytest.fixture(scope="module")
def data():
    start = constant_policy(np.zeros(4), 3, spec=SPEC, lineage=Lineage(algorithm="t"))
    return with_candidates(10, 2500, SPEC, start, start)


def learned(data, **changes):
    problem = prepare(data, "logged")
    return learn(problem, fit_value(problem), SlateReplayConfig(**changes), seed=0, progress=Progress(False))


def test_slopes_come_from_replay_with_less_noise_than_from_rewards(data):
    from mtf.learning.diagnostics import slope_tests

    found = learned(data)
    assert found.report["used"] == "slate_replay"
    assert found.report["direct_effect"]["max_z"] < 3
    problem = prepare(data, "logged")
    direct = slope_tests(problem, fit_value(problem))
    slope, sd = np.array(found.report["global_slope"]), np.array(found.report["global_slope_sd"])
    # the same slopes, each within its errors, and a fraction of the error
    apart = (slope - direct["delta_slope"]) / np.hypot(sd, direct["delta_slope_se"])
    assert np.abs(apart).max() < 4
    assert (sd < 0.7 * np.array(direct["delta_slope_se"])).all()
    move = found.action.mean(axis=0)
    assert move[1] > 0.05 > 0 > move[0]
    # and the truth: the reward is the sum of the shown watch scores, its slope 3 E[u r] over actions drawn afresh
    rng = np.random.default_rng(7)
    scores, count = data.candidates(np.arange(len(data)))
    true = np.zeros(4)
    for _ in range(20):
        u = rng.uniform(-1, 1, (len(data), 4))
        shown = rank(SPEC, data.center + 0.4 * u, scores, count)
        worth = np.take_along_axis(scores[..., 1], shown, 1).sum(axis=1)
        true += 3 * (u * (worth - worth.mean())[:, None]).mean(axis=0) / 20
    np.testing.assert_allclose(slope, true, atol=0.25 * np.abs(true).max())


def test_an_effect_past_the_slate_is_noticed_and_the_closed_form_takes_over(data):
    """The bias dimensions hardly move a slate; a reward that they move directly cannot come through it."""
    direct = replace(data, reward=(data.reward + 1.5 * data.action[:, 3:]).astype(np.float32))
    found = learned(direct)
    assert found.report["used"] == "linear_advantage"
    assert found.report["direct_effect"]["max_z"] > 3
    assert found.report["warnings"][0].startswith("mediation_fails")
    assert found.action.mean(axis=0)[3] > 0.1
    # asked not to mind, it stays with replay
    assert learned(direct, max_z=1e6).report["used"] == "slate_replay"


def test_without_half_of_the_candidates_it_falls_back_and_says_so(data):
    import pyarrow as pa

    some = data.cand_scores.to_pylist()
    some[: int(0.6 * len(some))] = [None] * int(0.6 * len(some))
    found = learned(replace(data, cand_scores=pa.chunked_array([pa.array(some, pa.binary())])))
    assert found.report["used"] == "linear_advantage"
    assert "candidates_missing" in found.report["warnings"][0]


def test_the_plug_in_reward_is_the_prior_and_can_be_left_out(data):
    behaviour = np.repeat(data.reward, 3, axis=1) * np.array([100.0, 0.0, 0.0], np.float32)
    paid = replace(data, behaviour=behaviour)
    found = learned(paid)
    # what is watched is brought to its level by one factor
    assert found.report["plug_in_scale"]["watch"] == pytest.approx(100, rel=0.02)
    assert np.array(found.report["plug_in_slope"])[1] > 0
    plain = learned(paid, plug_in=False)
    assert plain.report["plug_in_scale"] == {}
    assert not np.any(plain.report["plug_in_slope"])


def test_more_draws_are_smoother_and_the_seed_decides(data):
    few = data.select(data.session < 600)
    a, b = learned(few), learned(few)
    np.testing.assert_array_equal(a.action, b.action)
    problem = prepare(few, "logged")
    other = learn(problem, fit_value(problem), SlateReplayConfig(), seed=1, progress=Progress(False))
    assert (other.action != a.action).any()


def replay(data, draws, seed=0):
    problem = prepare(data, "logged")
    rows = np.arange(len(data))
    return Replay(problem, fit_value(problem), SlateReplayConfig(draws=draws), rows, seed, Progress(False))


def test_slopes_and_curves_do_not_depend_on_how_many_draws_find_them(data):
    """A draw that is judged by a mean which holds it loses 2 / draws of its curve: half of it at 4."""
    few, many = replay(data, 4), replay(data, 32)
    scale = np.tile(few.scale / many.scale, 2) ** np.repeat([1, 2], len(few.scale))
    second = few.second[:, : len(scale)] * scale
    wanted = many.second[:, : len(scale)]
    assert np.sum(second * wanted) / np.sum(wanted**2) == pytest.approx(1, abs=0.1)
    first, expected = few.slopes[:, 0, : len(scale)] * scale, many.slopes[:, 0, : len(scale)]
    assert np.sum(first * expected) / np.sum(expected**2) == pytest.approx(1, abs=0.05)
    with pytest.raises(InputError, match="draws=3: keep it even and at least 4"):
        replay(data, 3)


def test_a_chunk_may_hold_users_of_one_half_alone(data, monkeypatch):
    """The last chunk of a day can be one request: the slopes' two halves then do not both have rows in it."""
    few = with_candidates(11, 50, SPEC, *[constant_policy(np.zeros(4), 3, spec=SPEC, lineage=Lineage(algorithm="t"))] * 2)
    whole = replay(few, 4)
    monkeypatch.setattr("mtf.learning.slate_replay.CHUNK", len(few) - 1)
    chunked = replay(few, 4)
    np.testing.assert_allclose(chunked.grams, whole.grams, rtol=1e-5)
    assert np.isfinite(chunked.slopes).all()


def test_a_wider_range_of_logged_actions_is_replayed_in_the_box_now(data):
    """Rows that say they were drawn from twice the box: slopes are those of the box now."""
    wide = replace(data, lower=np.float32(2) * data.lower, upper=np.float32(2) * data.upper)
    width = np.full(4, 0.4, np.float32)
    found = []
    for of in (data, wide):
        problem = prepare(of, "logged", half_width=width)
        found.append(
            Replay(problem, fit_value(problem), SlateReplayConfig(), np.arange(len(of)), 0, Progress(False)).slopes[:, 0]
        )
    np.testing.assert_allclose(found[0], found[1], atol=0.02 * np.abs(found[0]).max())


def test_what_the_action_did_has_mean_0_whatever_the_draws_and_the_box_now(data):
    """l~ and l~^2 are less their means over the box that the action was drawn from: else they would speak of states, too."""
    rows = np.arange(len(data))
    for half, draws in ((0.4, 4), (0.4, 12), (0.2, 4)):
        problem = prepare(data, "logged", half_width=np.full(4, half, np.float32))
        made = Replay(problem, fit_value(problem), SlateReplayConfig(draws=draws), rows, 0, Progress(False))
        effects = made._chunk(rows)[0][:, len(made.nuisance) : len(made.nuisance) + 2 * len(made.scale)]
        assert np.abs(effects.mean(0) / effects.std(0)).max() < 3.5 / np.sqrt(len(rows)), (half, draws)


def test_a_score_that_all_candidates_share_does_no_harm():
    """A score of the user, not of the item, which actions move by rounding alone; the reward is the shown `watch` scores."""
    spec = small_spec(
        objectives=("click", "watch", "like"),
        power_low=(0.0,) * 3,
        power_high=(2.0,) * 3,
        bias_low=(0.001, 0.01, 0.001),
        bias_high=(1.0, 10.0, 1.0),
        start=(0.0,) * 6,
        behaviours=("watch", "click", "valid", "like"),
    )
    n, rng = 4000, np.random.default_rng(0)
    scores = rng.random((n, 8, 3)).astype(np.float16).astype(np.float32)
    scores[:, :, 2] = rng.random((n, 1)).astype(np.float16)
    center = np.zeros((n, 6), np.float32)
    low, high = box.offsets(center, 0.4)
    action = box.sample(rng, center, low, high)
    shown = rank(spec, action, scores)
    watched = np.take_along_axis(scores[..., 1], shown, 1).sum(1) + rng.normal(size=n)
    data = replace(
        make_sessions(n, seed=6, slope=np.zeros(6), end=1.0, longest=1),
        spec=spec,
        action=action,
        center=center,
        lower=low,
        upper=high,
        next_center=center,
        next_lower=low,
        next_upper=high,
        reward=watched[:, None].astype(np.float32),
        cand_scores=pa.chunked_array([pa.array([of.astype("<f2").tobytes() for of in scores], pa.binary())]),
    )
    found = learned(data)
    assert found.report["used"] == "slate_replay" and found.report["confirmed"] == 1
    assert found.report["held_out_action"]["z"] > 4


def test_the_slopes_error_is_their_spread_over_requests_and_draws(data):
    """A worth of 1 for each feature: slopes of ten parts of the requests, against what `error_of` says of a part."""
    found, said = [], []
    for part in range(10):
        made = replay(data.select(data.session % 10 == part), 4, seed=part)
        b = np.zeros(made.slopes.shape[2])
        b[: len(made.scale)] = made.scale
        found.append(made.slopes @ b)
        said.append(np.diag(made.error_of(b)).reshape(found[-1].shape))
    spread = np.var(found, axis=0, ddof=1).mean()
    assert spread == pytest.approx(np.mean(said), rel=0.4)


def test_the_direct_effects_z_is_standard_normal_where_there_is_none():
    """Algebra alone: responses that follow the model, u half explained by the slate's features, as an action is."""
    rng = np.random.default_rng(0)
    n, effects, width = 800, 12, 4
    z = []
    for _ in range(150):
        x = rng.normal(size=(n, effects))
        u = x[:, :width] + rng.normal(size=(n, width))
        y = x @ rng.normal(0, 0.2, effects) + rng.normal(0, 2, n)
        moments = Moments.of(np.column_stack([np.ones(n), x, u]), y[:, None])
        model, direct = np.arange(1 + effects), 1 + effects + np.arange(width)
        fit = empirical_bayes(moments.columns(model), np.r_[-1, np.zeros(effects, int)])
        z.append(direct_effect(fit, moments, model, direct)["z"])
    assert np.std(z) == pytest.approx(1, abs=0.1)


def test_without_signal_the_policy_hardly_moves(data):
    """Rewards dealt out anew. One mediator that noise favours moves all dimensions at once, so a deal moves the policy much or,
    as other users must confirm it, not at all: half of the deals at least, and a tenth of the box on the mean."""
    few = data.select(data.session % 2 == 0)
    moves = []
    for seed in range(8):
        found = learned(replace(few, reward=np.random.default_rng(seed).permutation(few.reward)))
        assert found.report["used"] == "slate_replay"
        moves.append(np.abs(found.action - few.center).mean() / 0.4)
    assert np.mean(moves) < 0.1
    assert np.median(moves) == 0


@pytest.mark.parametrize("gaussian", [False, True])
def test_slates_are_centred_on_what_was_drawn_also_where_that_is_gaussian(gaussian):
    """A normal cut at three deviations is logged with its ends: a uniform draw between them would have 1.7 times its spread."""
    start = constant_policy(np.zeros(4), 3, spec=SPEC, lineage=Lineage(algorithm="t"))
    data = with_candidates(10, 1500, SPEC, start, start)
    rng = np.random.default_rng(4)
    lower, upper, action = sample(rng, data.center, 0.13, "gaussian" if gaussian else "box")
    data = replace(data, action=action, lower=lower, upper=upper)
    problem = prepare(data, "logged", half_width=np.full(4, 0.13, np.float32))
    assert problem.uniform is not gaussian
    assert any(w.startswith("exploration_not_uniform") for w in problem.warnings) is gaussian
    rows = np.arange(len(data))
    made = Replay(problem, fit_value(problem), SlateReplayConfig(draws=8), rows, 0, Progress(False))
    scores, count = data.candidates(rows)
    drawn, u = made._drawn(rng, data.center, lower, upper, torch.from_numpy(scores), count, made.positions)
    logged = (action - data.center) / problem.unit
    assert u.std() == pytest.approx(logged.std(), rel=0.02)
    effects = made._chunk(rows)[0][:, len(made.nuisance) : len(made.nuisance) + 2 * len(made.scale)]
    assert np.abs(effects.mean(0) / effects.std(0)).max() < 3.5 / np.sqrt(len(rows))
