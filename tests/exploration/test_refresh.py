"""The next box: each rule at its cause, the limits, and what exploring costs against its closed form."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf import box
from mtf.contracts.exploration import Dimension, ExplorationDocument, read_exploration, write_exploration
from mtf.errors import InputError
from mtf.exploration.refresh import curvature, exploration_cost, refresh, rms_slope_bound, slope_at_the_edge, within_budget
from mtf.learning.problem import prepare
from mtf.learning.value import fit_value
from mtf.policy import Lineage, Policy, constant_policy
from mtf.transitions.table import is_gate_user
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions
from tests.transitions.files import write_transitions

LEVEL = float(np.exp(0.125))
"""Mean reward of the tiny recommender at the middle of the box."""


def at(*action):
    return constant_policy(np.array(action), 3, spec=None, lineage=Lineage(algorithm="test"))


@pytest.fixture(scope="module")
def data():
    """Half-width .3; the first dimension pays, the second does not, the third is fixed."""
    made = make_sessions(4000, seed=0, slope=np.array([0.8, 0.0, 0.0]))
    fixed = {name: getattr(made, name) * np.array([1, 1, 0], np.float32) for name in ("lower", "upper", "action")}
    return replace(made, **fixed)


@pytest.fixture(scope="module")
def bent():
    """As `data`, few rows, and worth most at the middle."""
    made = make_sessions(300, seed=6, slope=np.zeros(3), bend=4.0)
    fixed = {name: getattr(made, name) * np.array([1, 1, 0], np.float32) for name in ("lower", "upper", "action")}
    return replace(made, **fixed)


def box_in_force(*half_width):
    seen = Dimension(move=0, outward=0, slope=0, slope_se=0, before=0.2, rule="keep")
    return ExplorationDocument(
        policy_sha="p", half_width=half_width, budget=1, expected_loss=0, loss_se=0, evidence=(seen,) * len(half_width), reason=""
    )


def rules(document):
    return [seen.rule for seen in document.evidence]


def box_of(data, policy, **changes):
    return refresh(policy=policy, transitions=data, baseline="logged", **({"budget": 9.0} | changes))


def test_it_is_kept_where_the_policy_stays_and_something_is_left_to_learn(data):
    found = box_of(data, at(0.0, 0.0, 0.0))
    # more of the first is always better: it would be widened, did the cap not hold it
    assert rules(found) == ["cap", "keep", "fixed"]
    assert found.half_width == (0.3, 0.3, 0.0)
    assert found.policy_sha == at(0.0, 0.0, 0.0).sha
    assert found.evidence[0].slope == pytest.approx(0.8 * 0.3 * LEVEL, abs=4 * found.evidence[0].slope_se)
    assert abs(found.evidence[1].slope) < 4 * found.evidence[1].slope_se


@pytest.mark.parametrize(("action", "rule"), [(0.239, "keep"), (0.241, "widen"), (-0.25, "widen")])
def test_it_widens_where_most_states_want_past_four_fifths(data, action, rule):
    found = box_of(data, at(0.0, action, 0.0), cap=1.0)
    assert rules(found)[1] == rule
    assert found.half_width[1] == pytest.approx(0.3 * (1.25 if rule == "widen" else 1.0))
    assert found.evidence[1].outward == (1.0 if rule == "widen" else 0.0)


@pytest.mark.parametrize(("optimum", "rule"), [(0.15, "keep"), (0.6, "uphill"), (-0.6, "uphill")])
def test_it_widens_where_the_slope_points_out_of_it_though_the_step_was_short(optimum, rule):
    """Rewards 3 - (a_0 - optimum)^2, hardly noisy: at the edge, .3, they still rise only where the optimum lies beyond."""
    made = make_sessions(8000, seed=5, slope=np.zeros(2), end=1.0)
    reward = 3 - np.square(made.action[:, :1] - optimum) + 0.02 * made.reward
    found = box_of(replace(made, reward=reward.astype(np.float32)), at(0.1 * np.sign(optimum), 0.0), cap=1.0)
    assert rules(found)[0] == rule
    assert found.evidence[0].outward == 0
    assert found.half_width[0] == pytest.approx(0.375 if rule == "uphill" else 0.3)


@settings(deadline=None, max_examples=30)
@given(c=st.floats(-2, 2), q=st.floats(-1, 2))
def test_the_slope_at_the_edge_is_that_of_the_parabola(c, q):
    """A(u) = c u - q u^2, to the side on which it rises at the middle; errors of both go together as independent ones do."""
    side, tiny = (1.0 if c >= 0 else -1.0), 1e-6
    expected = ((c * side - q) - (c * side * (1 - tiny) - q * (1 - tiny) ** 2)) / tiny
    edge, se = slope_at_the_edge(np.array([c]), np.array([0.3]), np.array([q]), np.array([[0.04]]))
    assert edge[0] == pytest.approx(expected, abs=1e-5)
    assert se[0] == pytest.approx(0.5)


def test_a_few_states_that_want_out_do_not_widen_it(data):
    """40 % of the states move to the edge by a steep policy; the box stays."""
    edge = np.quantile(data.state[:, 0], 0.6)
    # .29 relu(50 (s - edge)) - .29 relu(50 (s - edge) - 1): a step from 0 to .29 at `edge`
    arrays = {
        "mean": np.zeros(3),
        "scale": np.ones(3),
        "skip": np.zeros((3, 3)),
        "weight_0": np.array([[50.0, 50.0], [0, 0], [0, 0]]),
        "bias_0": np.array([-50 * edge, -50 * edge - 1]),
        "weight_1": np.array([[0, 0.29, 0], [0, -0.29, 0]]),
        "bias_1": np.zeros(3),
    }
    found = box_of(data, Policy(arrays, spec=None, lineage=Lineage(algorithm="test")))
    assert found.evidence[1].outward == pytest.approx(0.4, abs=0.02)
    assert rules(found)[1] == "keep"
    # but the 90 % quantile of the move must fit
    assert found.evidence[1].move == pytest.approx(0.29, abs=1e-3)


def test_it_is_never_narrower_than_the_move(data):
    found = box_of(data, at(0.0, 0.4, 0.0), cap=1.0)
    # beyond .8 of .3 it widens to .375, and that is not enough
    assert rules(found)[1] == "moved"
    assert found.half_width[1] == pytest.approx(0.4)


def test_it_shrinks_where_nothing_is_left_to_learn():
    """Rewards that are hardly noisy: the slope is known to be next to nothing."""
    made = make_sessions(8000, seed=1, slope=np.zeros(2), end=1.0)
    quiet = replace(made, reward=(1 + 0.01 * made.reward + 0.2 * made.action[:, :1]).astype(np.float32))
    found = box_of(quiet, at(0.0, 0.0))
    assert rules(found) == ["cap", "shrink"]
    assert found.half_width == pytest.approx((0.3, 0.24))


def test_it_does_not_shrink_where_users_differ():
    """Reward 1 + .2 a_1 sign(s_0) with hardly any noise: a slope of 0 in the mean, and .06 a half-width for each state."""
    made = make_sessions(8000, seed=1, slope=np.zeros(2), end=1.0)
    personal = 0.2 * made.action[:, 1:] * np.sign(made.state[:, :1])
    quiet = replace(made, reward=(1 + 0.01 * made.reward + personal).astype(np.float32))
    found = box_of(quiet, at(0.0, 0.0))
    seen = found.evidence[1]
    assert abs(seen.slope) + 1.96 * seen.slope_se < 0.002 * quiet.total_reward.mean()
    assert seen.rule == "keep"


def test_the_bound_of_slopes_covers_them():
    """Slopes .1 z_0 a half-width, root mean square .1: the bound is above it in nearly all of 20 runs, and not far."""
    bounds = []
    for seed in range(20):
        made = make_sessions(2000, seed=seed, slope=np.zeros(2), end=1.0)
        problem = prepare(made, "logged")
        noise = np.random.default_rng(seed).normal(size=len(made))
        value = fit_value(problem)
        bounds.append(rms_slope_bound(problem, replace(value, residual=0.1 * problem.u[:, 0] * problem.z[:, 0] + noise))[0])
    root = np.sqrt(np.square(problem.z[:, 0]).mean())
    assert np.mean(np.array(bounds) > 0.1 * root) >= 0.9
    assert np.median(bounds) < 0.25


def test_what_the_rows_cannot_say_is_in_the_reason(data, tmp_path):
    """Rows around another policy; a box in force that was chosen around another one, and that no row explored so wide."""
    other = at(0.1, 0.0, 0.0)
    other.write(tmp_path / "other")
    found = refresh(policy=other, transitions=data, baseline=tmp_path / "other", budget=9.0, previous=box_in_force(0.9, 0.3, 0))
    assert "baseline_not_in_data: no explored row is of the baseline" in found.reason
    assert "wider_than_explored: the box is wider in dimension(s) 0" in found.reason
    assert "box_of_another_policy: `previous` is of policy p, the baseline is policy" in found.reason
    with pytest.raises(InputError, match="`reward` is 0 in all of"):
        box_of(replace(data, reward=np.zeros_like(data.reward)), other)


def test_what_else_lies_at_out_is_not_lost(data, tmp_path):
    (tmp_path / "policy.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"policy.json is there, is no exploration.json and would be lost; name another file"):
        box_of(data, at(0.0, 0.0, 0.0), out=tmp_path / "policy.json")
    with pytest.raises(InputError, match=r"policy.json is a file, not a folder; give another place"):
        box_of(data, at(0.0, 0.0, 0.0), out=tmp_path / "policy.json" / "box.json")
    first = box_of(data, at(0.0, 0.0, 0.0), out=tmp_path / "box.json")
    assert box_of(data, at(0.0, 0.0, 0.0), out=tmp_path / "box.json") == first


def test_a_width_beyond_the_action_space_is_refused(tmp_path):
    box = msgspec.structs.replace(box_in_force(0.3, -0.3), budget=1.0, expected_loss=0.0, loss_se=0.0, evidence=())
    write_exploration(box, tmp_path / "box.json")
    with pytest.raises(InputError, match=r"half_width\[1\] is -0.3; normalised half-widths are from 0 to 1"):
        read_exploration(tmp_path / "box.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_exploration(tmp_path)


def test_floor_and_cap(data):
    assert rules(box_of(data, at(0.0, 0.0, 0.0), cap=0.2)) == ["cap", "cap", "fixed"]
    assert rules(box_of(data, at(0.0, 0.0, 0.0), floor=0.38, cap=0.4)) == ["floor", "floor", "fixed"]
    assert box_of(data, at(0.0, 0.0, 0.0), cap=0.2).half_width == pytest.approx((0.2, 0.2, 0.0))
    assert box_of(data, at(0.0, 0.0, 0.0), floor=0.38, cap=0.4).half_width == pytest.approx((0.38, 0.38, 0.0))


def test_exploring_costs_what_its_curvature_says():
    """E r = exp(s / 2) (1 - bend |a|^2): a box of half-width h loses bend * h^2 / 3 a dimension."""
    found = []
    for seed in range(8):
        problem = prepare(make_sessions(4000, seed=seed, slope=np.zeros(2), bend=2.0), "logged")
        found.append(exploration_cost(*curvature(problem, fit_value(problem)), np.ones(2)))
    cost, se = np.array(found).T
    truth = LEVEL * 2.0 * 2 * 0.3**2 / 3
    assert cost.mean() == pytest.approx(truth, abs=3.5 * cost.std(ddof=1) / np.sqrt(8))
    assert se.mean() == pytest.approx(cost.std(ddof=1), rel=0.6)


def test_a_quadratic_is_found_exactly_and_costs_its_mean_over_the_box():
    """Residual 2 + s_0 - .6 u_0^2 + .2 u_1^2 in half-widths of .3, the third dimension fixed."""
    made = make_sessions(400, seed=4, slope=np.zeros(3))
    made = replace(made, **{name: getattr(made, name) * np.array([1, 1, 0], np.float32) for name in ("lower", "upper", "action")})
    problem = prepare(made, "logged")
    value, u = fit_value(problem), problem.u.astype(np.float64)
    exact = 2 + problem.z[:, 0] - 0.6 * u[:, 0] ** 2 + 0.2 * u[:, 1] ** 2
    q, covariance = curvature(problem, replace(value, residual=exact))
    assert q == pytest.approx([0.6, -0.2, 0.0], abs=1e-6)
    assert np.abs(covariance).max() < 1e-9
    # .6 / 3 - .2 / 3, then .6 * 4 / 3 - .2 / 12
    assert exploration_cost(q, covariance, np.ones(3))[0] == pytest.approx(0.4 / 3, abs=1e-6)
    wide = np.array([2.0, 0.5, 1.0])
    assert exploration_cost(q, covariance, wide)[0] == pytest.approx(0.8 - 0.05 / 3, abs=1e-6)
    # noise of variance 1: q's is 1 / (n var(u^2)), hardly shared by two dimensions, and goes with the fourth power of the width
    noise = np.random.default_rng(0).normal(size=len(u))
    q, covariance = curvature(problem, replace(value, residual=exact + noise))
    variance = 1 / (len(u) * 4 / 45)
    assert np.diag(covariance) == pytest.approx([variance, variance, 0], rel=0.15)
    assert exploration_cost(q, covariance, wide)[1] == pytest.approx(
        np.sqrt((4 / 3) ** 2 + (0.25 / 3) ** 2) * variance**0.5, rel=0.1
    )


@pytest.mark.parametrize("side", [-3.0, 3.0])
def test_states_whose_box_is_cut_cost_nothing(side):
    """Rewards that go with exp(s_0 / 2), whatever is done; the nearer a state's box is to the edge, the more of it is cut."""
    z = []
    for seed in range(8):
        made, rng = make_sessions(2000, seed=seed, slope=np.zeros(2)), np.random.default_rng(seed + 50)
        center = np.stack([0.75 + 0.25 * np.tanh(side * made.state[:, 0]), 0 * made.state[:, 0]], axis=1).astype(np.float32)
        lower, upper = box.offsets(center, 0.3)
        cut = {"action": box.sample(rng, center, lower, upper), "center": center, "next_center": center}
        cut |= {"lower": lower, "upper": upper, "next_lower": lower, "next_upper": upper}
        level = np.exp(0.5 * made.state[:, :1]).astype(np.float32)
        problem = prepare(replace(made, **cut, reward=made.reward * level), "logged")
        q, covariance = curvature(problem, fit_value(problem))
        z.append(q[0] / np.sqrt(covariance[0, 0]))
    # as u^2 alone, it was -3.0 and 2.8 in the mean
    assert abs(np.mean(z)) < 1.2


