import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf.evaluation.gauc import gauc_of_actions, weighted_gauc
from tests.conftest import small_spec


def pairwise(user, label, score, weight):
    """(GAUC, users) by all pairs, the definition."""
    won, size = [], []
    for u in sorted(set(user)):
        rows = [i for i in range(len(user)) if user[i] == u]
        pairs = [(i, j) for i, j in itertools.product(rows, rows) if label[i] and not label[j]]
        total = sum(weight[i] * weight[j] for i, j in pairs)
        if total > 0:
            better = sum(weight[i] * weight[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j])) for i, j in pairs)
            won.append(better / total)
            size.append(len(rows))
    return (np.average(won, weights=size), len(won)) if won else None


row = st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.5, 1.0, 3.0]))


@given(st.lists(row, min_size=1, max_size=30))
def test_it_is_the_sum_over_all_pairs(rows):
    user, label, score, weight = (np.array(c) for c in zip(*rows, strict=True))
    found, expected = weighted_gauc(user, label, score, weight), pairwise(user, label, score, weight)
    if expected is None:
        assert found is None
    else:
        assert (found.value, found.users) == (pytest.approx(expected[0]), expected[1])


def test_by_hand():
    # the first user's valid item wins against weight 2 and ties with weight 4; the second user's loses
    user = np.array([7, 7, 7, 9, 9])
    label, score = np.array([1, 0, 0, 1, 0]), np.array([0.5, 0.1, 0.5, 0.0, 1.0])
    found = weighted_gauc(user, label, score, np.array([3.0, 2.0, 4.0, 1.0, 1.0]))
    assert found.value == pytest.approx((3 * (2 + 0.5 * 4) / 6 + 2 * 0.0) / 5)
    assert found.users == 2
    # sqrt(9 (2/3 - .4)^2 + 4 .4^2) / 5
    assert found.se == pytest.approx(np.sqrt(9 * (2 / 3 - 0.4) ** 2 + 4 * 0.4**2) / 5)


def test_another_action_orders_the_shown_items_anew(world, changed):
    spec = small_spec()
    data = changed(world(60, seed=0, slope=np.zeros(4)), reward=np.ones((1, 1), np.float32))
    n, rng = len(data), np.random.default_rng(1)
    scores = rng.random((n, 3, 2)).astype(np.float32)
    valid = (scores[..., 1] > 0.5).astype(np.float32)

    def lists(values):
        return pa.chunked_array([pa.array(values.reshape(n, -1).tolist(), pa.list_(pa.float32()))])

    shown = type(data)(
        **data.__dict__
        | {"spec": spec, "shown_scores": lists(scores), "shown_valid": lists(valid), "shown_reward": lists(np.zeros((n, 3)))}
    )
    # powers (click, watch): the label is the watch score over a half
    by_watch, by_click = (np.tile(np.array([a, b, 0, 0], np.float32), (n, 1)) for a, b in ((-1, 1), (1, -1)))
    found = gauc_of_actions(shown, {"watch": by_watch, "click": by_click})
    assert found["watch"].value == 1.0
    assert found["click"].value == pytest.approx(0.5, abs=4 * found["click"].se)
    assert gauc_of_actions(data, {"watch": by_watch}) == {}
