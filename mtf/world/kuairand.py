"""Reading a KuaiRand folder (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624) into arrays.

The folder holds Parquet files with the official columns: `log_standard_*` (one or several), `user_features`,
`video_features_basic` and `user_history_to_*` (what each user had watched and liked before the log begins).

Traps that are dealt with here: rows that are repeated whole, other tabs (in most of them hardly anything is played),
`duration_ms == 0` (missing, not short), several tags for one video, users without a history.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtf.errors import InputError
from mtf.world.params import VALID_S

if TYPE_CHECKING:
    import pandas as pd

MAIN_TAB = 1
WATCH_CAP_S = 600.0
INTERACTIONS = ("is_comment", "is_follow", "is_forward", "is_profile_enter")
CATEGORIES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18) if i != 3),
)
"""User attributes that are used as categories; `onehot_feat3` has 1,471 values and is left out."""

COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
COLUMNS = {
    "log": (
        "user_id", "video_id", "time_ms", "date", "is_click", "is_like", *INTERACTIONS, "play_time_ms", "duration_ms", "tab",
    ),
    "users": ("user_id", *CATEGORIES, *COUNTS),
    "videos": ("video_id", "video_duration", "tag"),
    "history": ("user_id", "watch_seq", "like_seq", "long_watch_seq"),
}  # fmt: skip
FILES = {
    "log": "log_standard_*.parquet",
    "users": "user_features*.parquet",
    "videos": "video_features_basic*.parquet",
    "history": "user_history_to_*.parquet",
}


@dataclass(frozen=True, eq=False)
class KuaiRand:
    """n impressions of the main tab by U users of V videos, in order of (user, time). Indices point into the tables.

    user, item int64 [n]; day int64 [n]: 0 = the log's first day; `days`: those days as YYYYMMDD.
    outcome columns [n]: click and valid (played at least 10 s) and like and interact bool, watch_s float64 (at most 600).
    A video that was played for 10 s counts as clicked (11 rows of the public log say otherwise).
    user_key, item_key: the log's ids. categories int64 [U, len(CATEGORIES)]: codes, missing has its own.
    counts float64 [U, len(COUNTS)]. duration_s float64 [V]: NaN where unknown. tag: the first tag [V].
    history: for each user the videos that were watched, long watched and liked before the log began, as three pairs
    (user index, item index or -1 where the video is not in the log).
    duplicates, other_tabs: rows that were left out.
    """

    user: np.ndarray
    item: np.ndarray
    day: np.ndarray
    click: np.ndarray
    valid: np.ndarray
    like: np.ndarray
    interact: np.ndarray
    watch_s: np.ndarray
    days: tuple[int, ...]
    user_key: np.ndarray
    item_key: np.ndarray
    categories: np.ndarray
    category_names: tuple[tuple[str, ...], ...]
    counts: np.ndarray
    duration_s: np.ndarray
    tag: np.ndarray
    history: dict[str, tuple[np.ndarray, np.ndarray]]
    duplicates: int
    other_tabs: int

    @property
    def response_class(self) -> np.ndarray:
        """int64 [n]: 0 no click, 1 click and less than 10 s, 2 valid."""
        return self.click.astype(np.int64) + self.valid


def read_kuairand(folder: Path) -> KuaiRand:
    """Read the folder. Raises InputError naming the file or column that is missing, or what is wrong with a value."""
    folder = Path(folder)
    tables = {kind: _read(folder, kind) for kind in FILES}
    log = tables["log"]
    n_all = len(log)
    log = log.drop_duplicates(["user_id", "video_id", "time_ms"])
    duplicates = n_all - len(log)
    main = log[log["tab"] == MAIN_TAB].sort_values(["user_id", "time_ms", "video_id"], kind="stable")
    if main.empty:
        raise InputError(f"log: {folder} has no row with tab = {MAIN_TAB}, the only tab that can be fitted")
    if (main["play_time_ms"] < 0).any():
        raise InputError(f"log: play_time_ms has a negative value in {folder}; remove those rows")
    user_key, user = np.unique(main["user_id"].to_numpy(np.int64), return_inverse=True)
    item_key, item = np.unique(main["video_id"].to_numpy(np.int64), return_inverse=True)
    day_key, day = np.unique(main["date"].to_numpy(np.int64), return_inverse=True)
    if len(day_key) < 2:
        raise InputError(f"log: {folder} covers one day, {day_key[0]}; scores need earlier days than the days they are tested on")
    users = _rows(tables["users"], "user_id", user_key, "users")
    videos = _rows(tables["videos"], "video_id", item_key, "videos")
    watch_s = np.minimum(main["play_time_ms"].to_numpy(float) / 1000, WATCH_CAP_S)
    valid = watch_s >= VALID_S
    basic_ms = videos["video_duration"].to_numpy(float, na_value=np.nan)
    codes, names = [], []
    for column in CATEGORIES:
        text = users[column].astype(str).fillna("missing").to_numpy(str)
        values, code = np.unique(text, return_inverse=True)
        codes.append(code)
        names.append(tuple(str(v) for v in values))
    tag = videos["tag"].astype(object).where(videos["tag"].notna(), "unknown").astype(str).str.split(",").str[0].to_numpy(str)
    history = tables["history"]
    return KuaiRand(
        user=user,
        item=item,
        day=day,
        click=(main["is_click"].to_numpy() > 0) | valid,
        valid=valid,
        like=main["is_like"].to_numpy() > 0,
        interact=np.asarray((main[list(INTERACTIONS)].to_numpy() > 0).any(axis=1)),
        watch_s=watch_s,
        days=tuple(int(d) for d in day_key),
        user_key=user_key,
        item_key=item_key,
        categories=np.stack(codes, axis=1),
        category_names=tuple(names),
        counts=np.maximum(users[list(COUNTS)].to_numpy(float), 0),
        duration_s=_durations(main["duration_ms"].to_numpy(float), item, basic_ms),
        tag=tag,
        history={
            name: _pairs(history, f"{name}_seq", user_key, item_key) for name in ("watch", "long_watch", "like")
        },
        duplicates=duplicates,
        other_tabs=len(log) - len(main),
    )  # fmt: skip


def _read(folder: Path, kind: str) -> pd.DataFrame:
    paths = sorted(folder.glob(FILES[kind]))
    if not paths:
        raise InputError(f"log: {folder} holds no {FILES[kind]}; give the folder of the KuaiRand Parquet files")
    parts = []
    for path in paths:
        try:
            names = pq.read_schema(path).names
            missing = [c for c in COLUMNS[kind] if c not in names]
            if missing:
                raise InputError(f"log: {path} lacks the column {missing[0]}; give the official KuaiRand columns")
            parts.append(pq.read_table(path, columns=list(COLUMNS[kind])))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"log: {path} is not readable as Parquet: {error}") from None
    return pa.concat_tables(parts, promote_options="permissive").to_pandas()


def _rows(table: pd.DataFrame, key: str, wanted: np.ndarray, name: str) -> pd.DataFrame:
    rows = table.drop_duplicates(key).set_index(key).reindex(wanted)
    unknown = wanted[~np.isin(wanted, table[key].to_numpy())]
    if len(unknown):
        raise InputError(f"log: {key} {unknown[0]} ({len(unknown)} in all) is in the log and not in the {name} file")
    return rows


def _durations(duration_ms: np.ndarray, item: np.ndarray, basic_ms: np.ndarray) -> np.ndarray:
    """Seconds [V]: the longest that the log says, else the video file's, else NaN."""
    logged = np.zeros(len(basic_ms))
    np.maximum.at(logged, item, duration_ms)
    duration = np.where(logged > 0, logged, basic_ms)
    return np.where(duration > 0, duration, np.nan) / 1000


def _pairs(history: pd.DataFrame, column: str, user_key: np.ndarray, item_key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lists = history[column].map(lambda s: () if s is None else s)
    counts = lists.map(len).to_numpy(np.int64)
    owners = np.repeat(_index(user_key, history["user_id"].to_numpy(np.int64)), counts)
    videos = np.concatenate([np.asarray(s, np.int64) for s in lists]) if len(lists) else np.empty(0, np.int64)
    keep = owners >= 0
    return owners[keep], _index(item_key, videos[keep])


def _index(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of `wanted` in the sorted `keys`, -1 where absent."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)
