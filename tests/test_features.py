import numpy as np

from mtf.features import RecentHistory, build_state, log_score_moments, moved_by_action
from tests.conftest import small_spec


def test_state_places_given_values_fills_defaults_and_computes_scores():
    spec = small_spec()
    scores = np.array([[[0.1, 3.0], [0.3, 5.0]], [[0.5, 1.0], [0.5, 2.0]]], np.float32)
    given = np.array([[0.7, np.nan], [np.nan, 0.4]], np.float32)
    state = build_state(spec, given, scores)
    means = [np.mean(np.log([0.1001, 0.3001])), np.log(0.5001)]
    assert np.allclose(state, [[0.7, 0.0, means[0]], [0.25, 0.4, means[1]]], atol=1e-5)


def test_padding_does_not_enter_the_moments():
    scores = np.random.default_rng(0).random((3, 6, 2)).astype(np.float32)
    padded = np.concatenate([scores, np.full((3, 2, 2), 9, np.float32)], axis=1)
    for a, b in zip(log_score_moments(scores), log_score_moments(padded, np.full(3, 6)), strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_history_features_are_marked_as_moved():
    assert moved_by_action(small_spec()).tolist() == [False, True, False]


def test_history_moves_towards_outcomes():
    history = RecentHistory(np.zeros((2, 1)), rate=0.5)
    history.update(np.array([1]), np.array([[1.0]], np.float32))
    history.update(np.array([1]), np.array([[1.0]], np.float32))
    assert history.value[:, 0].tolist() == [0.0, 0.75]
