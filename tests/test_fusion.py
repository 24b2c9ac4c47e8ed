import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtf.fusion import log_fused, log_fused_torch, normalised_action, rank, raw_action
from tests.conftest import small_spec

SPEC = small_spec()


def batch(seed, n=5, candidates=9):
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (n, SPEC.action_width)).astype(np.float32)
    scores = rng.random((n, candidates, 2)).astype(np.float32) * [1, 60]
    return action, scores.astype(np.float32)


def test_hand_worked():
    # a = 0: powers (1, 1), biases (.5005, 5.005); scores (.5, 5): log 1.0005 + log 10.005
    scores = np.array([[[0.5, 5.0]]], np.float32)
    assert np.isclose(log_fused(SPEC, np.zeros((1, 4)), scores)[0, 0], np.log(1.0005) + np.log(10.005), atol=1e-6)


def test_equals_the_products_of_powers():
    action, scores = batch(1)
    raw = raw_action(SPEC, action).astype(np.float64)
    direct = np.prod((scores + raw[:, None, 2:]) ** raw[:, None, :2], axis=2)
    assert np.allclose(np.exp(log_fused(SPEC, action, scores)), direct, rtol=1e-4)


@given(st.integers(0, 10_000))
def test_torch_is_the_same_definition(seed):
    action, scores = batch(seed)
    there = log_fused_torch(SPEC, torch.from_numpy(action), torch.from_numpy(scores)).numpy()
    assert np.allclose(log_fused(SPEC, action, scores), there, atol=1e-4)


@given(st.integers(0, 10_000))
def test_scaling_all_powers_keeps_the_ranking(seed):
    action, scores = batch(seed, n=1)
    raw = raw_action(SPEC, action).astype(np.float64)
    half = raw * np.array([0.5, 0.5, 1, 1])
    first = rank(SPEC, action, scores)
    second = rank(SPEC, normalised_action(SPEC, half), scores)
    fused = log_fused(SPEC, action, scores)[0, first[0]]
    if np.diff(fused).size and np.abs(np.diff(fused)).min() > 1e-4:
        assert (first == second).all()


def test_ties_keep_the_candidates_order_and_padding_is_never_shown():
    scores = np.ones((1, 5, 2), np.float32)
    assert rank(SPEC, np.zeros((1, 4)), scores).tolist() == [[0, 1, 2]]
    assert set(rank(SPEC, np.zeros((1, 4)), scores, np.array([3]))[0]) == {0, 1, 2}


def test_raw_and_normalised_are_inverse():
    action, _ = batch(3)
    assert np.allclose(normalised_action(SPEC, raw_action(SPEC, action)), action, atol=1e-5)
