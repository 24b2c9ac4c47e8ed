"""Parametric worlds: levels from public figures, structure by assumption, one knob for each kind of headroom.

default        what the demo plays: a start that is tuned to watch time, and segments whose scores are good at different things
personalised   the start is nearer to the best global setting; half of what is left is in the segments
global_only    scores are equally good for everybody; what is left is in the start
null           no ranking changes anything that users do: nothing beats production, and never promoting is success
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mtf.errors import InputError
from mtf.world.calibrate import calibrate_rates
from mtf.world.params import ARRAYS, BEHAVIOURS, HEADS, Scalars, Source, WorldParams
from mtf.world.surface import feed_spec

QUANTILES = 257
DURATION_EDGES_S = (13.0, 30.0, 75.0, 160.0)
GROUPS = ("seekers", "skimmers", "regulars", "social")
# correlation of each segment's scores with its tastes, in the order of HEADS
RELIABILITY = np.array(
    [
        [0.20, 0.95, 0.10, 0.95, 0.80],
        [0.95, 0.20, 0.90, 0.10, 0.20],
        [0.20, 0.30, 0.95, 0.90, 0.10],
        [0.90, 0.70, 0.10, 0.20, 0.95],
    ]
)
EVEN_RELIABILITY = 0.6


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a preset sets.

    users, items, tags: sizes. seed: of the tables.
    signal: factor on how much candidates differ for a user (0: not at all).
    clickbait: sd of the items' pull that wins clicks and loses the rest.
    personal: 0 = scores are equally good in every segment, 1 = as in RELIABILITY.
    elasticity: of leaving to what was shown; 0 = actions do not change how long sessions last.
    misreport: share of users whose declared segment is not theirs.
    start_powers, start_biases: production's setting, raw, in the order of HEADS.
    """

    users: int = 200_000
    items: int = 6_000
    tags: int = 16
    seed: int = 7
    signal: float = 1.0
    clickbait: float = 0.9
    personal: float = 1.0
    elasticity: float = 1.0
    misreport: float = 0.15
    start_powers: tuple[float, ...] = (0.25, 0.3, 1.5, 0.2, 0.2)
    start_biases: tuple[float, ...] = (0.3, 0.3, 20.0, 0.03, 0.06)


PRESETS: dict[str, Knobs] = {
    "default": Knobs(),
    "personalised": Knobs(start_powers=(1.0, 0.4, 1.0, 0.5, 0.6)),
    "global_only": Knobs(personal=0.0),
    "null": Knobs(signal=0.0, clickbait=0.0, elasticity=0.0),
}


def make(
    preset: str = "default",
    *,
    scalars: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
    **changes: Any,
) -> WorldParams:
    """The tables of a preset with some knobs replaced, calibrated to the published rates. Takes about fifteen seconds.

    scalars: numbers of the world itself (`params.Scalars`) to replace; intercepts and leave_offset are calibrated after it.
    progress: told the name of each of the seven steps as it begins.
    Raises InputError on an unknown preset, knob or scalar, or a value of the wrong type.
    """
    if preset not in PRESETS:
        raise InputError(f"preset: {preset!r} is unknown; use one of {', '.join(PRESETS)}")
    try:
        knobs = msgspec.convert(msgspec.structs.asdict(PRESETS[preset]) | changes, Knobs)
    except msgspec.ValidationError as error:
        raise InputError(f"world: {error}; the knobs are {', '.join(Knobs.__struct_fields__)}") from None
    targets = {name: figure(name) for name in ("click", "valid", "watch_s", "like", "interact")}
    say = progress or (lambda _: None)
    say("tables")
    params = build(preset, knobs)
    try:
        chosen = msgspec.convert(msgspec.to_builtins(params.scalars) | dict(scalars or {}), Scalars)
    except msgspec.ValidationError as error:
        raise InputError(f"world: scalars: {error}; they are {', '.join(Scalars.__struct_fields__)}") from None
    return calibrate_rates(replace(params, scalars=chosen), targets, progress=say)


@cache
def figures() -> dict[str, Any]:
    """calibration.json: published figures, each with its source."""
    data: dict[str, Any] = json.loads((Path(__file__).parent / "calibration.json").read_text())
    return data


def figure(name: str) -> float:
    """One published number."""
    return float(figures()[name]["value"])