def test_the_cost_is_that_of_the_dimension_that_bends():
    """Rewards 2 - 3 a_0^2 without noise: .3 -> .375 in the dimension that bends costs 3 * .375^2 / 3 of the mean, 1.91."""
    made = make_sessions(8000, seed=5, slope=np.zeros(2), end=1.0)
    made = replace(made, reward=(2 - 3 * made.action[:, :1] ** 2).astype(np.float32))
    bends, flat = (box_of(made, at(*action), cap=1.0) for action in ((0.25, 0.0), (0.0, 0.25)))
    assert (bends.half_width, flat.half_width) == ((0.375, 0.3), (0.3, 0.375))
    assert bends.expected_loss == pytest.approx(0.375**2 / 1.91, rel=0.02)
    assert flat.expected_loss == pytest.approx(0.3**2 / 1.91, rel=0.02)
    assert max(bends.loss_se, flat.loss_se) < 0.001


def test_a_box_that_costs_more_than_its_budget_is_narrowed_to_it():
    made = make_sessions(8000, seed=2, slope=np.zeros(2), bend=3.0)
    wide, narrow = (box_of(made, at(0.0, 0.0), budget=budget) for budget in (9.0, 0.03))
    assert wide.reason == "within its budget"
    assert wide.expected_loss == pytest.approx(3.0 * 2 * 0.09 / 3 / (1 - 3.0 * 2 * 0.09 / 3), rel=0.5)
    assert narrow.reason.startswith("narrowed by ")
    factor = narrow.half_width[0] / wide.half_width[0]
    # the cost and its error go with the square of the width, and the upper side of the two is what the budget binds
    assert factor == pytest.approx(np.sqrt(0.03 / (wide.expected_loss + wide.loss_se)), rel=0.01)
    assert narrow.expected_loss + narrow.loss_se == pytest.approx(0.03, abs=2e-4)
    assert narrow.half_width[1] == pytest.approx(narrow.half_width[0])
    # never narrower than the floor, whatever it costs
    least = box_of(made, at(0.0, 0.0), budget=1e-6, floor=0.2)
    assert least.half_width == (0.2, 0.2)
    assert least.reason.startswith("at its floor")


