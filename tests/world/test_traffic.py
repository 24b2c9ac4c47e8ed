"""A day over HTTP, against the real server: what the spool then holds is what happened."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mtf.errors import InputError, MtfError
from mtf.logs.days import day_files
from mtf.logs.seal import seal_day
from mtf.logs.spool import SpoolReader
from mtf.rollout.document import Arms
from mtf.rollout.start import initialise
from mtf.settings import Settings
from mtf.world import traffic
from mtf.world.traffic import DayStats, _Defects, play_day
from mtf.world.world import World, day_number
from tests.logs.rows import SPEC, feedback, requests
from tests.serving.conftest import running

DT = "2026-03-02"


@pytest.fixture(scope="module")
def world(world_dir):
    return World.load(world_dir)


@pytest.fixture(scope="module")
def played(world, tmp_path_factory):
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"), clock="simulated")
    initialise(settings, "feed", world.spec, Arms(explore=0.9), 0.3)
    with running(settings) as client:
        stats = play_day(world, client.url, users=70, dt=DT, seed=3, duplicates=0.05, late=0.02)
    return settings, stats


def test_the_spool_holds_every_row_and_the_repeated_ones_twice(world, played):
    settings, stats = played
    reader = SpoolReader(settings.spool_dir("feed"))
    kinds = {"requests": [], "feedback": []}
    for _, batch in reader.batches({}, DT):
        kinds[batch.kind].append(batch.rows)
    asked, seen = (pa.concat_tables(kinds[kind]) for kind in ("requests", "feedback"))
    assert asked.num_rows == stats.requests == len(set(asked["request_id"].to_pylist()))
    assert stats.impressions == 6 * stats.requests
    assert seen.num_rows == stats.impressions + stats.duplicates
    copies = Counter(zip(seen["request_id"].to_pylist(), seen["item_id"].to_pylist(), strict=True))
    assert len(copies) == stats.impressions
    assert sorted(set(copies.values())) == [1, 2]
    assert sum(n == 2 for n in copies.values()) == stats.duplicates > 0
    assert 0 < stats.late < stats.impressions / 10
    assert stats.retries == 0
    assert len(set(asked["user_id"].to_pylist())) == stats.users == 70


def test_the_clock_stands_past_the_day_so_that_it_can_be_sealed(world, played):
    settings, stats = played
    watermark = SpoolReader(settings.spool_dir("feed")).watermark()
    assert watermark == (day_number(DT) + 1) * 86_400_000_000 + 3_600_000_000
    manifest = seal_day(settings.spool_dir("feed"), settings.logs_dir("feed"), DT, world.spec, surface="feed")
    assert manifest.rows("requests") == stats.requests
    assert day_files(settings.logs_dir("feed"), DT, "feedback")


def test_a_server_that_refuses_or_is_away_is_named(world, tmp_path, monkeypatch):
    settings = Settings(state_dir=tmp_path / "real", clock="real")
    initialise(settings, "feed", world.spec, Arms(), 0.0)
    with running(settings) as client, pytest.raises(MtfError, match="refused the message: 4"):
        play_day(world, client.url, users=2, dt=DT, seed=1)
    monkeypatch.setattr(traffic, "ATTEMPTS", 2)
    with pytest.raises(MtfError, match=r"gave no answer in 2 attempts .*is `mtf serve` running"):
        play_day(world, "http://127.0.0.1:9", users=2, dt=DT, seed=1)
    with pytest.raises(InputError, match="no address of a server"):
        play_day(world, "localhost", users=2, dt=DT, seed=1)


@pytest.mark.parametrize(("duplicates", "late"), [(0.0, 0.0), (0.2, 0.1), (1.0, 0.0), (0.0, 1.0)])
def test_defects_lose_nothing(duplicates, late):
    stats = DayStats(dt=DT, users=1)
    defects = _Defects(SPEC, 7, duplicates, late, stats)
    sent = []
    tables = [feedback(requests(40, seed=i, start=day_number(DT) * 86_400_000_000)) for i in range(5)]
    for table in tables:
        sent += defects.apply(table)["request_id"].to_pylist()
    held = defects.held()
    sent += held["request_id"].to_pylist() if held is not None else []
    copies = Counter(sent)
    assert set(copies) == {r for table in tables for r in table["request_id"].to_pylist()}
    assert sum(n - 1 for n in copies.values()) == stats.duplicates
    assert stats.duplicates == pytest.approx(200 * duplicates, abs=4 * np.sqrt(200 * duplicates * (1 - duplicates)) + 1e-9)
    assert stats.late == pytest.approx(200 * late, abs=4 * np.sqrt(200 * late * (1 - late)) + 1e-9)