def build(name: str, knobs: Knobs) -> WorldParams:
    """The tables before calibration."""
    rng = np.random.default_rng(knobs.seed)
    u, v, t, d, h = knobs.users, knobs.items, knobs.tags, len(DURATION_EDGES_S) + 1, len(HEADS)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    group = rng.integers(0, len(GROUPS), u)
    tag = rng.choice(t, v, p=_zipf(t))
    duration, bucket = _durations(rng, v)

    # what candidates are worth to a user, in logits: appeal moves all heads, bait wins the click and loses the rest
    bait = knobs.clickbait * normal(v, 1) * np.array([1.0, -0.9, -0.5, -0.8, -0.6], np.float32)
    appeal = normal(v, 1) * np.array([0.3, 0.25, 0.15, 0.3, 0.25], np.float32)
    own = normal(v, h) * np.array([0.2, 0.25, 0.2, 0.3, 0.3], np.float32)
    true_item = knobs.signal * (appeal + own) + bait
    taste = normal(u, t, h) * (knobs.signal * np.array([0.7, 0.8, 0.5, 1.1, 1.0], np.float32))
    by_duration = normal(u, d, h) * (knobs.signal * np.array([0.2, 0.2, 0.15, 0.25, 0.2], np.float32))
    true_user = normal(u, h) * USER_SD

    # the score model: as good as RELIABILITY says where a user's own taste counts, fair on items, biased by segment
    reliability = EVEN_RELIABILITY + knobs.personal * (RELIABILITY - EVEN_RELIABILITY)
    trust = reliability[group][:, None].astype(np.float32)
    seen_taste = trust * taste + np.sqrt(1 - trust**2) * taste.std(axis=(0, 1)) * normal(u, t, h)
    seen_item = 0.8 * true_item + 0.3 * true_item.std(axis=0) * normal(v, h)
    seen_duration = 0.7 * by_duration + knobs.signal * _duration_bias(group, d)
    seen_user = 0.7 * true_user + 0.2 * normal(u, h) + _segment_bias(group)

    profile, names = _profile(rng, group, true_user, knobs)
    history = _history(rng, true_user)
    leave = 0.3 * normal(u)
    weight = np.exp(0.5 * profile[:, names.index("activity")])
    leave += np.log((np.exp(-leave) * weight).sum() / weight.sum())
    spec = feed_spec(
        start_powers=knobs.start_powers,
        start_biases=knobs.start_biases,
        profile=PROFILE_DOCS,
        history=dict(zip(BEHAVIOURS, history.mean(axis=0).round(4).tolist(), strict=True)),
    )
    click, valid, like, interact = (_logit(figure(name)) for name in ("click", "valid", "like", "interact"))
    like_class, interact_class = _class_offsets()
    scalars = Scalars(
        true_intercept=(click, _logit(figure("valid") / figure("click")), 0.0, like, interact),
        like_class=like_class,
        interact_class=interact_class,
        day_sd=(0.33, 0.2, 0.1, 0.5, 0.4),
        # candidates are on average worth less than what the ranking lifts to the top
        score_intercept=(click - 0.6, valid - 0.7, float(np.log1p(12.0)), like - 0.5, interact - 0.5),
        score_noise=(0.15, 0.15, 0.15, 0.2, 0.2),
        leave_base=1 / figure("requests_per_session"),
        leave_elasticity=knobs.elasticity,
    )
    half = np.float16
    return WorldParams(
        name=name,
        kind="parametric",
        spec=spec,
        scalars=scalars,
        user_key=np.arange(100_000, 100_000 + u),
        user_weight=weight.astype(np.float32),
        user_leave=leave.astype(np.float32),
        user_group=group.astype(np.int8),
        user_circle=np.arange(u),
        profile=profile.astype(np.float32),
        history=history.astype(np.float32),
        item_key=np.arange(1, v + 1),
        item_tag=tag.astype(np.int16),
        item_bucket=bucket.astype(np.int8),
        item_duration_s=duration.astype(np.float32),
        item_exposure=np.exp(0.8 * normal(v)).astype(np.float32),
        true_user=true_user.astype(np.float32),
        true_item=true_item.astype(np.float32),
        true_user_tag=taste.astype(half),
        true_user_duration=by_duration.astype(half),
        score_user=seen_user.astype(np.float32),
        score_item=_as_scores(seen_item).astype(np.float32),
        score_user_tag=_as_scores(seen_taste).astype(half),
        score_user_duration=_as_scores(seen_duration).astype(half),
        watch_quantiles=_watch_quantiles(d, flat=knobs.signal == 0),
        profile_names=tuple(names),
        group_names=GROUPS,
        sources=_sources(),
        targets=_targets(),
    )