def test_the_floor_holds_in_every_dimension():
    """One factor would take the narrow one far below it; the wide one alone pays what is left to save."""
    made = make_sessions(8000, seed=2, slope=np.zeros(2), bend=3.0)
    found = box_of(made, at(0.0, 0.0), previous=box_in_force(0.3, 0.06), budget=0.01)
    assert found.half_width[1] == 0.05
    assert 0.05 < found.half_width[0] < 0.2
    assert found.expected_loss + found.loss_se == pytest.approx(0.01, abs=2e-4)


def test_the_widths_that_a_known_curvature_leaves():
    """A cost of .4 w_0^2 + .1 w_1^2, known to the last digit."""

    def limited(width):
        return np.clip(width, 0.05, 0.3)

    def decided(wanted, held, budget):
        found, why = within_budget(np.array(wanted), np.array(held), budget, limited, lambda w: (w**2 @ [0.4, 0.1], 0.0))
        return found, why.split(":")[0]

    whole = decided([0.3, 0.1], [0.2, 0.1], 0.04)
    assert (whole[0].tolist(), whole[1]) == ([0.3, 0.1], "within its budget")
    # .4 w^2 + .001 = .026 at w = .25, half-way
    grown, why = decided([0.3, 0.1], [0.2, 0.1], 0.026)
    assert grown == pytest.approx([0.25, 0.1])
    assert why == "grown by 50% of what was asked for"
    # .4 w^2 = .01 - .1 * .05^2 where the narrow one is at its floor
    narrow, why = decided([0.3, 0.06], [0.3, 0.06], 0.01)
    assert narrow == pytest.approx([np.sqrt(0.00975 / 0.4), 0.05])
    assert why == "narrowed by 0.52"
    # .5 * .05^2 = .00125
    least = decided([0.3, 0.06], [0.3, 0.06], 0.001)
    assert (least[0].tolist(), least[1]) == ([0.05, 0.05], "at its floor")


