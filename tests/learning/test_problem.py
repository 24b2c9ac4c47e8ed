"""Rows in the terms of the policy deployed now: positions, boxes, rounds, whose rows count for what."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.learning.problem import prepare, users_held_out
from mtf.policy import Lineage, constant_policy
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions, relabel

LINEAGE = Lineage(algorithm="test")


@pytest.fixture
def data():
    return make_sessions(200, seed=0, slope=np.zeros(2))


def test_logged_takes_each_rows_own_centre_and_box(data):
    found = prepare(data, "logged")
    assert (found.baseline.sha, found.gamma) == (None, 0.9)
    np.testing.assert_array_equal(found.center, data.center)
    np.testing.assert_allclose(found.half_width, 0.3, rtol=1e-6)
    np.testing.assert_allclose(found.u, data.action / 0.3, rtol=1e-5)
    assert found.signal.all()
    assert found.current.all()
    assert (found.weight == 1).all()


def test_a_position_is_in_half_widths_of_the_box_in_force(data):
    """A row of a box cut to [-.3, .1] at the edge, seen in units of a box of .6."""
    cut = replace(data, upper=np.full_like(data.upper, 0.1), action=np.minimum(data.action, 0.1))
    found = prepare(cut, "logged", half_width=np.array([0.6, 0.6]))
    np.testing.assert_allclose(found.u, (cut.action + 0.1) / 0.6, atol=1e-6)
    # y is in the box of each row as it is cut: the middle is at -.1, half of its width is .2
    np.testing.assert_allclose(found.box_position(np.full_like(cut.action, 0.1)), 1, atol=1e-5)
    np.testing.assert_allclose(found.box_position(np.full_like(cut.action, -0.1)), 0, atol=1e-5)
    # a step is clipped to the box
    np.testing.assert_allclose(found.step_action(np.full_like(cut.action, 5.0)), 0.1, atol=1e-6)


def test_a_bundle_is_recomputed_at_every_state_and_its_box_cut_at_the_edge(data, tmp_path):
    policy = constant_policy(np.array([0.9, 0.0]), 3, spec=None, lineage=LINEAGE)
    policy.write(tmp_path / "p")
    found = prepare(data, tmp_path / "p", half_width=np.array([0.3, 0.2]))
    np.testing.assert_allclose(found.center[0], [0.9, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.upper[0], [0.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(found.next_lower[0], [-0.3, -0.2], atol=1e-6)
    assert found.baseline.sha == policy.sha
    # rows without a name are taken for the baseline's own only where the baseline has none
    assert any("baseline_not_in_data" in w for w in found.warnings)


def test_earlier_rounds_count_less_and_only_todays_are_current(data, tmp_path):
    policy = constant_policy(np.zeros(2), 3, spec=None, lineage=LINEAGE)
    policy.write(tmp_path / "p")
    third = np.array(["old", "older", policy.sha], object)[np.array([1, 0, 2])][data.session * 3 // data.n_sessions]
    found = prepare(relabel(data, policy_sha=third, ts=np.arange(len(data))), tmp_path / "p")
    for name, weight in ((policy.sha, 1.0), ("old", 0.7), ("older", 0.49)):
        np.testing.assert_allclose(found.weight[third == name], weight, rtol=1e-6)
    np.testing.assert_array_equal(found.current, third == policy.sha)
    assert len(np.unique(found.group)) == 3


def test_a_policy_that_only_served_makes_no_round(data, tmp_path):
    """A was explored, B and C were canaries that were refused, D is explored now: rows of A, B and C are one round old."""
    policy = constant_policy(np.zeros(2), 3, spec=None, lineage=LINEAGE)
    policy.write(tmp_path / "p")
    names = np.array(["a", "b", "c", policy.sha], object)[data.session * 4 // data.n_sessions]
    served = np.isin(names, ["b", "c"])
    changes = {"policy_sha": names, "ts": np.arange(len(data)), "exploring": data.exploring & ~served}
    found = prepare(relabel(data, **changes), tmp_path / "p")
    np.testing.assert_allclose(found.weight, np.where(names == policy.sha, 1, 0.7), rtol=1e-6)


def test_logged_boxes_are_no_wider_than_a_width_that_is_given(data):
    own, narrower = prepare(data, "logged"), prepare(data, "logged", half_width=np.full(2, 0.1))
    np.testing.assert_array_equal(own.lower, data.lower)
    assert np.abs(narrower.lower).max() <= 0.1 + 1e-6 and np.abs(narrower.next_upper).max() <= 0.1 + 1e-6


def test_rows_that_did_not_explore_fit_v_alone(data):
    still = data.session % 4 == 0
    parts = {name: np.where(still[:, None], 0, getattr(data, name)).astype(np.float32) for name in ("action", "lower", "upper")}
    found = prepare(replace(data, exploring=~still, **parts), "logged")
    np.testing.assert_array_equal(found.signal, ~still)
    assert (found.u[still] == 0).all()
    assert len(np.unique(found.group)) == 2


def test_an_action_outside_its_own_box_carries_no_signal_and_is_counted(data):
    action = data.action.copy()
    action[5] = [0.31, 0.0]
    found = prepare(replace(data, action=action), "logged")
    assert found.dropped == {"fallback": 0, "action_outside_its_box": 1}
    np.testing.assert_array_equal(np.flatnonzero(~found.signal), [5])
    # by rounding it may be outside by an ulp
    action[5] = [np.nextafter(np.float32(0.3), 1), 0.0]
    assert prepare(replace(data, action=action), "logged").dropped["action_outside_its_box"] == 0


def test_boxes_that_hold_none_of_their_actions_are_refused_and_some_are_a_warning(data):
    """As bounds are that were logged as actions instead of offsets."""
    away = replace(data, lower=data.lower + 1, upper=data.upper + 1)
    with pytest.raises(InputError, match=r"`action` lies outside .* offsets from the centre"):
        prepare(away, "logged")
    some = (data.session % 2 == 0)[:, None]
    half = prepare(replace(data, lower=data.lower + some, upper=data.upper + some), "logged")
    assert any(w.startswith("action_outside_its_box: `action` lies outside") for w in half.warnings)
    assert not prepare(data, "logged").warnings


def test_logged_stands_for_one_policy(data):
    """A box around each row's own centre holds every policy that was ever served: no step from it leads anywhere."""
    two = relabel(data, policy_sha=np.where(data.session % 2, "b" * 64, "a" * 64).astype(object))
    with pytest.raises(InputError, match=r"`logged` .* rows are of 2 policies .* give --baseline the bundle"):
        prepare(two, "logged")
    prepare(two, "logged", needs_exploration=False)
    prepare(relabel(data, policy_sha=np.full(len(data), "a" * 64, object)), "logged")