LIKE_WITHIN = 0.5
# of click and valid such that users' own rates spread as the published ones do
USER_SD = np.sqrt(np.array([0.70, 0.30, 0.04, 0.90, 0.50], np.float32))
PROFILE_DOCS = {f"segment:{name}": "1 where the user's declared segment is this one" for name in GROUPS}
PROFILE_DOCS |= {
    "activity": "log requests of earlier weeks, standardised",
    "register_age": "log days since registration, standardised",
}


def _as_scores(deviation: np.ndarray) -> np.ndarray:
    """Deviations of the truth's heads -> of what the scores predict: valid without condition, and seconds watched."""
    click, valid, watch, like, interact = np.moveaxis(deviation, -1, 0)
    return np.stack(
        [click, 0.45 * click + 0.9 * valid, 0.25 * click + 0.3 * valid + 0.7 * watch, 0.3 * click + like, 0.3 * click + interact],
        axis=-1,
    )


def _segment_bias(group: np.ndarray) -> np.ndarray:
    """[U, H]: by how much each segment's scores are off as a whole."""
    bias = np.array(
        [[0.3, -0.2, 0.1, -0.3, 0.2], [0.0, 0.2, -0.2, 0.4, -0.2], [-0.3, 0.0, 0.2, 0.0, 0.3], [0.0, 0.0, -0.1, -0.1, -0.3]]
    )
    return bias.astype(np.float32)[group]


def _duration_bias(group: np.ndarray, n_buckets: int) -> np.ndarray:
    """[U, D, H]: the watch time score favours long items, most so in the first two segments."""
    bias = np.zeros((len(GROUPS), n_buckets, len(HEADS)), np.float32)
    ramp = np.linspace(-0.5, 0.5, n_buckets)
    bias[:, :, 2] = np.array([0.9, 0.6, 0.1, 0.3])[:, None] * ramp
    return bias[group]


def _profile(rng: np.random.Generator, group: np.ndarray, true_user: np.ndarray, knobs: Knobs) -> tuple[np.ndarray, list[str]]:
    """Declared segment (wrong for `misreport` of the users) and two figures that say a little about tastes."""
    declared = np.where(rng.random(len(group)) < knobs.misreport, rng.integers(0, len(GROUPS), len(group)), group)
    activity = 0.5 * true_user[:, 0] / USER_SD[0] + np.sqrt(0.75) * rng.standard_normal(len(group))
    age = 0.3 * true_user[:, 3] / USER_SD[3] + np.sqrt(0.91) * rng.standard_normal(len(group))
    return np.column_stack([np.eye(len(GROUPS))[declared], activity, age]), list(PROFILE_DOCS)


def _history(rng: np.random.Generator, true_user: np.ndarray) -> np.ndarray:
    """[U, B]: means over a user's last 50 impressions before the world starts, drawn at the published levels."""
    n = 50

    def share(name: str, shift: np.ndarray) -> np.ndarray:
        return rng.binomial(n, 1 / (1 + np.exp(-(_logit(figure(name)) + shift)))) / n

    click = share("click", true_user[:, 0])
    given = figure("valid") / figure("click")
    valid = rng.binomial(np.round(click * n).astype(int), 1 / (1 + np.exp(-(_logit(given) + true_user[:, 1])))) / n
    seconds = (figure("watch_s") - 2.5) / figure("valid")
    watch = 2.5 + valid * seconds * np.exp(0.3 * rng.standard_normal(len(true_user)) + true_user[:, 2] - 0.065)
    return np.column_stack([watch, click, valid, share("like", true_user[:, 3]), share("interact", true_user[:, 4])])