@pytest.mark.parametrize(("z", "width"), [(-1.0, 0.2), (0.0, 0.2), (1.95, 0.2), (1.97, 0.2 * (0.03 / (1.97 + 1)) ** 0.5)])
def test_a_cost_that_cannot_be_told_from_0_neither_narrows_nor_widens(z, width):
    """A standard error of 33 times the budget, at any width."""
    found, _ = within_budget(
        np.array([0.25]),
        np.array([0.2]),
        0.03,
        lambda w: np.clip(w, 0.01, 0.3),
        lambda w: (z * w[0] ** 2 / 0.04, w[0] ** 2 / 0.04),
    )
    assert found == pytest.approx([width])


def test_few_rows_leave_the_box_as_it_is(data):
    """Days of a few hundred sessions, whose error alone is beyond the budget: a box that wants out stays too."""
    kept = []
    for part in range(8):
        few = data.select(data.session % 8 == part)
        for action, asked in ((0.0, 0.3), (0.29, 0.375)):
            plain = box_of(few, at(0.0, action, 0.0), cap=1.0)
            found = box_of(few, at(0.0, action, 0.0), cap=1.0, budget=0.001)
            assert plain.half_width[1:] == (asked, 0.0)
            assert plain.loss_se > 0.03
            kept.append(found.half_width == (0.3, 0.3, 0.0) and found.reason.startswith("not grown"))
    # one in forty is taken for a cost
    assert sum(kept) >= 14


