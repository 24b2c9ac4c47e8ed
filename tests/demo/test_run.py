"""What a demo refuses before it writes or starts anything; played as a whole it is in tests/integration."""

from __future__ import annotations

import pytest

from mtf.demo.run import DemoConfig, _configuration, _require_new, demo
from mtf.errors import MtfError
from mtf.fileio import write_atomic
from mtf.logs.spool import open_spool
from mtf.policy import bootstrap_policy
from mtf.settings import Settings
from mtf.world.simulate import simulate
from mtf.world.world import World
from tests.conftest import small_spec

DT = "2026-03-02"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr("mtf.platform.run.up", lambda *_, **__: pytest.fail("the platform was started"))
    return Settings(state_dir=tmp_path / "state")


def test_a_day_is_never_played_twice_into_the_same_sessions(settings, world_dir):
    world = World.load(world_dir)
    spool = open_spool(settings.spool_dir("feed"), events_move_clock=False)
    spool.append(*simulate(world, bootstrap_policy(world.spec), 20, DT, 1, 0.3))
    spool.close()
    with pytest.raises(MtfError, match=rf"holds traffic of {DT} to {DT}, .*`make down clean` first"):
        demo(settings, rounds=1, world=world_dir)
    assert sorted(path.name for path in settings.state_dir.iterdir()) == ["spool"]


def test_the_folder_of_another_feed_is_left_as_it_is(settings, world_dir):
    small_spec().write(settings.state_dir / "surfaces" / "feed" / "spec.json")
    with pytest.raises(MtfError, match=rf"spec.json: version {small_spec().version}, the world's spec is"):
        demo(settings, rounds=1, world=world_dir)
    assert not (settings.state_dir / "demo").exists()


@pytest.mark.parametrize("name", ["rollout.json", "pipeline.json"])
def test_an_operators_own_rules_are_left_as_they_are(settings, world_dir, name):
    path = settings.state_dir / "surfaces" / "feed" / name
    write_atomic(path, b'{"seed": 42}')
    with pytest.raises(MtfError, match=f"{name} is not what this demo would write"):
        demo(settings, rounds=1, world=world_dir)
    assert path.read_bytes() == b'{"seed": 42}'


def test_one_that_was_interrupted_before_its_first_day_may_begin_again(settings, world_dir):
    world, written = World.load(world_dir), _configuration(DemoConfig())
    world.spec.write(settings.state_dir / "surfaces" / "feed" / "spec.json")
    for name, content in written.items():
        write_atomic(settings.state_dir / name, content)
    _require_new(settings, world, written)
