"""A fit to a small log whose truth is known: what is learned is that truth, and nothing is learned from what must not be seen."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.fileio import sha256_file
from mtf.world.fit import fit_world
from mtf.world.fit_design import N_BUCKETS, Design
from mtf.world.fit_response import _fixed_effects, _rank_logits, fit_response
from mtf.world.fit_scores import fit_scores
from mtf.world.kuairand import read_kuairand
from mtf.world.params import HEADS, VALID_S
from mtf.world.truth import true_value
from mtf.world.world import World
from tests.world.log import make_log


@pytest.fixture(scope="module")
def made():
    return make_log()


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def log(folder):
    return read_kuairand(folder)


@pytest.fixture(scope="module")
def design(log):
    return Design.of(log)


@pytest.fixture(scope="module")
def response(log, design):
    return fit_response(log, design, np.random.default_rng(0))


@pytest.fixture(scope="module")
def world(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "world"
    return fit_world(folder, out, seed=0, progress=False), out


def test_the_design_knows_tags_durations_and_histories(log, design, made):
    assert set(design.tag_names) == {"1", "2", "3", "unknown"}
    np.testing.assert_array_equal(np.array(design.tag_names)[design.tag], log.tag)
    np.testing.assert_array_equal(design.bucket == N_BUCKETS - 1, np.isnan(log.duration_s))
    known = ~np.isnan(log.duration_s)
    edges = np.array([10, 20, 40, 80, 160])
    np.testing.assert_array_equal(design.bucket[known], (log.duration_s[known, None] >= edges).sum(axis=1))
    np.testing.assert_array_equal(design.rates["watched"] == 0, (log.user_key - 1000) // 3 % 5 == 0)
    # four of eight were long, with everybody's share behind five more
    share = design.rates["long"][design.rates["watched"] > 0]
    assert share == pytest.approx(0.5, abs=0.01)
    assert design.pair_tag.max() < design.n_pair


def test_users_tastes_are_those_that_made_the_log(response, design, log, made):
    click = HEADS.index("click")
    # a user's effect on an average video, without what is the same for all
    found = response.user[:, click] + response.user_tag[..., click].mean(axis=1) + response.user_duration[..., click].mean(axis=1)
    assert np.corrcoef(found, made.lift)[0, 1] > 0.75
    # drawn, not shrunk: users differ as much as they do
    assert found.std() == pytest.approx(made.lift.std(), rel=0.3)
    item = response.item[:, click]
    third = log.tag == "3"
    assert item[third].mean() - item[~third].mean() == pytest.approx(0.5, abs=0.2)


def test_levels_are_the_logs(response, design, log):
    eta = response.eta(log.user, log.item, design)
    click = 1 / (1 + np.exp(-eta[:, HEADS.index("click")]))
    assert click.mean() == pytest.approx(log.click.mean(), abs=0.02)
    valid = 1 / (1 + np.exp(-eta[log.click, HEADS.index("valid")]))
    assert valid.mean() == pytest.approx(log.valid[log.click].mean(), abs=0.03)
    q = response.watch_quantiles
    assert (np.diff(q, axis=-1) >= 0).all()
    assert q[:2].max() <= VALID_S < q[2].min()
    valid_seconds = np.median(log.watch_s[log.valid])
    assert np.median(q[2]) == pytest.approx(valid_seconds, rel=0.2)


def test_scores_never_see_the_later_days(log, design):
    found = fit_scores(log, design)
    assert found.first_test_day == 2
    later = log.day >= found.first_test_day
    changed = fit_scores(replace(log, click=log.click ^ later, watch_s=np.where(later, 0.0, log.watch_s)), design)
    for name in ("intercept", "user", "item", "user_tag", "user_duration"):
        np.testing.assert_array_equal(getattr(found, name), getattr(changed, name))
    earlier = fit_scores(replace(log, click=log.click ^ ~later), design)
    assert (earlier.user != found.user).any()


def test_scores_order_the_days_that_they_did_not_see(log, design, made):
    from sklearn.metrics import roc_auc_score

    found = fit_scores(log, design)
    rows = log.day >= found.first_test_day
    eta = found.eta(log.user[rows], log.item[rows], design)
    auc = roc_auc_score(log.click[rows], eta[:, HEADS.index("click")])
    best = roc_auc_score(log.click[rows], made.lift[log.user[rows]] + 0.5 * (log.tag[log.item[rows]] == "3"))
    assert best - 0.05 < auc < best + 0.01


def test_watch_ranks_leave_a_logistic_for_the_world_to_add(log, design):
    """What the world adds to a user's and a video's effects has the standard logistic's variance: so must what they leave."""
    watch = log.watch_s * np.exp(0.8 * np.random.default_rng(0).standard_normal(len(log.user_key)))[log.user]
    head = _fixed_effects("watch", _rank_logits(watch, log.response_class), np.ones(len(watch), bool), None, log, design)
    assert head.variance["user"] > 0.1
    assert head.residuals.variance == head.variance["user"]
    left = float(np.var(head.residuals.residual)) - sum(head.variance.values())
    assert left == pytest.approx(np.pi**2 / 3, rel=1e-6)
    # and the effects are found in those units
    assert np.var(head.observed.y - head.observed.eta) == pytest.approx(left + sum(head.variance.values()), rel=0.05)


@pytest.mark.parametrize(("field", "often"), [("like", "never"), ("click", "always")])
def test_a_response_without_two_sides_is_named(log, design, field, often):
    with pytest.raises(InputError, match=f"`{field}` {often} occurs in 12,000 rows"):
        fit_response(replace(log, **{field: np.full(len(log.click), often == "always")}), design, np.random.default_rng(0))


def test_another_draw_is_another_truth(log, design, response, made):
    other = fit_response(log, design, np.random.default_rng(1))
    assert np.corrcoef(other.user[:, 0], response.user[:, 0])[0, 1] < 0.99
    twice = fit_response(log, design, np.random.default_rng(0), copies=2)
    n = len(log.user_key)
    assert len(twice.user) == 2 * n
    # each copy has a draw of his own around what the log says of the user
    first, second = twice.user[:n, 0], twice.user[n:, 0]
    assert np.corrcoef(first, second)[0, 1] < 0.99
    assert min(np.corrcoef(copy, made.lift)[0, 1] for copy in (first, second)) > 0.6
    assert twice.item.shape == response.item.shape


def test_the_world_is_made_of_the_log_and_says_so(world, log):
    fitted, out = world
    params = fitted.params
    np.testing.assert_array_equal(params.user_key, log.user_key)
    np.testing.assert_array_equal(params.item_exposure, np.bincount(log.item))
    assert params.scalars.n_candidates == 40
    assert {source.label for source in params.sources.values()} == {"learned", "borrowed", "assumed"}
    start_requests = true_value(World.load(out), fitted_start(fitted), 300, 5).metrics["requests"]
    assert start_requests == pytest.approx(13.55, rel=0.3)  # 300 sessions
    np.testing.assert_allclose(params.history.mean(axis=0)[1], log.click.mean(), atol=0.01)


def fitted_start(world):
    from mtf.policy import bootstrap_policy

    return bootstrap_policy(world.spec)


def test_the_same_seed_gives_the_same_bytes(world, folder, tmp_path):
    _, out = world
    fit_world(folder, tmp_path / "again", seed=0, progress=False)
    for name in ("spec.json", "world.json", "world.safetensors"):
        assert sha256_file(tmp_path / "again" / name) == sha256_file(out / name), name
