"""A fitted world against days of the log that its twin did not see.

The twin is the response model fitted without every second of the later days: the mean over draws of its users (videos and
levels are drawn once). On those days: how well it orders and how well it is calibrated, by group of users, beside the scores
(trained on the earlier days alone); and the MTF-GAUC of several fusion weights, once with the log's labels and once with labels
that the world draws for the same impressions. A world that is like the log puts the weights in the same order.

How much users differ is checked on all days: how much one user's outcomes on different days vary together, in the log and in the
world's own outcomes for the same impressions. A world with less of it has less taste than its log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from mtf.errors import InputError
from mtf.evaluation.gauc import weighted_gauc
from mtf.fusion import log_fused, normalised_action
from mtf.world.fit import GROUP_NAMES, groups
from mtf.world.fit_design import Design
from mtf.world.fit_moments import daily_sums, smoothed
from mtf.world.fit_response import ResponseTables, fit_response
from mtf.world.fit_scores import ScoreTables, fit_scores
from mtf.world.kuairand import KuaiRand, read_kuairand
from mtf.world.params import CLASSES, HEADS
from mtf.world.world import World

TWINS = 24
"""Draws from the twin's posterior that its chances are the mean of."""

LABELS = ("click", "valid", "like", "interact")
OUTCOMES = (*LABELS, "log watch")
WEIGHTS = {
    "valid": (0, 1, 0, 0, 0),
    "click": (1, 0, 0, 0, 0),
    "click + watch": (1, 0, 1, 0, 0),
    "watch": (0, 0, 1, 0, 0),
    "uniform": (1, 1, 1, 1, 1),
    "interact": (0, 0, 0, 0, 1),
    "like": (0, 0, 0, 1, 0),
}
"""Powers of seven settings, in the order of HEADS; biases at their lowest."""


@dataclass(frozen=True)
class Ordering:
    """AUC of a head on the held-out impressions: of the scores and of the twin. positives: impressions with the label."""

    head: str
    scores: float
    twin: float
    positives: int


@dataclass(frozen=True)
class Level:
    """Mean of a head in a group of users: observed with its standard error, and predicted by the twin."""

    head: str
    group: str
    observed: float
    se: float
    predicted: float


@dataclass(frozen=True)
class Setting:
    """MTF-GAUC (label valid) of one setting of the weights: on the log, and on the world's draws for the same impressions."""

    name: str
    log: float
    world: float


@dataclass(frozen=True)
class Together:
    """Covariance of one user's outcomes on different days: in the log, its standard error over users, in the world."""

    head: str
    log: float
    se: float
    world: float


@dataclass(frozen=True)
class FitCheck:
    """held_out: days, as YYYYMMDD; rows: impressions on them."""

    held_out: tuple[int, ...]
    rows: int
    ordering: list[Ordering]
    levels: list[Level]
    settings: list[Setting]
    together: list[Together]

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of the settings' MTF-GAUC on the log and in the world."""
        from scipy.stats import spearmanr

        return float(spearmanr([s.log for s in self.settings], [s.world for s in self.settings]).statistic)


def check_fit(log_path: Path, world: World, *, seed: int = 0) -> FitCheck:
    """Fit the twin and compare; takes about as long as the fit. Raises InputError where the log cannot be used."""
    log = read_kuairand(log_path)
    if not np.array_equal(world.params.user_key[: len(log.user_key)], log.user_key):
        raise InputError(f"log: {log_path} is not the log that world `{world.params.name}` was fitted to; give that one")
    design = Design.of(log)
    scores = fit_scores(log, design)
    later = np.arange(scores.first_test_day, len(log.days))
    held_days = later[::2]
    held = np.isin(log.day, held_days)
    twin = fit_response(_rows(log, ~held), design, np.random.default_rng(seed), TWINS)
    chances = _chances(twin, log.user[held], log.item[held], design)
    return FitCheck(
        held_out=tuple(log.days[d] for d in held_days),
        rows=int(held.sum()),
        ordering=[_ordering(head, log, held, scores, chances, design) for head in LABELS],
        levels=[level for head in LABELS for level in _levels(head, log, held, chances)],
        settings=_settings(log, held, scores, world, design, seed),
        together=_together(log, world, seed),
    )


def _rows(log: KuaiRand, keep: np.ndarray) -> KuaiRand:
    names = ("user", "item", "day", "click", "valid", "like", "interact", "watch_s")
    return replace(log, **{name: getattr(log, name)[keep] for name in names})


