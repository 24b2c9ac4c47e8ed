"""`mtf world ...`, `mtf simulate`, `mtf traffic`."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.logs.days import day_files, list_days
from mtf.world.world import World
from tests.commands.conftest import said
from tests.world.log import make_log


def test_make_replaces_the_knobs_of_its_file(mtf, tmp_path):
    (tmp_path / "knobs.yaml").write_text("users: 500\nitems: 120\nscalars: {n_candidates: 20, leave_disappointment: 1.0}\n")
    done = mtf("world", "make", "--preset", "personalised", "--config", tmp_path / "knobs.yaml", "--out", tmp_path / "world")
    said(done, 0, "parametric world `personalised`, 500 users, 120 items")
    world = World.load(tmp_path / "world")
    assert (world.n_users, world.n_items, world.params.scalars.n_candidates) == (500, 120, 20)
    assert world.params.scalars.leave_disappointment == 1.0


@pytest.mark.parametrize(
    ("preset", "knobs", "says"),
    [
        ("magic", "{}", "preset: 'magic' is unknown; use one of default, personalised, global_only, null"),
        ("default", "[1]", "holds list; give an object"),
        ("default", "a: [", "is no YAML"),
        ("default", "userz: 5", "userz"),
        ("default", "users: many", "users"),
        ("default", "scalars: {candidates: 5}", "candidates"),
    ],
)
def test_make_names_what_it_cannot_use_and_writes_nothing(mtf, tmp_path, preset, knobs, says):
    (tmp_path / "knobs.yaml").write_text(knobs)
    done = mtf("world", "make", "--preset", preset, "--config", tmp_path / "knobs.yaml", "--out", tmp_path / "world")
    said(done, 1, says)
    assert not (tmp_path / "world").exists()


def test_fit_makes_a_world_of_a_log_that_describe_explains(mtf, tmp_path):
    folder = make_log(users=120, videos=90, rows=3000).write(tmp_path / "log")
    said(mtf("world", "fit", "--log", folder, "--out", tmp_path / "fitted"), 0, "fitted world")
    done = mtf("world", "describe", tmp_path / "fitted", "--no-headroom", "--quick")
    said(done, 0, "fitted world `kuairand-20220429-20220502-seed0`: 120 users, 90 items")
    for label in ("learned", "borrowed", "assumed"):
        assert f"\n{label} (" in done.out
    assert "leave_elasticity" in done.out.split("\nassumed (")[1]
    said(mtf("world", "fit", "--log", tmp_path, "--out", tmp_path / "x"), 1, "give the folder of the KuaiRand")


def test_describe_shows_what_a_world_rests_on(mtf, world_dir, tmp_path):
    done = mtf("world", "describe", world_dir, "--no-headroom", "--quick")
    said(done, 0, "parametric world `default`: 4,000 users, 1,500 items")
    assert "requests_per_session" in done.out
    assert "published" in done.out
    assert "Headroom" not in done.out
    said(mtf("world", "describe", tmp_path), 1, "world.json does not exist; make one with `mtf world make")
    (tmp_path / "world.json").write_text("{}")
    said(mtf("world", "describe", tmp_path), 1, "mtf: world: ")


def test_a_second_day_extends_the_folder(mtf, tour, world_dir, tmp_path):
    """Without a box, in the same folder, under another policy."""
    import shutil

    shutil.copytree(tour / "logs", tmp_path / "logs")
    day = ("--users", 30, "--dt", "2026-03-03", "--seed", 2, "--box", 0)
    done = mtf("simulate", "--world", world_dir, "--policy", tour / "policy", *day, "--out", tmp_path / "logs")
    said(done, 0, "dt=2026-03-03/r1")
    assert list_days(tmp_path / "logs") == ["2026-03-02", "2026-03-03"]
    rows = pa.concat_tables([pq.read_table(path) for path in day_files(tmp_path / "logs", "2026-03-03", "requests")])
    assert not any(rows["exploring"].to_pylist())
    assert len(set(rows["user_id"].to_pylist())) == 30
    # the same again is the same revision; another seed is another one
    same = mtf("simulate", "--world", world_dir, "--policy", tour / "policy", *day, "--out", tmp_path / "logs")
    assert same.out == done.out
    other = ("--users", 30, "--dt", "2026-03-03", "--seed", 3)
    said(mtf("simulate", "--world", world_dir, *other, "--out", tmp_path / "logs"), 0, "dt=2026-03-03/r2")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"--dt": "2026-3-2"}, "dt: '2026-3-2' is no date; give YYYY-MM-DD"),
        ({"--dt": "tomorrow"}, "is no date"),
        ({"--box": 2}, "box: half-width 2.0; keep it between 0"),
        ({"--users": 5000}, "users: 5000 asked for; this world has 4000"),
        ({"--policy": "/nowhere"}, "/nowhere holds no policy.json"),
        ({"--world": "/tmp"}, "/tmp/world.json does not exist"),
    ],
)
def test_simulate_names_what_it_cannot_use(mtf, world_dir, tmp_path, options, says):
    given = {"--world": world_dir, "--users": 10, "--dt": "2026-03-02", "--out": tmp_path / "logs"} | options
    done = mtf("simulate", *(part for pair in given.items() for part in pair))
    said(done, 1, says)
    assert not (tmp_path / "logs").exists()


def test_a_policy_of_another_spec_is_refused(mtf, world_dir, tmp_path):
    from tests.conftest import random_policy, small_spec

    random_policy(spec=small_spec()).write(tmp_path / "p")
    done = mtf(
        "simulate", "--world", world_dir, "--policy", tmp_path / "p", "--users", 5, "--dt", "2026-03-02", "--out", tmp_path / "l"
    )
    said(done, 1, "simulate it in its own world")


def test_traffic_plays_a_day_against_a_server(mtf, world_dir, tmp_path):
    from mtf.rollout.document import Arms
    from mtf.rollout.start import initialise
    from mtf.settings import Settings
    from tests.serving.conftest import running

    settings = Settings(state_dir=tmp_path / "server", clock="simulated")
    initialise(settings, "feed", World.load(world_dir).spec, Arms(explore=0.5), 0.2)
    with running(settings) as client:
        done = mtf("traffic", "--world", world_dir, "--url", client.url, "--users", 20, "--dt", "2026-03-02")
    said(done, 0, "2026-03-02: 20 sessions")
    done = mtf("traffic", "--world", world_dir, "--url", "localhost:8088", "--users", 2, "--dt", "2026-03-02")
    said(done, 1, "no address of a server; give e.g. http://127.0.0.1:8088")


def test_a_scenario_is_another_world_and_an_unknown_one_is_named(mtf, world_dir, tmp_path):
    done = mtf(
        "world", "scenario", world_dir, "shifted_population", "--set", "group=0", "--set", "factor=3", "--out", tmp_path / "w"
    )
    assert done.code == 0, done
    before, after = (json.loads((folder / "world.json").read_text())["name"] for folder in (world_dir, tmp_path / "w"))
    assert before != after
    said(mtf("world", "scenario", world_dir, "magic", "--out", tmp_path / "x"), 1, "magic")
