"""Draws of effects, against posteriors that are known: on a grid, in closed form, and by what made the log."""

import numpy as np
import pytest
from scipy.special import expit

from mtf.world.fit_draw import Observed, Part, draw_effects, slice_sampled
from mtf.world.fit_glm import Block


def chain(parts, start, prior, rng, n, sweeps=3):
    """n states [n, cells of the first block] of the first part."""
    name, out, effects = parts[0].blocks[0].name, [], start
    for _ in range(n):
        effects = slice_sampled(parts, effects, prior, rng, sweeps)
        out.append(effects[0][name])
    return np.array(out)


def test_few_rare_responses_have_the_posterior_of_a_grid():
    """Three owners: nothing seen, eight without a like, eight with two likes."""
    rng = np.random.default_rng(0)
    owner, y = np.repeat([1, 2], 8), np.repeat([0, 1, 0], [8, 2, 6]).astype(float)
    part = Part(y, np.full(16, -2.0), owner, [Block("user", owner, 3, 1.5)])
    drawn = chain([part], [{"user": np.zeros(3)}], lambda: [{"user": rng.standard_normal(3) * np.sqrt(1.5)}], rng, 8_000)
    grid = np.linspace(-8, 8, 4001)
    for who, likes, rows in ((0, 0, 0), (1, 0, 8), (2, 2, 8)):
        p = expit(grid - 2)
        density = p**likes * (1 - p) ** (rows - likes) * np.exp(-(grid**2) / 3)
        density /= density.sum()
        mean, chance = (density * grid).sum(), (density * p).sum()
        assert drawn[:, who].mean() == pytest.approx(mean, abs=0.05)
        assert drawn[:, who].var() == pytest.approx((density * (grid - mean) ** 2).sum(), rel=0.06)
        assert expit(drawn[:, who] - 2).mean() == pytest.approx(chance, rel=0.04)


def test_normal_responses_have_the_posterior_of_ridge_regression():
    rng = np.random.default_rng(1)
    owner, y = np.zeros(5, np.int64), np.array([1.0, 2.0, 0.5, 1.5, 3.0])
    tag = np.array([0, 0, 1, 1, 1])
    part = Part(y, np.full(5, 0.3), owner, [Block("tag", tag, 2, 0.5), Block("user", owner, 1, 2.0)], noise_variance=0.8)
    start = [{"user": np.zeros(1), "tag": np.zeros(2)}]

    def prior():
        return [{"user": rng.standard_normal(1) * np.sqrt(2), "tag": rng.standard_normal(2) * np.sqrt(0.5)}]

    drawn = chain([part], start, prior, rng, 8_000)
    x = np.column_stack([tag == 0, tag == 1, np.ones(5)]).astype(float)
    cov = np.linalg.inv(x.T @ x / 0.8 + np.diag([2, 2, 0.5]))
    mean = cov @ x.T @ (y - 0.3) / 0.8
    np.testing.assert_allclose(drawn.mean(axis=0), mean[:2], atol=0.04)
    np.testing.assert_allclose(np.cov(drawn.T), cov[:2, :2], atol=0.05)


def test_a_head_that_says_nothing_learns_from_the_other():
    """Two heads of one user, the second almost unseen: its effect is what the first says of it."""
    rng = np.random.default_rng(2)
    cov = np.array([[1.0, 0.6], [0.6, 0.8]])
    first, second = np.zeros(6, np.int64), np.zeros(1, np.int64)
    y = np.array([1.0, 1.4, 0.8, 1.2, 1.1, 0.9])
    heads = [
        Part(np.zeros(1), np.zeros(1), second, [Block("user", second, 1, 0.8)], noise_variance=1e9),
        Part(y, np.zeros(6), first, [Block("user", first, 1, 1.0)], noise_variance=0.5),
    ]
    root = np.linalg.cholesky(cov[::-1, ::-1])

    def prior():
        a, b = root @ rng.standard_normal(2)
        return [{"user": np.array([a])}, {"user": np.array([b])}]

    drawn = chain(heads, [{"user": np.zeros(1)}, {"user": np.zeros(1)}], prior, rng, 8_000)[:, 0]
    precision = 1 + 6 / 0.5
    assert drawn.mean() == pytest.approx(0.6 * y.sum() / 0.5 / precision, abs=0.03)
    assert drawn.var() == pytest.approx(0.8 - 0.36 + 0.36 / precision, rel=0.06)


