"""A world fitted to a KuaiRand log: its users, videos and durations, scores of a model trained on its earlier days, and
responses drawn from a model fitted to all of it. docs/world.md tells what is learned, borrowed and assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mtf.errors import InputError
from mtf.fileio import replaceable
from mtf.world.calibrate import calibrate_leaving
from mtf.world.fit_design import SMOOTHING, Design
from mtf.world.fit_response import ResponseTables, fit_response
from mtf.world.fit_scores import ScoreTables, fit_scores
from mtf.world.kuairand import COUNTS, KuaiRand, read_kuairand
from mtf.world.params import ARRAYS, BEHAVIOURS, MARK, Five, Scalars, Source, Three, WorldParams
from mtf.world.presets import figure, figures
from mtf.world.surface import feed_spec
from mtf.world.world import World

START_POWERS = (0.6, 0.2, 1.0, 0.5, 0.2)
START_BIASES = (0.3, 0.3, 5.0, 0.02, 0.03)
"""Production's hand-set weights (powers, biases; in the order of HEADS): watch time first, then likes. docs/world.md."""

N_CANDIDATES = 40
HISTORY_ROWS = 5.0
GROUP_NAMES = ("full_active", "high_active", "middle_active", "other")
ACTIVITY = {"full_active": 1.0, "high_active": 0.67, "middle_active": 0.33}
STAGES = ("read the log", "scores, on its earlier days", "responses, on all of it", "session length under the start")

PROFILE_DOCS = {
    "activity": "the platform's degree of activity: 1 full, .67 high, .33 middle, 0 less or unknown",
    "author": "1 where the user has published videos",
    "streamer": "1 where the user streams live",
    "follows": "log(1 + users followed)",
    "fans": "log(1 + followers)",
    "friends": "log(1 + friends)",
    "registered": "log(1 + days since registration)",
    "watched_before": "log(1 + videos watched before the log begins, at most 50)",
    "long_before": "share of those that were watched long (smoothed)",
    "liked_before": "log odds of a like among those (smoothed)",
    "duration_before": "mean log duration of the videos watched long before the log begins",
}


def fit_world(log_path: Path, out_dir: Path, *, seed: int = 0, copies: int = 1, progress: bool = True) -> World:
    """Fit a world to the KuaiRand folder `log_path` and write it at `out_dir`; the same seed gives the same bytes.

    copies: simulated users for each logged one. They share what is known of him (attributes, history, scores) and each has a
    draw of his own of what the log leaves open: a day can then be larger than the log's population.
    progress: a bar on stderr. Raises InputError where the log cannot be used, or where `out_dir` holds something
    else than a world.
    """
    if copies < 1:
        raise InputError(f"copies: {copies}; give at least one simulated user for each logged one")
    replaceable(Path(out_dir), MARK)  # before time is spent
    with _stages(progress) as stage:
        stage(0)
        log = read_kuairand(log_path)
        design = Design.of(log)
        stage(1)
        scores = fit_scores(log, design)
        stage(2)
        response = fit_response(log, design, np.random.default_rng(seed), copies)
        stage(3)
        params = calibrate_leaving(assemble(log, design, scores, response, seed=seed))
    world = World(params)
    world.save(out_dir)
    return world


