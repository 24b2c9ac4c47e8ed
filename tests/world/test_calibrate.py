import numpy as np
import pytest

from mtf.policy import bootstrap_policy
from mtf.world.calibrate import DAY, SEED, calibrate_leaving, measure
from mtf.world.play import play
from mtf.world.world import World


@pytest.fixture(scope="module")
def params(world_dir):
    return World.load(world_dir).params


def test_levels_are_what_happens_in_play_without_its_noise(params):
    world, n = World(params), 1200
    level = measure(params, n)
    cohort = world.cohort(world.sample_users(n, DAY, SEED), dt=DAY, seed=SEED, width=n)
    seen = [f.behaviours().reshape(-1, 5) for _, _, _, f in play(cohort, bootstrap_policy(world.spec))]
    rows = np.concatenate(seen)
    watch, click, valid, like, interact = rows.mean(axis=0, dtype=np.float64).tolist()
    for name, played in (("click", click), ("valid", valid), ("like", like), ("interact", interact)):
        # outcomes of one session go together: three times the plain error
        assert getattr(level, name) == pytest.approx(played, abs=12 * np.sqrt(played / len(rows)))
    assert level.watch_s == pytest.approx(watch, rel=0.05)
    assert level.requests == pytest.approx(len(rows) / world.spec.n_shown / n, rel=0.06)
    # bedtime ends few
    assert 0.95 < level.requests * level.mean_hazard <= 1


def test_sessions_that_bedtime_ends_are_not_counted_as_left(params):
    """Begun so late that a third of the sessions is cut: by the hazard alone they would be half as long again."""
    world, n = World(params.with_scalars(start_hour_low=22.3, start_hour_high=22.8)), 2000
    level = measure(world.params, n)
    cohort = world.cohort(world.sample_users(n, DAY, SEED), dt=DAY, seed=SEED, width=n)
    counted = sum(len(f.left) for _, _, _, f in play(cohort, bootstrap_policy(world.spec))) / n
    assert level.requests == pytest.approx(counted, rel=0.06)
    assert 1 / level.mean_hazard > 1.3 * counted


@pytest.mark.parametrize("shift", [-0.4, 0.4])
def test_a_session_lasts_as_long_as_it_should_again(params, shift):
    moved = params.with_scalars(leave_offset=params.scalars.leave_offset + shift)
    assert abs(np.log(measure(moved, 600).requests * params.scalars.leave_base)) > 0.15
    back = calibrate_leaving(moved, sessions=600)
    assert measure(back, 600).requests == pytest.approx(1 / params.scalars.leave_base, rel=0.004)


def test_without_elasticity_there_is_nothing_to_calibrate(params):
    still = params.with_scalars(leave_elasticity=0.0)
    assert calibrate_leaving(still) is still
