"""Which sessions are read, and how the others are counted."""

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.evaluation.rows import select
from mtf.evaluation.steps import make_steps


@pytest.fixture
def data(world):
    return world(100, seed=0, slope=np.zeros(2))


def of(data, sessions) -> np.ndarray:
    return np.isin(data.session, sessions)


def test_each_session_is_dropped_whole_and_counted_once(data, changed) -> None:
    first = data.starts
    sha = np.where(of(data, [3, 4]), "other", "champion").astype(object)
    fallback = np.full(len(data), None, object)
    fallback[first[[3, 5]]] = "timeout"
    exploring = ~of(data, [0, 1, 2])
    whole = np.flatnonzero(np.diff(np.append(first, len(data))) > 1)
    partly = int(whole[whole > 10][0])
    exploring[first[partly]] = False
    marked = changed(data, policy_sha=sha, fallback=fallback, exploring=exploring)
    chosen = select(marked, "champion")
    assert chosen.drops == {"not_explored": 3, "other_policy": 2, "partly_explored": 1, "fallback": 1, "late_start": 0}
    assert chosen.data.n_sessions == 93
    assert chosen.data.exploring.all()
    assert chosen.policy_sha == "champion"
    assert chosen.on_policy.n_sessions == 3
    assert chosen.reason is None


def test_the_policys_own_sessions_say_nothing_of_the_level_where_they_were_cut(world, changed) -> None:
    """Those that ended before a limit of length are the short ones."""
    for longest, kept in ((400, True), (8, False)):
        data = world(400, seed=3, slope=np.zeros(1), longest=longest)
        own = data.user % 4 == 0
        chosen = select(changed(data, exploring=~own), None)
        assert (chosen.on_policy.n_sessions == 100) is kept
        assert kept or chosen.on_policy.n_sessions == 0


def test_late_starts_are_dropped(data, changed) -> None:
    start = np.repeat(np.arange(100) * 1000, np.diff(np.append(data.starts, len(data))))
    marked = changed(data, ts=start + 500 * data.step)
    marked = type(data)(**{**marked.__dict__, "columns": ("ts",)})
    duration = 500 * np.diff(np.append(data.starts, len(data))) - 500
    kept = marked.ts[marked.starts] <= marked.ts.max() - np.quantile(duration, 0.99)
    chosen = select(marked, None)
    assert chosen.drops["late_start"] == (~kept).sum() > 0


def test_a_day_that_ended_long_after_its_last_session_drops_none(data, changed) -> None:
    start, end = (np.datetime64(day, "us").astype(np.int64) for day in ("2026-03-02", "2026-03-03"))
    begins = np.repeat(start + np.arange(100) * 100_000_000, np.diff(np.append(data.starts, len(data))))
    marked = changed(data, ts=begins + 60_000_000 * data.step, dt=np.full(len(data), "2026-03-02", object))
    marked = type(data)(**{**marked.__dict__, "columns": ("ts",)})
    assert select(marked, None).drops["late_start"] == 0
    # moved to the day's end, the last sessions that are in the data closed a gap before midnight
    late = changed(marked, ts=marked.ts - marked.ts.max() + end - 1800 * 1_000_000)
    late = type(data)(**{**late.__dict__, "columns": ("ts",)})
    duration = 60_000_000 * (np.diff(np.append(data.starts, len(data))) - 1)
    kept = late.ts[late.starts] <= end - 1800 * 1_000_000 - np.quantile(duration, 0.99)
    assert select(late, None).drops["late_start"] == (~kept).sum() > 0


def test_no_exploration_is_a_reason_not_an_error(data, changed) -> None:
    chosen = select(changed(data, exploring=False), None)
    assert chosen.data.n_sessions == 0
    assert "explored" in str(chosen.reason)


def test_another_baseline_is_a_reason(data, changed) -> None:
    chosen = select(changed(data, policy_sha=np.full(len(data), "a", object)), "b")
    assert "around the baseline b" in str(chosen.reason)


def test_logged_takes_the_policy_that_explored_last(data, changed) -> None:
    sha = np.where(of(data, range(50)), "old", "new").astype(object)
    chosen = select(changed(data, policy_sha=sha), None)
    assert chosen.policy_sha == "new"
    assert chosen.drops["other_policy"] == 50


def test_positions_and_coverage(data, constant) -> None:
    steps, coverage = make_steps(data, constant(np.array([0.15, -0.45])), constant(np.array([0.06, 0.0])))
    np.testing.assert_allclose(steps.y[0], [0.5, -1.0], atol=1e-6)
    np.testing.assert_allclose(steps.y0[0], [0.2, 0.0], atol=1e-6)
    assert coverage.states == 1.0
    np.testing.assert_array_equal(coverage.dims, [0.0, 1.0])
    assert coverage.deployed_off == 1.0


def test_a_fixed_dimension_must_stay_where_it_is(data, constant, changed) -> None:
    fixed = {name: getattr(data, name) * np.array([1, 0], np.float32) for name in ("lower", "upper", "action")}
    steps, coverage = make_steps(changed(data, **fixed), constant(np.array([0.1, 0.2])), None)
    np.testing.assert_array_equal(steps.varied, [True, False])
    np.testing.assert_array_equal(coverage.dims, [0.0, 1.0])
    assert (steps.y[:, 1] == 0).all()


def test_successors_end_continue_and_cut(world, constant) -> None:
    data = world(40, seed=1, slope=np.zeros(1), longest=5)
    steps, _ = make_steps(data, constant(np.zeros(1)), None)
    last = np.append(steps.starts[1:], len(steps)) - 1
    assert (steps.successor[data.terminal] == -1).all()
    assert (steps.successor[data.truncated] >= len(steps)).all()
    inner = np.setdiff1d(np.arange(len(steps)), last)
    np.testing.assert_array_equal(steps.successor[inner], inner + 1)
    assert steps.cut_sessions == data.truncated.sum() > 0
    np.testing.assert_array_equal(steps.state[steps.successor[data.truncated]], data.next_state[data.truncated])


def test_another_width_is_an_error(data, constant) -> None:
    with pytest.raises(InputError, match="policy: maps 3 -> 5"):
        make_steps(data, constant(np.zeros(5)), None)