def test_a_dimension_that_no_row_explored_is_not_moved(data):
    """The box of the rows is as wide as 0 in dimension 1, whatever the box to learn for says."""
    flat = {name: getattr(data, name) * np.array([1, 0], np.float32) for name in ("lower", "upper", "action")}
    found = prepare(replace(data, **flat), "logged", half_width=np.array([0.3, 0.3]))
    np.testing.assert_allclose(found.half_width, [0.3, 0])
    assert any(w.startswith("unexplored_dimensions: no row explored dimension(s) 1;") for w in found.warnings)


def test_rounds_are_of_their_days_where_no_time_was_logged(data):
    """Rows without `ts` are numbered in the order of their sessions' names."""
    sha = np.where(data.session < 100, "new", "old").astype(object)
    days = np.where(data.session < 100, "2026-01-02", "2026-01-01").astype(object)
    dated = prepare(relabel(data, policy_sha=sha, dt=days), "logged", needs_exploration=False)
    np.testing.assert_allclose(dated.weight, np.where(data.session < 100, 1, 0.7), rtol=1e-6)
    undated = prepare(replace(relabel(data, policy_sha=sha), columns=("state",)), "logged", needs_exploration=False)
    assert (undated.weight == 1).all()
    assert any(w.startswith("ages_unknown") for w in undated.warnings)


