"""Slates replayed from logged candidates: the server's ranking, in torch, and its few numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf.fusion import rank
from mtf.learning.slates import names, plug_in_weights, slate_features, top_scores
from mtf.spec import RewardHead
from tests.conftest import small_spec

SPEC = small_spec()


def batch(seed, n=6, candidates=7):
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (n, 4)).astype(np.float32)
    scores = (rng.random((n, candidates, 2)) * [1, 60]).astype(np.float32)
    return action, scores, rng.integers(3, candidates + 1, n)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_the_slate_is_the_one_that_the_server_would_show(seed):
    action, scores, count = batch(seed)
    top, real = top_scores(SPEC, action, torch.from_numpy(scores), count)
    shown = rank(SPEC, action, scores, count)
    for i in range(len(action)):
        expected = np.sort(scores[i, shown[i]], axis=0)
        np.testing.assert_allclose(np.sort(top[i].numpy(), axis=0), expected, rtol=1e-6)
    assert (real == 1).all()


def test_features_by_hand():
    action, scores, count = batch(1)
    shown = rank(SPEC, action, scores, count)
    top = np.take_along_axis(scores, shown[..., None], 1)
    logs = np.log(top + 1e-4)
    expected = np.concatenate([logs.mean(axis=1), top.mean(axis=1), logs.std(axis=1)], axis=1)
    found = slate_features(SPEC, action, torch.from_numpy(scores), count).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape[1] == len(names(SPEC)) == 6
    assert names(SPEC)[3] == "mean:watch"


def test_fewer_candidates_than_places_are_all_shown():
    action, scores, _ = batch(2)
    count = np.full(6, 2)
    found = slate_features(SPEC, action, torch.from_numpy(scores), count).numpy()
    np.testing.assert_allclose(found[:, 2:4], scores[:, :2].mean(axis=1), rtol=1e-5)
    top, real = top_scores(SPEC, action, torch.from_numpy(scores), count)
    assert real.sum(1).tolist() == [2.0] * 6
    assert top.shape == (6, 3, 2)


def test_a_unit_of_a_score_is_worth_what_the_heads_pay_for_its_behaviour():
    heads = (
        RewardHead(name="a", weights={"watch": 0.01, "valid": 0.3}),
        RewardHead(name="b", weights={"watch": 0.02}),
    )
    # `click` is scored and not paid, `valid` is paid and not scored
    assert plug_in_weights(small_spec(reward_heads=heads)) == pytest.approx([0.0, 0.03])