def test_a_user_without_rows_of_a_head_is_drawn_with_his_own_of_the_other():
    """Ten users, the second head seen of the first five alone: the others' effects on it follow their own on the first."""
    rng = np.random.default_rng(5)
    users, seen = np.repeat(np.arange(10), 20), np.repeat(np.arange(5), 2)
    heads = [
        Observed(np.full(200, 2.0), users, np.zeros(200, np.int64), np.zeros(200), both(users, 200), 0.1),
        Observed(np.zeros(10), seen, np.zeros(10, np.int64), np.zeros(10), both(seen, 10), 1e6),
    ]
    draws, _ = draw_effects(heads, np.array([[1.0, 0.9], [0.9, 1.0]]), rng, 40)
    second = np.mean([effects[1]["user"] for effects in draws], axis=0)
    np.testing.assert_allclose(second, 0.9 * 2.0, atol=0.35)


def both(user, n):
    return [Block("user", user, 10, 1.0), Block("item", np.zeros(n, np.int64), 1, 1e-6)]


@pytest.fixture(scope="module")
def drawn():
    """A log of two heads, the second of clicks alone, whose effects are known; four draws. (truth, heads, draws, moved)"""
    rng = np.random.default_rng(3)
    users, rows = 1500, 12
    cov = np.array([[0.6, 0.3], [0.3, 0.5]])
    user, item, day = np.repeat(np.arange(users), rows), rng.integers(0, 60, users * rows), rng.integers(0, 3, users * rows)
    own, video = rng.multivariate_normal([0, 0], cov, users), np.sqrt(0.2) * rng.standard_normal((60, 2))
    mood = np.sqrt(0.1) * rng.standard_normal((users * 3, 2))
    eta = np.array([-0.5, -2.0]) + own[user] + video[item] + mood[user * 3 + day]
    click = rng.random(len(user)) < expit(eta[:, 0])
    like = rng.random(len(user)) < expit(eta[:, 1])
    heads = []
    for k, (y, seen) in enumerate(((click, np.ones(len(user), bool)), (like, click))):
        blocks = [Block("user", user[seen], users, cov[k, k]), Block("day", (user * 3 + day)[seen], users * 3, 0.1)]
        blocks.append(Block("item", item[seen], 60, 0.2))
        # begun a little too high
        level = (-0.5, -2.0)[k] + 0.1
        heads.append(Observed(y[seen].astype(float), user[seen], item[seen], np.full(int(seen.sum()), level), blocks))
    draws, moved = draw_effects(heads, cov, np.random.default_rng(4), 4)
    return own, heads, draws, moved


def test_draws_vary_as_what_made_the_log(drawn):
    own, _, draws, moved = drawn
    for effects in draws:
        users = np.column_stack([head["user"] for head in effects])
        np.testing.assert_allclose(np.cov(users.T), np.cov(own.T), atol=0.09)
        assert np.corrcoef(users[:, 0], own[:, 0])[0, 1] > 0.5
        assert np.abs(users.mean(axis=0)).max() < 0.08
    np.testing.assert_allclose(moved, -0.1, atol=0.08)


def test_a_draw_has_the_logs_level(drawn):
    _, heads, draws, moved = drawn
    for effects in draws:
        for k, head in enumerate(heads):
            added = sum(effects[k][b.name][b.cell] for b in head.blocks)
            assert expit(moved[k] + head.eta + added).mean() == pytest.approx(head.y.mean(), abs=0.012)


def test_copies_are_other_users_with_the_same_videos(drawn):
    _, _, draws, _ = drawn
    first, *others = draws
    for other in others:
        for head, same in zip(first, other, strict=True):
            np.testing.assert_array_equal(head["item"], same["item"])
            # alike as two draws from one posterior are
            assert 0.05 < np.corrcoef(head["user"], same["user"])[0, 1] < 0.75