def assemble(log: KuaiRand, design: Design, scores: ScoreTables, response: ResponseTables, *, seed: int) -> WorldParams:
    """The tables of the world; the leaving is not yet calibrated."""
    profile = _profile(log, design)
    history = _history(log)
    copies = len(response.user) // len(log.user_key)

    def each(values: np.ndarray) -> np.ndarray:
        """A logged user's row for each of his copies."""
        return np.tile(values, (copies, *[1] * (values.ndim - 1)))

    spec = feed_spec(
        start_powers=START_POWERS,
        start_biases=START_BIASES,
        profile=PROFILE_DOCS,
        history=dict(zip(BEHAVIOURS, history.mean(axis=0).round(4).tolist(), strict=True)),
    )
    visits = np.bincount(np.unique(log.user * len(log.days) + log.day) // len(log.days), minlength=len(log.user_key))
    scalars = Scalars(
        true_intercept=_five(response.intercept),
        like_class=_three(response.like_class),
        interact_class=_three(response.interact_class),
        day_sd=_five(response.day_sd),
        score_intercept=_five(scores.intercept),
        n_candidates=min(N_CANDIDATES, len(log.item_key) // 2),
        leave_base=1 / figure("requests_per_session"),
        leave_repetition=0.0,
        leave_disappointment=0.0,
    )
    single, half = np.float32, np.float16
    return WorldParams(
        name=f"kuairand-{log.days[0]}-{log.days[-1]}-seed{seed}" + (f"-x{copies}" if copies > 1 else ""),
        kind="fitted",
        spec=spec,
        scalars=scalars,
        user_key=_keys(log.user_key, copies),
        user_weight=each(visits.astype(single)),
        user_leave=np.zeros(len(response.user), single),
        user_group=each(groups(log).astype(np.int8)),
        profile=each(profile.astype(single)),
        history=each(history.astype(single)),
        user_circle=np.arange(len(response.user)),
        item_key=log.item_key,
        item_tag=design.tag.astype(np.int16),
        item_bucket=design.bucket.astype(np.int8),
        item_duration_s=log.duration_s.astype(single),
        item_exposure=np.bincount(log.item, minlength=len(log.item_key)).astype(single),
        true_user=response.user.astype(single),
        true_item=response.item.astype(single),
        true_user_tag=response.user_tag.astype(half),
        true_user_duration=response.user_duration.astype(half),
        score_user=each(scores.user.astype(single)),
        score_item=scores.item.astype(single),
        score_user_tag=each(scores.user_tag.astype(half)),
        score_user_duration=each(scores.user_duration.astype(half)),
        watch_quantiles=response.watch_quantiles.astype(single),
        profile_names=tuple(PROFILE_DOCS),
        group_names=GROUP_NAMES,
        sources=_sources(log, scores, seed, copies),
        targets={
            "requests_per_session": {
                "value": figure("requests_per_session"),
                "tolerance": 0.05,
                "source": figures()["requests_per_session"]["source"],
            }
        },
    )


def _keys(user_key: np.ndarray, copies: int) -> np.ndarray:
    """int64 [copies * U]: the logged ids; copy c has c in front of them."""
    room = 10 ** len(str(int(user_key.max())))
    return (np.arange(copies)[:, None] * room + user_key).reshape(-1)


def groups(log: KuaiRand) -> np.ndarray:
    """int64 [U]: each user's place in GROUP_NAMES."""
    names = np.array(log.category_names[0])[log.categories[:, 0]]
    return np.array([GROUP_NAMES.index(n) if n in GROUP_NAMES else len(GROUP_NAMES) - 1 for n in names])


def _profile(log: KuaiRand, design: Design) -> np.ndarray:
    """[U, P] in the order of PROFILE_DOCS."""
    n_users = len(log.user_key)

    def flag(column: int) -> np.ndarray:
        return (np.array(log.category_names[column])[log.categories[:, column]] == "1").astype(float)

    degree = np.array([ACTIVITY.get(n, 0.0) for n in log.category_names[0]])[log.categories[:, 0]]
    counts = dict(zip(COUNTS, np.log1p(log.counts).T, strict=True))
    owner, item = log.history["long_watch"]
    known = (item >= 0) & np.isfinite(log.duration_s[item])
    owner, seconds = owner[known], np.log(log.duration_s[item[known]])
    overall = float(seconds.mean()) if len(seconds) else 4.0
    total, n = np.bincount(owner, seconds, n_users), np.bincount(owner, minlength=n_users)
    like = design.rates["like"]
    return np.column_stack(
        [
            degree,
            flag(2),
            flag(1),
            counts["follow_user_num"],
            counts["fans_user_num"],
            counts["friend_user_num"],
            counts["register_days"],
            np.log1p(design.rates["watched"]),
            design.rates["long"],
            np.log(like) - np.log1p(-np.minimum(like, 0.99)),
            (total + SMOOTHING * overall) / (n + SMOOTHING),
        ]
    )


def _history(log: KuaiRand) -> np.ndarray:
    """[U, B]: each user's means an impression in the log, with HISTORY_ROWS rows of everybody's."""
    n_users = len(log.user_key)
    rows = np.bincount(log.user, minlength=n_users)
    columns = {"watch": log.watch_s, "click": log.click, "valid": log.valid, "like": log.like, "interact": log.interact}
    means = []
    for name in BEHAVIOURS:
        y = columns[name].astype(float)
        means.append((np.bincount(log.user, y, n_users) + HISTORY_ROWS * y.mean()) / (rows + HISTORY_ROWS))
    return np.column_stack(means)


def _sources(log: KuaiRand, scores: ScoreTables, seed: int, copies: int) -> dict[str, Source]:
    data = f"KuaiRand log {log.days[0]} to {log.days[-1]}, tab 1, {len(log.user):,} rows"
    early = f"{data[:9]}log to {log.days[scores.first_test_day - 1]}"
    draw = f"one draw (seed {seed}) from the posterior of the response model on the {data}"
    users = f"users of the {data}"
    if copies > 1:
        users += f"; {copies} for each logged one, with his attributes, history and scores and draws of their own"
    learned = {
        **dict.fromkeys(("true_intercept", "true_user", "true_item", "true_user_tag", "true_user_duration"), draw),
        **dict.fromkeys(("like_class", "interact_class"), draw),
        "day_sd": f"residual pairs of one user on one day against other days, {data}",
        **dict.fromkeys(
            ("score_intercept", "score_user", "score_item", "score_user_tag", "score_user_duration"),
            f"additive models trained on the {early}",
        ),
        "score_noise": "none added: the errors are those of the fitted score models",
        "watch_quantiles": f"empirical quantiles by class and duration, {data}",
        "user_key": users,
        "user_weight": f"days on which the user came, {data}",
        "user_group": "user_active_degree of the user file",
        "profile": "user file, and the user's videos before the log begins",
        "history": f"each user's means in the {data}, with {HISTORY_ROWS:g} rows of everybody's",
        "item_key": f"videos of the {data}",
        "item_tag": "the video's first tag, the rarest together",
        "item_bucket": "duration as logged: six buckets and unknown",
        "item_duration_s": "duration as logged",
        "item_exposure": f"impressions, {data}",
    }
    borrowed = {"leave_base": figures()["requests_per_session"]["source"] + "; this log's sessions are incomplete"}
    assumed = {
        "n_candidates": "a ranking stage's usual size; the log holds no candidates. Drawn by exposure, the same for all users",
        "leave_elasticity": "the log does not identify it; repeat conclusions at 0, 1 and 2",
        "leave_offset": "calibrated so that sessions under the start last 1 / leave_base requests",
        "leave_satisfaction": "the log gives no support: one more valid item goes with +.007 (SE .013) rows on the next day",
        "leave_repetition": "none: the log does not identify effects of the slate",
        "leave_disappointment": "none: the log does not identify effects of the slate",
        "user_circle": "users are independent",
        "user_leave": "none: the log's sessions are incomplete",
        "history_rate": "about the last seven requests count",
        "start_hour_low": "sessions start evenly through the day",
        "start_hour_high": "early enough to close before midnight",
        "pause_low_s": "between requests, beside the watch time",
        "pause_high_s": "between requests, beside the watch time",
    }
    sources = {name: Source(label="learned", text=text) for name, text in learned.items()}
    sources |= {name: Source(label="borrowed", text=text) for name, text in borrowed.items()}
    sources |= {name: Source(label="assumed", text=text) for name, text in assumed.items()}
    missing = {*ARRAYS, *Scalars.__struct_fields__} - set(sources)
    assert not missing, missing
    return sources


def _five(values: np.ndarray) -> Five:
    a, b, c, d, e = (float(v) for v in values)
    return a, b, c, d, e


def _three(values: np.ndarray) -> Three:
    a, b, c = (float(v) for v in values)
    return a, b, c


@contextmanager
def _stages(progress: bool) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm

    with tqdm(total=len(STAGES), desc="fit", unit="stage", disable=not progress) as bar:
        done = 0

        def stage(i: int) -> None:
            nonlocal done
            bar.update(i - done)
            bar.set_postfix_str(STAGES[i])
            done = i

        yield stage
        bar.update(len(STAGES) - done)