def _chances(twin: ResponseTables, user: np.ndarray, item: np.ndarray, design: Design) -> dict[str, np.ndarray]:
    """Chances [n] of each label, averaged over the twin's draws and the day's effect."""
    n_users = len(design.pair_tag)
    draws = [_drawn_chances(twin, user + k * n_users, item, design) for k in range(len(twin.user) // n_users)]
    return {label: np.mean([chances[label] for chances in draws], axis=0) for label in LABELS}


def _drawn_chances(twin: ResponseTables, user: np.ndarray, item: np.ndarray, design: Design) -> dict[str, np.ndarray]:
    eta = twin.eta(user, item, design)

    def mean(head: str, shift: float = 0.0) -> np.ndarray:
        k = HEADS.index(head)
        return smoothed(eta[:, k] + shift, float(twin.day_sd[k]) ** 2, 0)[0]

    click, given = mean("click"), mean("valid")
    classes = (1 - click, click * (1 - given), click * given)
    by_class = {"like": twin.like_class, "interact": twin.interact_class}
    rare = {
        head: np.asarray(sum(p * mean(head, offsets[c]) for c, p in zip(range(len(CLASSES)), classes, strict=True)))
        for head, offsets in by_class.items()
    }
    return {"click": click, "valid": click * given, **rare}


def _ordering(
    head: str, log: KuaiRand, held: np.ndarray, scores: ScoreTables, chances: dict[str, np.ndarray], design: Design
) -> Ordering:
    from sklearn.metrics import roc_auc_score

    label = getattr(log, head)[held]
    eta = scores.eta(log.user[held], log.item[held], design)[:, HEADS.index(head)]
    return Ordering(head, float(roc_auc_score(label, eta)), float(roc_auc_score(label, chances[head])), int(label.sum()))


def _levels(head: str, log: KuaiRand, held: np.ndarray, chances: dict[str, np.ndarray]) -> list[Level]:
    group, label = groups(log)[log.user[held]], getattr(log, head)[held].astype(float)
    users = log.user[held]
    out = []
    for g, name in enumerate(GROUP_NAMES):
        of = group == g
        if not of.any():
            continue
        # users are the unit: their impressions share a taste
        surplus = np.bincount(users[of], label[of] - label[of].mean())
        se = float(np.sqrt((surplus**2).sum()) / of.sum())
        out.append(Level(head, name, float(label[of].mean()), se, float(chances[head][of].mean())))
    return out


def _settings(log: KuaiRand, held: np.ndarray, scores: ScoreTables, world: World, design: Design, seed: int) -> list[Setting]:
    spec, rng = world.spec, np.random.default_rng(seed)
    user, item, day = log.user[held], log.item[held], log.day[held]
    eta = scores.eta(user, item, design).astype(np.float32)
    seen = 1 / (1 + np.exp(-eta))
    seen[:, HEADS.index("watch")] = np.expm1(np.clip(eta[:, HEADS.index("watch")], 0, np.log1p(spec.watch_cap_s)))
    truth = world.truth(user, item[:, None], _moods(log, world, rng)[user * len(log.days) + day])[:, 0]
    classes = world.chances(truth)[0]
    drawn = rng.random(len(user)) < classes[:, 2]
    biases = np.array(spec.bias_low)
    out = []
    for name, powers in WEIGHTS.items():
        action = normalised_action(spec, np.concatenate([np.array(powers, float), biases])).astype(np.float32)
        fused = log_fused(spec, np.broadcast_to(action, (len(user), len(action))), seen[:, None, :])[:, 0]
        found = [weighted_gauc(user, label, fused, np.ones(len(user))) for label in (log.valid[held], drawn)]
        out.append(Setting(name, *(np.nan if f is None else f.value for f in found)))
    return out


def _together(log: KuaiRand, world: World, seed: int) -> list[Together]:
    rng, n_users, n_days = np.random.default_rng(seed), len(log.user_key), len(log.days)
    copies = world.n_users // n_users
    played: dict[str, list[float]] = {head: [] for head in OUTCOMES}
    for copy in range(copies):
        truth = world.truth(log.user + copy * n_users, log.item[:, None], _moods(log, world, rng)[log.user * n_days + log.day])[
            :, 0
        ]
        # chances vary together as the outcomes drawn with them do, with less noise
        classes, like, interact = world.chances(truth)
        kind = (rng.random(len(log.user))[:, None] > classes[:, :2].cumsum(axis=1)).sum(axis=1)
        place = expit(truth[:, HEADS.index("watch")] + logit(rng.random(len(log.user))))
        seconds = world.watch_s(kind, world.params.item_bucket[log.item].astype(np.int64), place)
        outcomes = (1 - classes[:, 0], classes[:, 2], like, interact, np.log1p(seconds))
        for head, outcome in zip(OUTCOMES, outcomes, strict=True):
            played[head].append(_apart(outcome.astype(float), log.user, log.day)[0])
    logged = (log.click, log.valid, log.like, log.interact, np.log1p(log.watch_s))
    found = (_apart(outcome.astype(float), log.user, log.day) for outcome in logged)
    return [Together(head, value, se, float(np.mean(played[head]))) for head, (value, se) in zip(OUTCOMES, found, strict=True)]


def _apart(y: np.ndarray, user: np.ndarray, day: np.ndarray) -> tuple[float, float]:
    """(covariance, standard error over users) of y [n] over the pairs of one user's rows on different days."""
    shape = int(user.max()) + 1, int(day.max()) + 1

    def of_user(rows: np.ndarray) -> np.ndarray:
        daily = daily_sums(rows, user, day, shape)
        return np.asarray(daily.sum(axis=1) ** 2 - (daily**2).sum(axis=1))

    product, pairs = of_user(y - y.mean()), of_user(np.ones(len(y)))
    value = float(product.sum() / pairs.sum())
    return value, float(np.sqrt(((product - value * pairs) ** 2).sum()) / pairs.sum())


def _moods(log: KuaiRand, world: World, rng: np.random.Generator) -> np.ndarray:
    """float32 [U * days, H]: a day's effect on each user."""
    mood = rng.standard_normal((len(log.user_key) * len(log.days), len(HEADS)), np.float32)
    return mood * np.array(world.params.scalars.day_sd, np.float32)
