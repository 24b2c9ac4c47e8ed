"""What the policy sees: five additive models, trained on the log's earlier days alone.

Logistic for click, valid, like and interaction; squared loss on log(1 + seconds) for the watch time. User attributes,
what the user had watched before the log, tag and duration, and intercepts for each user and video whose variance is
estimated (empirical Bayes). They know nothing of a response's class, of a user's taste for a tag beyond the history, or of
the day, and they shrink: so they are noisy, and biased by group, as production's scores are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtf.world.fit_design import Design
from mtf.world.fit_glm import Block, fit, pair_covariance
from mtf.world.kuairand import KuaiRand
from mtf.world.params import HEADS

TRAINING_SHARE = 3 / 7
"""Share of the log's days that the scores are trained on: to 30 April in the public log."""

RARE = ("like", "interact")
VARIANCE_LOW, VARIANCE_HIGH = 1e-3, 1.0


@dataclass(frozen=True, eq=False)
class ScoreTables:
    """intercept [5]; user [U, 5], item [V, 5], user_tag [U, T, 5], user_duration [U, D, 5]; variance {head: (user, item)}.

    first_test_day: the first day, an index into the log's days, that training did not see.
    """

    intercept: np.ndarray
    user: np.ndarray
    item: np.ndarray
    user_tag: np.ndarray
    user_duration: np.ndarray
    variance: dict[str, tuple[float, float]]
    first_test_day: int

    def eta(self, user: np.ndarray, item: np.ndarray, design: Design) -> np.ndarray:
        """Linear predictors [n, 5] of rows (user, item)."""
        by_tag, by_duration = self.user_tag[user, design.tag[item]], self.user_duration[user, design.bucket[item]]
        return self.intercept + self.user[user] + self.item[item] + by_tag + by_duration


def fit_scores(log: KuaiRand, design: Design) -> ScoreTables:
    """Train on days before `first_test_day`."""
    first_test_day = max(1, round(TRAINING_SHARE * len(log.days)))
    rows = log.day < first_test_day
    user, item, day = log.user[rows], log.item[rows], log.day[rows]
    n_users, n_items = len(log.user_key), len(log.item_key)
    outcomes = {
        "click": log.click,
        "valid": log.valid,
        "watch": np.log1p(log.watch_s),
        "like": log.like,
        "interact": log.interact,
    }
    intercepts, variance = np.zeros(len(HEADS)), {}
    tables: dict[str, list[np.ndarray]] = {"user": [], "item": [], "user_tag": [], "user_duration": []}
    for k, head in enumerate(HEADS):
        y = outcomes[head][rows].astype(float)
        noise = float(np.var(y)) if head == "watch" else None
        blocks = design.blocks(user, item)
        fixed = fit(y, blocks, noise_variance=noise)
        residual, weight = y - fixed.mean, np.ones(len(y)) if head == "watch" else fixed.weight
        user_variance = _within(pair_covariance(residual, weight, user, day), head)
        item_variance = _within(pair_covariance(residual, weight, item), head)
        blocks.append(Block("user", user, n_users, user_variance))
        blocks.append(Block("item", item, n_items, item_variance))
        if head == "watch":
            noise = float(np.var(residual))
        model = fit(y, blocks, noise_variance=noise)
        found = design.tables(model)
        found["user"] += model.theta["user"]
        found["item"] += model.theta["item"]
        intercepts[k] = model.theta["intercept"][0]
        for name, columns in tables.items():
            columns.append(found[name])
        variance[head] = (user_variance, item_variance)
    stacked = {name: np.stack(columns, axis=-1) for name, columns in tables.items()}
    return ScoreTables(intercept=intercepts, variance=variance, first_test_day=first_test_day, **stacked)


def _within(variance: float, head: str) -> float:
    if head in RARE:
        variance = float(np.log1p(max(variance, 0)))
    return float(np.clip(variance, VARIANCE_LOW, VARIANCE_HIGH))
