"""The ensemble's losses on values set by hand (docs/method.md), and that its parts do not leak into each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtf import box
from mtf.learning.integrated_rl import IntegratedAgent, IntegratedRLConfig, actor_loss, critic_loss, learn
from mtf.learning.networks import Actor, AdvantageCritics
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.rows import Batch, act, tensors
from mtf.learning.trainer import fit
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions

CONFIG = IntegratedRLConfig()
UNIT = torch.tensor([0.15])


def critics(*values, slope=0.0, curve=0.0):
    """A critic for each of `values`: V constant, A = slope u + curve (u^2 - 1/3)."""
    made = AdvantageCritics(len(values), 1, 1, 1, (), torch.Generator())
    with torch.no_grad():
        made.value_net.weights[0].zero_()
        made.value_net.biases[0].copy_(torch.tensor(values).reshape(-1, 1, 1))
        made.slope.copy_(torch.as_tensor(slope, dtype=torch.float32).expand(len(values)).reshape(-1, 1, 1).clone())
        made.curve.fill_(curve)
    return made


def actor_at(step):
    """An actor that answers `step` half-widths everywhere."""
    made = Actor(1, 1, (), torch.Generator())
    with torch.no_grad():
        made.mlp.biases[0].fill_(step)
    return made


def batch(n=1, *, reward=1.0, done=0.0, u=0.0, signal=1.0, weight=1.0):
    """n equal rows: box of width .3 around 0, in units of .15."""

    def full(value):
        return torch.full((n,), float(value))

    one = torch.ones(n, 1)
    box = (torch.zeros(n, 1), torch.full((n, 1), -0.15), torch.full((n, 1), 0.15))
    return Batch(
        now=(one, one),
        next=(one, one),
        z=one,
        next_z=one,
        u=torch.full((n, 1), float(u)),
        mean_square=torch.full((n, 1), 1 / 3),
        box=box,
        next_box=box,
        reward=full(reward)[:, None],
        done=full(done),
        signal=full(signal),
        weight=full(weight),
        hold=full(1),
    )


def mean_target(rows, *, next_critic=None, step=0.0, **changes):
    """The mean of y."""
    behind = critics(10.0) if next_critic is None else next_critic
    return float(critic_loss(critics(0.0), behind, actor_at(step), rows, UNIT, 0.9, replace(CONFIG, **changes)).target)


def test_inside_the_box_the_target_is_the_usual_one():
    assert mean_target(batch()) == pytest.approx(1 + 0.9 * 10)
    assert mean_target(batch(done=1.0)) == 1.0


def test_outside_the_next_value_counts_less():
    # .195 is .045 outside a box of width .3: phi = .60653, d = 1.64872
    assert mean_target(batch(), step=1.3) == pytest.approx(1 + 0.9 * 0.60653 * 10, abs=1e-3)
    assert mean_target(batch(done=1.0), step=1.3) == 1.0
    subtract = {"target": "subtract", "step": 1.3}
    assert mean_target(batch(), **subtract) == pytest.approx(1 + 0.9 * (10 - 1.2 * 1.64872), abs=1e-3)
    assert mean_target(batch(), continuous=True, **subtract) == pytest.approx(1 + 0.9 * (10 - 1.2 * 0.64872), abs=1e-3)


def test_the_next_value_is_that_of_the_target_actors_action():
    assert mean_target(batch(), next_critic=critics(10.0, slope=2.0), step=0.5) == pytest.approx(1 + 0.9 * (10 + 2 * 0.5))


def test_each_critic_learns_from_its_own_target_without_a_minimum():
    loss = critic_loss(critics(4.0, 7.0), critics(10.0, 20.0), actor_at(0.0), batch(3), UNIT, 0.9, CONFIG)
    errors = [(4 - (1 + 9)) ** 2, (7 - (1 + 18)) ** 2]
    assert loss.each.tolist() == pytest.approx(errors)
    assert float(loss.total) == pytest.approx(sum(errors))


def test_rows_that_did_not_explore_shape_v_alone():
    for signal, expected in ((1.0, 2.0 * 0.5), (0.0, 0.0)):
        made = critics(0.0, slope=2.0)
        loss = critic_loss(made, critics(0.0), actor_at(0.0), batch(reward=0.0, u=0.5, signal=signal), UNIT, 0.9, CONFIG)
        assert float(loss.total.detach()) == pytest.approx(expected**2)
        loss.total.backward()
        assert bool(made.slope.grad.abs().sum() > 0) is bool(signal)


def test_weights_count_by_row_and_by_critic():
    rows = batch(2, reward=0.0)
    rows = replace(rows, weight=torch.tensor([[1.0, 0.0], [1.0, 3.0]]))
    loss = critic_loss(critics(2.0, 2.0), critics(0.0, 0.0), actor_at(0.0), rows, UNIT, 0.9, CONFIG)
    assert loss.each.tolist() == [4.0, 6.0]


def test_the_actors_loss_by_hand():
    made = critics(5.0, 5.0, slope=[1.0, 3.0])
    found = actor_loss(made, actor_at(0.5), batch(), UNIT, CONFIG)
    assert float(found.advantage) == pytest.approx(1.0)
    assert float(found.disagreement) == pytest.approx(0.5)
    assert float(found.outside) == 0.0
    assert float(found.total) == pytest.approx(-1.0 + 0.2 * 0.5)
    outside = actor_loss(made, actor_at(1.3), batch(), UNIT, CONFIG)
    assert float(outside.outside) == pytest.approx(1.64872, abs=1e-3)
    assert float(outside.total) == pytest.approx(-2.6 + 0.2 * 1.3 + 1.2 * 1.64872, abs=1e-3)


def test_an_action_and_its_position_in_a_box_that_is_cut():
    box = (torch.tensor([[0.95]]), torch.tensor([[-0.15]]), torch.tensor([[0.05]]))
    action, u = act(actor_at(-1.0), torch.ones(1, 1), box, UNIT)
    assert float(action) == pytest.approx(0.8)
    assert float(u) == pytest.approx((0.8 - 0.9) / 0.15)
    fixed = (torch.tensor([[0.4]]), torch.zeros(1, 1), torch.zeros(1, 1))
    action, u = act(actor_at(1.0), torch.ones(1, 1), fixed, torch.ones(1))
    assert (float(action), float(u)) == (pytest.approx(0.4), 0.0)


def test_what_actions_move_is_at_its_mean_in_the_next_state():
    data = make_sessions(60, seed=0, slope=np.zeros(2))
    problem = prepare(replace(data, value_mask=np.array([True, False, True])), "logged")
    rows = tensors(problem, 2.0).all
    assert rows.now[0].shape[1] == 3  # two columns and the step
    assert (rows.next[1][:, 2] == 0).all()
    assert (rows.now[1][:, 2] != 0).any()
    torch.testing.assert_close(rows.reward, torch.from_numpy(data.total_reward[:, None] / 2))


@pytest.fixture(scope="module")
def learned():
    problem = prepare(make_sessions(1500, seed=1, slope=np.array([1.0, 0.0])), "logged")
    return problem, fit_value(problem)


@pytest.mark.parametrize("changes", [{"bootstrap": True}, {"target": "subtract"}, {"continuous": True}, {"form": "joint"}])
def test_every_form_trains_inside_the_box(learned, changes):
    config = replace(CONFIG, steps=200, batch=256, critics=4, **changes)
    found = learn(*learned, config, seed=0, progress=Progress(False))
    assert np.isfinite(found.action).all()
    assert (np.abs(found.action) <= 0.3 + 1e-6).all()
    assert len(found.report["curve"]) == 20
    assert found.report["curve"][-1]["td_error"] < found.report["curve"][0]["td_error"]


def test_negative_values_and_divergence_are_said(learned):
    problem, value = learned
    below = replace(value, ret=-np.abs(value.ret))
    config = replace(CONFIG, steps=20, batch=64, critics=2)
    assert any("negative_values" in w for w in learn(problem, below, config, seed=0, progress=Progress(False)).report["warnings"])
    subtract = replace(config, target="subtract")
    quiet = learn(problem, below, subtract, seed=0, progress=Progress(False)).report["warnings"]
    assert not any("negative_values" in w for w in quiet)
    wild = learn(problem, value, replace(config, value_lr=50.0), seed=0, progress=Progress(False))
    assert any(w.startswith("divergence") for w in wild.report["warnings"])


def test_states_whose_box_is_cut_are_no_curvature():
    """Rewards of exp(s_0), whatever is done, and V may not read s_0. Boxes are cut, more near the edge."""
    data = make_sessions(2500, seed=0, slope=np.zeros(2))
    center = np.stack([0.75 - 0.25 * np.tanh(data.state[:, 0]), 0 * data.state[:, 0]], axis=1).astype(np.float32)
    lower, upper = box.offsets(center, 0.3)
    drawn = {"action": box.sample(np.random.default_rng(50), center, lower, upper), "center": center, "next_center": center}
    drawn |= {"lower": lower, "upper": upper, "next_lower": lower, "next_upper": upper}
    problem = prepare(replace(data, **drawn, value_mask=np.array([False, True, True])), "logged")
    config = IntegratedRLConfig(steps=600, batch=512, critics=4)
    rows = tensors(problem, float(fit_value(problem).ret.std()))
    agent = IntegratedAgent(problem, rows.all, config, 0)
    every = torch.arange(len(rows))
    fit(agent, rows, every, every[:0], torch.zeros(0), config, seed=0, name="t", progress=Progress(False))
    # with 1/3 for every box it was .15
    assert float(agent.critics.curve.detach().mean(0)[0].abs()) < 0.05