def _durations(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [n] by the published quantiles (log-linear between them), and buckets."""
    known = figures()["duration_quantiles_s"]
    p = np.array([0.0, *known["p"], 1.0])
    seconds = np.exp(np.interp(rng.random(n), p, np.log([5.0, *known["value"], 600.0])))
    return seconds, np.digitize(seconds, DURATION_EDGES_S)


def _watch_quantiles(n_buckets: int, *, flat: bool) -> np.ndarray:
    """[3, D, Q] seconds by class, from the published quantiles of all play times.

    The log's top `valid` share is the valid class; the click that is not valid takes the seconds just below 10 (the log's
    click is a play of about 7 s); the rest is the class without a click. Longer items are watched longer within the valid
    class, unless `flat`.
    """
    grid = np.linspace(0, 1, QUANTILES)
    known = figures()["play_quantiles_s"]
    p, seconds = np.array(known["p"]), np.array(known["value"])
    click, valid = figure("click"), figure("valid")
    above = seconds > 10
    top_p = np.concatenate([[0.0], (p[above] - (1 - valid)) / valid, [1.0]])
    top = np.exp(np.interp(grid, top_p, np.log(np.concatenate([[10.05], seconds[above], [600.0]]))))
    middle = np.interp(grid, [0, 0.1, 0.25, 0.5, 0.75, 1], [0.5, 1.1, 7.2, 8.0, 8.9, 10.0])
    short_in_middle = 0.15 * (click - valid)
    low_p = [0, 0.0975, 0.1, 0.25, 1 - figure("play_ge_3s") - short_in_middle, 0.5 - short_in_middle, 1 - click]
    low = np.interp(grid, np.array(low_p) / (1 - click), [0, 0, 0.23, 1.535, 3.0, 4.611, 8.0])
    factor = np.ones(n_buckets) if flat else np.array([0.55, 0.75, 1.0, 1.2, 1.4])
    tables = [
        np.tile(low, (n_buckets, 1)),
        np.tile(middle, (n_buckets, 1)),
        np.minimum(10.05 + (top - 10.05) * factor[:, None], 600),
    ]
    return np.stack(tables).astype(np.float32)


def _class_offsets() -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Offsets of like and interact by class, relative to the valid class.

    The published odds are averages over users; within one user they are further apart, by about LIKE_WITHIN logits.
    """
    with_click, without = figure("like_given_click"), figure("like_given_no_click")
    return (_logit(without) - _logit(with_click) - LIKE_WITHIN, 0.0, 0.0), (-2.5, -0.4, 0.0)


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def _zipf(n: int) -> np.ndarray:
    weight = 1 / np.arange(1, n + 1) ** 0.7
    return weight / weight.sum()


def _targets() -> dict[str, Any]:
    """Published figures to compare play under the start with; tolerances are relative."""
    tolerance = {
        "click": 0.03,
        "valid": 0.03,
        "like": 0.08,
        "interact": 0.06,
        "watch_s": 0.05,
        "watch_median_s": 0.25,
        "watch_p90_s": 0.15,
        "requests_per_session": 0.05,
        "corr_click_valid": 0.05,
        "corr_click_like": 0.2,
        "corr_valid_like": 0.2,
        "user_click_p10": 0.25,
        "user_click_p50": 0.25,
        "user_click_p90": 0.25,
    }
    return {name: {"value": figure(name), "tolerance": t, "source": figures()[name]["source"]} for name, t in tolerance.items()}


def _sources() -> dict[str, Source]:
    borrowed = {
        "true_intercept": "calibrated: play under the start has the click, valid, like, interact and watch levels of "
        "calibration.json",
        "like_class": figures()["like_given_click"]["source"],
        "leave_base": figures()["requests_per_session"]["source"],
        "item_duration_s": figures()["duration_quantiles_s"]["source"],
        "item_bucket": "buckets of item_duration_s at 13, 30, 75, 160 s",
        "watch_quantiles": figures()["play_quantiles_s"]["source"] + "; split into classes, and by duration, by assumption",
    }
    assumed = {
        "interact_class": "interactions follow watching; no public figure by class",
        "day_sd": "order of the residual variances in a fit to KuaiRand-Pure",
        "score_intercept": "mean scores of candidates somewhat below the shown items' rates",
        "score_noise": "a pair's own error of the score model",
        "n_candidates": "a ranking stage's usual size",
        "leave_elasticity": "no public log identifies it; repeat conclusions at 0, 1 and 2",
        "leave_offset": "calibrated so that sessions under the start last 1 / leave_base requests",
        "leave_satisfaction": "no public figure",
        "leave_repetition": "no public figure",
        "leave_disappointment": "no public figure",
        "history_rate": "about the last seven requests count",
        "start_hour_low": "sessions start evenly through the day",
        "start_hour_high": "early enough to close before midnight",
        "pause_low_s": "between requests, beside the watch time",
        "pause_high_s": "between requests, beside the watch time",
        "user_weight": "active users come more often",
        "user_leave": "users differ: log-normal, sd .3, mean session length kept",
        "user_group": "four segments of equal size",
        "user_circle": "users are independent",
        "history": "50 impressions a user, drawn at the published levels",
        "item_tag": "Zipf with exponent .7",
        "item_exposure": "log-normal, sd .8",
        "score_user": "70 % of the truth, noise, a bias by segment",
    }
    text = {**dict.fromkeys((*ARRAYS, *Scalars.__struct_fields__), "structure by assumption (presets.py)"), **assumed}
    sources = {name: Source(label="assumed", text=why) for name, why in text.items()}
    return sources | {name: Source(label="borrowed", text=why) for name, why in borrowed.items()}
