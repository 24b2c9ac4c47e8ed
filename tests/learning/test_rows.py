"""Rows side by side: what a batch holds is what the problem holds, however it is picked."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mtf import box
from mtf.learning.problem import prepare
from mtf.learning.rows import mean_square, tensors
from mtf.policy import Lineage, constant_policy
from mtf.transitions.arrays import Arrays
from tests.evaluation.conftest import make_sessions


@pytest.fixture(scope="module")
def data():
    made = make_sessions(80, seed=0, slope=np.zeros(2))
    ends = np.arange(len(made)) % 3 == 0
    return replace(made, value_mask=np.array([True, False, True]), terminal=ends, reward=np.repeat(made.reward, 2, axis=1))


def parts(batch):
    """Every tensor of a batch, by its field."""
    for field in fields(batch):
        value = getattr(batch, field.name)
        for part in value if isinstance(value, tuple) else [] if value is None else [value]:
            yield field.name, part


@pytest.mark.parametrize("mapped", [False, True])
def test_a_batch_holds_what_the_problem_holds(data, mapped, tmp_path):
    problem = prepare(replace(data, arrays=Arrays(tmp_path)) if mapped else data, "logged")
    n = len(data)
    rng = np.random.default_rng(1)
    weight, slate = rng.random((n, 3), np.float32), rng.random((n, 4), np.float32)
    rows = tensors(problem, 2.0, by_head=True, weight=weight, slate=slate)
    numbers = rng.permutation(n)[:40]
    found = rows.take(torch.from_numpy(numbers))
    assert len(found) == 40
    expected = {
        "z": problem.z,
        "next_z": problem.next_z,
        "u": problem.u,
        "mean_square": np.square((data.upper - data.lower) / 2 / problem.unit) / 3,
        "reward": problem.data.reward / 2,
        "done": problem.data.terminal.astype(np.float32),
        "signal": problem.signal.astype(np.float32),
        "weight": weight,
        "slate": slate,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value[numbers], rtol=1e-6, err_msg=name)
    for name, values in (
        ("box", (problem.center, problem.lower, problem.upper)),
        ("next_box", (problem.next_center, problem.next_lower, problem.next_upper)),
    ):
        for part, value in zip(getattr(found, name), values, strict=True):
            np.testing.assert_array_equal(part, value[numbers])
    np.testing.assert_array_equal(found.now[1][:, 1:], problem.z[numbers])
    assert (found.now[1][:, 0] == 1).all()
    np.testing.assert_array_equal(found.now[0][:, :-1], problem.z[numbers][:, [0, 2]])
    assert (found.next[1][:, 2] == 0).all()


def test_rows_in_a_row_are_the_same_as_rows_by_number(data):
    rows = tensors(prepare(data, "logged"), 1.0)
    for (name, part), (_, picked) in zip(parts(rows.part(slice(5, 9))), parts(rows.take(torch.arange(5, 9))), strict=True):
        torch.testing.assert_close(part, picked, rtol=0, atol=0, msg=name)
    for (name, part), (_, picked) in zip(parts(rows.all), parts(rows.take(torch.arange(len(rows)))), strict=True):
        torch.testing.assert_close(part, picked, rtol=0, atol=0, msg=name)


def test_critics_of_state_and_action_together_see_the_same_action_as_the_same_input(data, tmp_path):
    """Half of the sessions were explored around .06 in the first dimension, a fifth of a half-width, where the policy is now."""
    older = np.isin(data.session, np.unique(data.session)[::2])
    moved = np.where(older[:, None], 0.0, [[0.06, 0.0]]).astype(np.float32)
    pooled = replace(
        data,
        center=data.center + moved,
        action=data.action + moved,
        next_center=data.next_center + moved,
        policy_sha=np.where(older, "a", "b").astype(object),
    )
    constant_policy(np.array([0.06, 0.0]), 3, spec=None, lineage=Lineage(algorithm="t")).write(tmp_path / "p")
    problem = prepare(pooled, tmp_path / "p", half_width=np.full(2, 0.3, np.float32))
    assert problem.signal.all()
    own, now = (tensors(problem, 1.0, joint=of).all.u.numpy() for of in (False, True))
    np.testing.assert_allclose(own, data.action / 0.3, atol=1e-5)
    np.testing.assert_allclose(now, (pooled.action - [0.06, 0.0]) / 0.3, atol=1e-5)
    assert np.abs(now[~older] - own[~older]).max() < 1e-5
    assert np.allclose(now[older, 0], own[older, 0] - 0.2, atol=1e-5)


def test_the_mean_square_is_that_of_a_draw_from_the_box_as_it_is_cut():
    center, lower, upper = np.float32([[0.0, 0.9]]), np.float32([[-0.3, -0.3]]), np.float32([[0.3, 0.1]])
    unit = np.float32([0.3, 0.3])
    drawn = box.sample(np.random.default_rng(0), *(np.repeat(of, 40_000, axis=0) for of in (center, lower, upper)))
    u = (drawn - center - (lower + upper) / 2) / unit
    found = mean_square(tuple(torch.from_numpy(of) for of in (center, lower, upper)), torch.from_numpy(unit))
    np.testing.assert_allclose(found[0], np.square(u).mean(axis=0), rtol=0.02)
    np.testing.assert_allclose(found[0], [1 / 3, (2 / 3) ** 2 / 3], rtol=1e-5)
