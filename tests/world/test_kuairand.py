"""Reading a KuaiRand folder: its traps, on a log that was made here."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtf.errors import InputError
from mtf.world.kuairand import COLUMNS, FILES, read_kuairand
from tests.world.log import DAYS, make_log


@pytest.fixture(scope="module")
def made():
    return make_log(users=60, videos=40, rows=2000)


@pytest.fixture(scope="module")
def log(made, tmp_path_factory):
    return read_kuairand(made.write(tmp_path_factory.mktemp("log")))


def main_rows(made):
    rows = made.rows.drop_duplicates(["user_id", "video_id", "time_ms"])
    return rows[rows["tab"] == 1].sort_values(["user_id", "time_ms"])


def test_repeated_rows_and_other_tabs_are_left_out_and_counted(made, log):
    assert (log.duplicates, log.other_tabs) == (50, 100)
    assert len(log.user) == 2000
    assert log.days == DAYS


def test_rows_are_those_of_the_files_in_order_of_user_and_time(made, log):
    rows = main_rows(made)
    np.testing.assert_array_equal(log.user_key[log.user], rows["user_id"])
    np.testing.assert_array_equal(log.item_key[log.item], rows["video_id"])
    np.testing.assert_array_equal(np.array(DAYS)[log.day], rows["date"])
    np.testing.assert_allclose(log.watch_s, rows["play_time_ms"] / 1000)
    np.testing.assert_array_equal(log.valid, rows["play_time_ms"] >= 10_000)
    np.testing.assert_array_equal(log.like, rows["is_like"])
    np.testing.assert_array_equal(log.interact, rows[["is_comment", "is_follow", "is_forward", "is_profile_enter"]].max(axis=1))
    np.testing.assert_array_equal(log.response_class, rows["is_click"].to_numpy() + (rows["play_time_ms"] >= 10_000))


def test_a_video_played_for_ten_seconds_was_clicked_and_no_play_is_longer_than_ten_minutes(made, tmp_path):
    rows = made.rows.copy()
    first = main_rows(made).index[:2]
    rows.loc[first, "is_click"] = 0
    rows.loc[first, "play_time_ms"] = [10_000, 3_000_000]
    log = read_kuairand(replace(made, rows=rows).write(tmp_path))
    assert log.click[:2].all()
    assert log.watch_s[:2].tolist() == [10.0, 600.0]


def test_a_duration_of_nought_is_missing_and_the_video_file_helps(made, log):
    videos = made.videos.set_index("video_id")["video_duration"].to_dict()
    index = (log.item_key - 50) // 7
    for i, key in zip(index, log.item_key, strict=True):
        seconds = log.duration_s[np.searchsorted(log.item_key, key)]
        if i % 20 == 0:  # neither the log nor the file knows it
            assert np.isnan(seconds)
        else:
            assert seconds == pytest.approx(videos[key] / 1000, abs=1e-3)


def test_of_several_tags_the_first_counts(made, log):
    tag = dict(zip(log.item_key.tolist(), log.tag.tolist(), strict=True))
    assert [tag[50 + 7 * i] for i in range(4)] == ["1", "2", "3", "unknown"]


def test_histories_point_at_users_and_videos_of_the_log(made, log):
    owner, item = log.history["watch"]
    per_user = np.bincount(owner, minlength=len(log.user_key))
    assert set(per_user[(log.user_key - 1000) // 3 % 5 == 0]) == {0}
    assert set(per_user[(log.user_key - 1000) // 3 % 5 != 0]) == {8}
    first = made.history.iloc[0]
    mine = item[owner == np.searchsorted(log.user_key, first["user_id"])]
    assert [int(log.item_key[i]) if i >= 0 else None for i in mine] == [v if v >= 50 else None for v in first["watch_seq"]]
    assert (item < 0).any()


def test_missing_attributes_are_a_category_of_their_own(log):
    column = 7 + 4 - (1 if 4 > 3 else 0)  # onehot_feat4, after seven named ones, onehot_feat3 left out
    names = log.category_names[column]
    assert "nan" in names or "missing" in names
    assert len(set(log.categories[:, column])) == len(names) == 2


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_file_or_column_is_named(made, tmp_path, kind):
    made.write(tmp_path)
    paths = sorted(tmp_path.glob(FILES[kind]))
    column = COLUMNS[kind][-1]
    pd.read_parquet(paths[0]).drop(columns=[column]).to_parquet(paths[0], index=False)
    with pytest.raises(InputError, match=f"{paths[0].name} lacks the column {column}"):
        read_kuairand(tmp_path)
    paths[0].write_bytes(b"no parquet")
    with pytest.raises(InputError, match=f"{paths[0].name} is not readable as Parquet"):
        read_kuairand(tmp_path)
    for path in paths:
        path.unlink()
    with pytest.raises(InputError, match=r"holds no .*parquet; give the folder of the KuaiRand"):
        read_kuairand(tmp_path)


SPOILT = {
    "one day": (lambda m: replace(m, rows=m.rows[m.rows["date"] == DAYS[0]]), "covers one day, 20220429"),
    "no main tab": (lambda m: replace(m, rows=m.rows.assign(tab=0)), "no row with tab = 1"),
    "negative play": (lambda m: replace(m, rows=m.rows.assign(play_time_ms=-1)), "play_time_ms has a negative value"),
    "unknown user": (
        lambda m: replace(m, users=m.users.iloc[1:]),
        r"user_id 1000 \(1 in all\) is in the log and not in the users",
    ),
    "unknown video": (
        lambda m: replace(m, videos=m.videos.iloc[2:]),
        r"video_id 50 \(2 in all\) is in the log and not in the videos",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_a_log_that_cannot_be_fitted_is_refused_with_the_reason(made, tmp_path, spoil, says):
    with pytest.raises(InputError, match=says):
        read_kuairand(spoil(made).write(tmp_path))