def test_a_session_with_a_fallback_row_is_left_out_whole_and_counted(data):
    fallback = np.full(len(data), None, object)
    fallback[data.starts[7]] = "timeout"
    found = prepare(replace(data, fallback=fallback), "logged")
    assert found.dropped["fallback"] == (data.session == 7).sum()
    # where nothing fell back, a table may say so with an empty string: as the gate reads it
    assert prepare(replace(data, fallback=np.where(fallback == "timeout", "timeout", "")), "logged").dropped == found.dropped
    assert found.data.n_sessions == data.n_sessions - 1
    with pytest.raises(InputError, match="every session holds a fallback row"):
        prepare(relabel(data, fallback=np.full(len(data), "timeout", object)), "logged")


def test_the_half_width_is_the_latest_days_and_the_widest_side_of_a_cut_box(data):
    late = data.session >= 100
    upper = np.where(late[:, None], 0.05, 0.3).astype(np.float32) * np.ones((1, 2), np.float32)
    lower = np.where(late[:, None], -0.2, -0.3).astype(np.float32) * np.ones((1, 2), np.float32)
    action = np.clip(data.action, lower, upper)
    days = np.where(late, "2026-01-02", "2026-01-01").astype(object)
    found = prepare(replace(data, upper=upper, lower=lower, action=action, dt=days), "logged")
    np.testing.assert_allclose(found.half_width, 0.2, rtol=1e-6)


def test_states_are_standardised_and_clipped_and_a_constant_one_is_left(data):
    state = data.state.copy()
    state[:, 1] = 7.0
    state[0, 2] = 1e4
    found = prepare(replace(data, state=state), "logged")
    plain = (data.state[:, 0] - data.state[:, 0].mean()) / data.state[:, 0].std()
    np.testing.assert_allclose(found.z[:, 0], np.clip(plain, -3, 3), atol=1e-4)
    assert (found.z[:, 1] == 0).all()
    assert found.z[0, 2] == 3.0
    np.testing.assert_array_equal(found.phi[:, 0], 1)


def test_users_are_parted_never_sessions():
    data = make_sessions(300, seed=1, slope=np.zeros(2))
    shared = replace(data, user=data.user // 3, user_ids=data.user_ids[:100])
    found = prepare(shared, "logged")
    for part in (found.fold, users_held_out(found, 0.1)):
        of = {u: set(part[shared.user == u].tolist()) for u in range(100)}
        assert all(len(values) == 1 for values in of.values())
    assert np.mean([found.fold[shared.user == u][0] for u in range(100)]) == 0.5
    assert len(np.unique(shared.user[users_held_out(found, 0.1)])) == 10


@pytest.mark.parametrize(("baseline", "says"), [("bootstrap", "have no spec; use `logged`"), ("nowhere", "holds no policy.json")])
def test_a_baseline_that_cannot_be_is_named(data, baseline, says):
    with pytest.raises(InputError, match=says):
        prepare(data, baseline)


def test_a_baseline_or_box_of_another_width_is_named(data, tmp_path):
    constant_policy(np.zeros(3), 3, spec=None, lineage=LINEAGE).write(tmp_path / "p")
    with pytest.raises(InputError, match="maps 3 -> 3, the transitions hold 3 -> 2"):
        prepare(data, tmp_path / "p")
    with pytest.raises(InputError, match="half_width has 3 numbers, the actions 2"):
        prepare(data, "logged", half_width=np.ones(3))


def test_bootstrap_is_the_specs_start():
    spec = small_spec(start=(0.1, -0.2, 0.3, 0.0), gamma=0.8)
    data = replace(make_sessions(50, seed=0, slope=np.zeros(4)), spec=spec)
    found = prepare(data, "bootstrap")
    np.testing.assert_allclose(found.center, np.tile(spec.start, (len(data), 1)), atol=1e-6)
    assert found.gamma == 0.8
