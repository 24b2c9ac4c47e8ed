"""The check of a fitted world against its log, on a small log whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.world.fit import fit_world
from mtf.world.fit_check import _apart, check_fit
from mtf.world.world import World
from tests.world.log import make_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_log().write(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def world(folder, tmp_path_factory):
    return fit_world(folder, tmp_path_factory.mktemp("fitted") / "world", seed=0, copies=2, progress=False)


@pytest.fixture(scope="module")
def check(folder, world):
    return check_fit(folder, world)


def test_how_outcomes_vary_together_by_hand():
    user, day = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 1])
    y = np.array([1.0, 0.0, 1.0, 0.0, -2.0])  # mean 0: pairs on different days are (1, 1), (0, 1) and (0, -2)
    value, se = _apart(y, user, day)
    assert value == pytest.approx((1 + 0 + 0) / 3)
    # users: products 2 of 4 ordered pairs and 0 of 2
    assert se == pytest.approx(np.hypot(2 - 4 / 3, 0 - 2 / 3) / 6)


def test_a_twin_orders_days_that_it_did_not_see(check):
    click = next(o for o in check.ordering if o.head == "click")
    assert click.twin > 0.65
    for level in check.levels:
        if level.head == "click":
            assert level.predicted == pytest.approx(level.observed, abs=0.05)


def test_a_world_has_the_logs_taste_and_one_without_users_has_none(check, folder, world):
    click = next(t for t in check.together if t.head == "click")
    assert click.se > 0
    assert click.world == pytest.approx(click.log, abs=4 * click.se)
    assert click.world > 0.01
    flat = replace(world.params, true_user=np.zeros_like(world.params.true_user))
    without = next(t for t in check_fit(folder, World(flat)).together if t.head == "click")
    assert without.log == click.log
    assert without.world < 0.5 * click.world


def test_another_log_is_refused(world, tmp_path):
    other = make_log(users=310).write(tmp_path / "log")
    with pytest.raises(InputError, match="is not the log that world"):
        check_fit(other, world)
