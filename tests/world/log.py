"""A small log in the columns of KuaiRand, with known effects and each of its traps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mtf.world.kuairand import CATEGORIES, COUNTS, INTERACTIONS

DAYS = (20220429, 20220430, 20220501, 20220502)
TAGS = ("1,2", "2", "3", None)


@dataclass(frozen=True)
class Made:
    """The log as written, row for row, and the truth behind it: `lift` [U] is each user's own effect on clicking."""

    rows: pd.DataFrame
    users: pd.DataFrame
    videos: pd.DataFrame
    history: pd.DataFrame
    lift: np.ndarray

    def write(self, folder: Path) -> Path:
        """The four files."""
        folder.mkdir(parents=True, exist_ok=True)
        half = len(self.rows) // 2
        self.rows.iloc[:half].to_parquet(folder / "log_standard_a.parquet", index=False)
        self.rows.iloc[half:].to_parquet(folder / "log_standard_b.parquet", index=False)
        self.users.to_parquet(folder / "user_features.parquet", index=False)
        self.videos.to_parquet(folder / "video_features_basic.parquet", index=False)
        self.history.to_parquet(folder / "user_history_to_20220424.parquet", index=False)
        return folder


def make_log(users: int = 300, videos: int = 120, rows: int = 12_000, seed: int = 0) -> Made:
    """`rows` impressions of the main tab: a click has the logit -.2 + lift[u] + .5 [tag 3]; half of the clicks are valid."""
    rng = np.random.default_rng(seed)
    user_ids, video_ids = 1000 + 3 * np.arange(users), 50 + 7 * np.arange(videos)
    active = np.array(["full_active", "high_active", "UNKNOWN"])[np.arange(users) % 3]
    lift = 0.8 * rng.normal(size=users) + np.where(active == "full_active", 0.5, 0.0)
    kind = np.arange(videos) % len(TAGS)
    seconds = rng.uniform(5, 200, videos)
    u, v = rng.integers(0, users, rows), rng.integers(0, videos, rows)
    day = rng.integers(0, len(DAYS), rows)
    click = rng.random(rows) < 1 / (1 + np.exp(0.2 - lift[u] - 0.5 * (kind[v] == 2)))
    valid = click & (rng.random(rows) < 0.5)
    watch = np.where(valid, 10 + rng.exponential(30, rows), rng.uniform(0, 9.9, rows))
    columns = {
        "user_id": user_ids[u],
        "video_id": video_ids[v],
        # distinct moments: only what is repeated on purpose is a duplicate
        "time_ms": 1_650_000_000_000 + 1000 * rng.permutation(rows),
        "date": np.array(DAYS)[day],
        "is_click": click.astype(int),
        "is_like": (valid & (rng.random(rows) < 0.1)).astype(int),
        **{name: (valid & (rng.random(rows) < 0.02)).astype(int) for name in INTERACTIONS},
        "play_time_ms": (1000 * watch).astype(int),
        # 0 means missing, here for every tenth video
        "duration_ms": np.where(v % 10 == 0, 0, (1000 * seconds[v]).astype(int)),
        "tab": 1,
    }
    log = pd.DataFrame(columns)
    repeated, other = log.iloc[:50], log.iloc[50:150].assign(tab=4, time_ms=lambda t: t["time_ms"] + 1)
    log = pd.concat([log, repeated, other]).sample(frac=1, random_state=seed).reset_index(drop=True)
    features = {"user_id": user_ids, "user_active_degree": active}
    for name in CATEGORIES[1:]:
        features[name] = rng.integers(0, 3, users) if name != "onehot_feat4" else np.where(rng.random(users) < 0.1, np.nan, 1.0)
    features |= {name: rng.integers(0, 100, users) for name in COUNTS}
    basic = {"video_id": video_ids, "video_duration": np.where(np.arange(videos) % 20 == 0, np.nan, 1000 * seconds)}
    basic["tag"] = [TAGS[k] for k in kind]
    # every fifth user has no history; ids of videos that the log does not have are normal
    known = user_ids[np.arange(users) % 5 != 0]
    seen = [rng.choice([*video_ids, 1, 2, 3], 8, replace=False).tolist() for _ in known]
    history = {"user_id": known, "watch_seq": seen, "long_watch_seq": [s[:4] for s in seen], "like_seq": [s[:1] for s in seen]}
    return Made(log, pd.DataFrame(features), pd.DataFrame(basic), pd.DataFrame(history), lift)
