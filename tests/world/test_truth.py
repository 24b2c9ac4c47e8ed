"""True values: several draws of users as one."""

from __future__ import annotations

import numpy as np
import pytest

from mtf.policy import bootstrap_policy
from mtf.world.presets import Knobs, build
from mtf.world.truth import pooled, true_value
from mtf.world.world import World


def test_draws_are_pooled_session_by_session():
    world = World(build("default", Knobs(users=2_000, items=300)))
    start = bootstrap_policy(world.spec)
    draws = [true_value(world, start, 150, seed) for seed in (1, 2, 3)]
    whole = pooled(draws)
    sessions = np.concatenate([draw.sessions for draw in draws])
    np.testing.assert_array_equal(whole.sessions, sessions)
    assert whole.mean == pytest.approx(np.mean([draw.mean for draw in draws]))
    assert whole.se == pytest.approx(sessions.std(ddof=1) / np.sqrt(450))
    assert whole.discounted == pytest.approx(np.mean([draw.discounted for draw in draws]))
    assert whole.metrics["like"] == pytest.approx(np.mean([draw.metrics["like"] for draw in draws]))
    assert whole.metrics["reward"] == pytest.approx(whole.mean)
    assert whole.lift_over(pooled(draws)) == (0.0, 0.0)


def test_one_draw_is_itself():
    world = World(build("default", Knobs(users=2_000, items=300)))
    draw = true_value(world, bootstrap_policy(world.spec), 100, 1)
    again = pooled([draw])
    assert (again.mean, again.se, again.metrics) == (draw.mean, draw.se, draw.metrics)