@given(
    widths=st.tuples(st.floats(0.01, 0.6), st.floats(0.01, 0.6)),
    limits=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
    budget=st.floats(1e-4, 0.5),
    action=st.floats(-0.5, 0.5),
    bends=st.booleans(),
)
@settings(max_examples=40)
def test_whatever_was_asked_for(bent, data, widths, limits, budget, action, bends):
    """In its limits, at the cost that is said, and no wider than it was where that might exceed the budget."""
    rows, floor, cap = bent if bends else data.select(data.session < 300), min(limits), max(limits)
    previous = box_in_force(*widths, 0.0)
    found = box_of(rows, at(action, 0.0, 0.0), previous=previous, floor=floor, cap=cap, budget=budget)
    width = np.array(found.half_width)
    assert width[2] == 0
    assert floor <= width[:2].min() <= width[:2].max() <= cap
    problem = prepare(rows, "logged", half_width=np.array(previous.half_width, np.float32))
    cost = np.array(exploration_cost(*curvature(problem, fit_value(problem)), width / problem.unit))
    cost /= rows.total_reward.mean()
    assert (found.expected_loss, found.loss_se) == pytest.approx(tuple(cost), abs=6e-5)
    assert max(cost[0], 0) + cost[1] <= budget + 1e-9 or (width[:2] <= np.maximum(widths, floor) + 6e-5).all()


