"""MTF-GAUC (arXiv 2404.17589): does the final score rank what a user valued above the rest? Reported, never voted.

Per user: label = valid consumption, prediction = final score, sample weight = reward + 1, over the impressions that were
shown; then `sum_u w(u) wAUC(u) / sum_u w(u)`, w(u) = impressions of u. The items are those that the logged ranking
chose, so it says how a policy orders these, not what it would have shown.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow.compute as pc

from mtf.fusion import log_fused
from mtf.transitions.table import TransitionSet

CHUNK = 65536


class Gauc(msgspec.Struct, frozen=True, kw_only=True):
    """value in [0, 1]; se over users; users: those with both a valid and another impression."""

    value: float
    se: float
    users: int


def weighted_gauc(user: np.ndarray, label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> Gauc | None:
    """GAUC of impressions [n]: `label` 0/1, `weight` >= 0; tied scores count half. None where no user has both labels."""
    code, size = np.unique(user, return_inverse=True, return_counts=True)[1:]
    order = np.lexsort((score, code))
    code, label, score, weight = code[order], label[order] > 0, score[order], weight[order].astype(np.float64)
    positive, negative = np.where(label, weight, 0.0), np.where(label, 0.0, weight)
    block = np.cumsum(np.r_[True, (code[1:] != code[:-1]) | (score[1:] != score[:-1])]) - 1
    tied = np.bincount(block, negative)
    before = np.cumsum(tied) - tied
    users = len(size)
    start = np.searchsorted(code, np.arange(users))
    below = before[block] - before[block[start]][code] + 0.5 * tied[block]
    won = np.bincount(code, positive * below, users)
    pairs = np.bincount(code, positive, users) * np.bincount(code, negative, users)
    both = pairs > 0
    if not both.any():
        return None
    auc, share = won[both] / pairs[both], size[both].astype(np.float64)
    value = float((share * auc).sum() / share.sum())
    se = float(np.sqrt(((share * (auc - value)) ** 2).sum()) / share.sum())
    return Gauc(value=value, se=se, users=int(both.sum()))


def gauc_of_actions(data: TransitionSet, actions: dict[str, np.ndarray]) -> dict[str, Gauc]:
    """GAUC for each named set of actions [n, A] on the impressions of `data`; empty where it lacks spec or impressions."""
    if data.spec is None or data.shown_scores is None or data.shown_valid is None or data.shown_reward is None:
        return {}
    spec = data.spec
    # a request without impressions has a list of none, or none
    shown = pc.fill_null(pc.list_value_length(data.shown_valid), 0).to_numpy()
    scores = _flat(data.shown_scores).reshape(-1, spec.n_objectives)
    label, reward = _flat(data.shown_valid), _flat(data.shown_reward)
    if len(scores) != int(shown.sum()) or len(label) != len(reward):
        return {}
    row = np.repeat(np.arange(len(data)), shown)
    found = {}
    for name, action in actions.items():
        final = np.empty(len(row), np.float32)
        for start in range(0, len(row), CHUNK):
            part = slice(start, start + CHUNK)
            final[part] = log_fused(spec, action[row[part]], scores[part][:, None, :])[:, 0]
        result = weighted_gauc(data.user[row], label, final, reward + 1.0)
        if result is not None:
            found[name] = result
    return found


def _flat(column: object) -> np.ndarray:
    return np.asarray(pc.list_flatten(column).combine_chunks().to_numpy(zero_copy_only=False), np.float32)