def test_the_box_in_force_comes_before_that_of_the_rows(data):
    found = box_of(data, at(0.0, 0.0, 0.0), previous=box_in_force(0.2, 0.1, 0.0), cap=0.2)
    assert found.half_width == pytest.approx((0.2, 0.1, 0.0))
    # a slope a half-width is less in a narrower box
    assert found.evidence[0].slope == pytest.approx(0.8 * 0.2 * LEVEL, abs=4 * found.evidence[0].slope_se)


def test_training_users_alone_are_read_and_the_document_is_written(tmp_path):
    made = make_sessions(600, seed=3, slope=np.array([0.8, 0.0]))
    folder = write_transitions(tmp_path / "t", made)
    found = refresh(policy=at(0.0, 0.0), transitions=folder, baseline="logged", out=tmp_path / "box.json")
    assert read_exploration(tmp_path / "box.json") == found
    gate = np.array([is_gate_user(f"u{i}") for i in made.user_ids])[made.user]
    spoilt = replace(made, reward=np.where(gate[:, None], 1000.0, made.reward).astype(np.float32))
    again = refresh(policy=at(0.0, 0.0), transitions=write_transitions(tmp_path / "spoilt", spoilt), baseline="logged")
    assert again == found


@pytest.mark.parametrize(
    "changes",
    [
        {"floor": 0.0},
        {"floor": 0.5, "cap": 0.4},
        {"cap": 1.5},
        {"quantile": 0.0},
        {"quantile": 1.1},
        {"budget": 0.0},
        {"budget": float("inf")},
    ],
)
def test_limits_that_make_no_sense_are_refused(data, changes):
    with pytest.raises(InputError, match="keep 0 < floor <= cap <= 1"):
        box_of(data, at(0.0, 0.0, 0.0), **changes)


def test_a_folder_is_no_place_for_the_file(data, tmp_path):
    with pytest.raises(InputError, match=r"--out .* is a folder; name the file, e\.g\. .*/exploration\.json"):
        box_of(data, at(0.0, 0.0, 0.0), out=tmp_path)


def test_a_policy_that_does_not_fit_is_refused(data):
    with pytest.raises(InputError, match="policy: maps 3 -> 2, the transitions hold 3 -> 3"):
        box_of(data, at(0.0, 0.0))
    with pytest.raises(InputError, match="these transitions have no spec; give a bundle"):
        box_of(data, "bootstrap")


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_policy_of_another_spec_is_refused(tmp_path, as_folder):
    """Its actions mean other powers and biases, however well its widths fit."""
    spec, other = small_spec(), small_spec(power_high=(3.0, 2.0))
    made = replace(make_sessions(60, seed=0, slope=np.zeros(4)), spec=spec)
    policy = constant_policy(np.zeros(4), 3, spec=other, lineage=Lineage(algorithm="t"))
    if as_folder:
        policy.write(tmp_path / "p")
    message = f"^policy: .*was made for spec {other.version}, the transitions are of {spec.version}; give a policy of the spec"
    with pytest.raises(InputError, match=message):
        box_of(made, tmp_path / "p" if as_folder else policy)


def test_rows_outside_their_own_boxes_are_named(data):
    """All of them; then all but a handful, of which no curvature could be told."""
    outside = (data.action + np.array([1, 0, 0])).astype(np.float32)
    with pytest.raises(InputError, match=r"^transitions: `action` lies outside `center`"):
        box_of(replace(data, action=outside), at(0.0, 0.0, 0.0))
    few = np.where(np.arange(len(data))[:, None] < 6, data.action, outside)
    message = rf"^transitions: 6 row\(s\) around logged .*, {len(data) - 6} outside of it; log more than 6 inside,"
    with pytest.raises(InputError, match=message):
        box_of(replace(data, action=few), at(0.0, 0.0, 0.0))


def test_a_box_in_force_that_the_rows_did_not_explore_is_named(data):
    with pytest.raises(
        InputError, match=r"^exploration: half_width\[2\] is 0.1 and no row around logged varies there; give the box"
    ):
        box_of(data, at(0.0, 0.0, 0.0), previous=box_in_force(0.3, 0.3, 0.1))


def test_the_start_can_be_what_it_is_around():
    spec = small_spec(start=(0.1, 0.0, 0.0, 0.0))
    made = replace(make_sessions(300, seed=0, slope=np.zeros(4)), spec=spec)
    found = refresh(policy="bootstrap", transitions=made, baseline="logged", budget=9.0)
    assert found.evidence[0].move == pytest.approx(0.1, abs=1e-3)
