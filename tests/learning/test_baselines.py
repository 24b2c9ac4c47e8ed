"""The baselines' losses on values set by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtf.learning.actor_critic import boxed, cloning_loss
from mtf.learning.batch_rl import BatchRL, BatchRLConfig
from mtf.learning.config import with_overrides
from mtf.learning.corner import CornerConfig
from mtf.learning.corner import learn as corner
from mtf.learning.cql_sac import CQLSAC, CQLSACConfig
from mtf.learning.ddpg import actor_loss, critic_loss
from mtf.learning.iql import IQL, IQLConfig, advantage_weight, expectile_loss
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.registry import algorithm
from mtf.learning.rows import tensors
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions, policy_at, relabel
from tests.learning.test_integrated_rl import actor_at, batch
from tests.learning.test_td3_bc import linear

UNIT = torch.tensor([0.15])


@pytest.fixture(scope="module")
def problem():
    return prepare(make_sessions(200, seed=1, slope=np.array([1.0, 0.0])), "logged")


def test_the_minimiser_of_the_expectile_loss_is_the_expectile():
    """Expectile .9 of the targets {0, 1} is .9."""
    v = torch.zeros(())
    for _ in range(500):
        _, by_difference = expectile_loss(torch.tensor([0.0, 1.0]) - v, 0.9)
        v += 0.2 * by_difference.sum()
    assert float(v) == pytest.approx(0.9, abs=1e-4)


def test_iqls_losses_come_with_their_slopes():
    difference = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    loss, slope = expectile_loss(difference, 0.9)
    assert float(loss.detach()) == pytest.approx((0.1 * 1 + 0.9 * 0.25 + 0.9 * 4) / 3)
    torch.testing.assert_close(slope, *torch.autograd.grad(loss, difference))
    u, logged, weight = torch.tensor([[0.5, -0.1], [0.2, 0.0]], requires_grad=True), torch.zeros(2, 2), torch.tensor([1.0, 3.0])
    loss, slope = cloning_loss(u, logged, weight)
    assert float(loss.detach()) == pytest.approx((0.26 + 3 * 0.04) / 2)
    torch.testing.assert_close(slope, *torch.autograd.grad(loss, u))


def test_advantage_weights_give_the_mean_action_of_a_softmax():
    """A = {0, 1} of the actions {0, 1}, temperature 1: mean action .73106."""
    weight = advantage_weight(torch.tensor([0.0, 1.0]), 1.0, 100.0)
    assert float(weight[1] / weight.sum()) == pytest.approx(0.73106, abs=1e-5)
    assert float(advantage_weight(torch.tensor([50.0]), 1.0, 100.0)) == 100.0


def test_ddpg_takes_the_target_actors_action_and_no_minimum():
    target = linear(2.0, at_zero=10.0)
    there = actor_at(math.atanh(0.5))
    found = critic_loss(linear(0.0, at_zero=1.0), target, there, batch(3), UNIT, 0.9)
    assert float(found.detach()) == pytest.approx((1 - (1 + 0.9 * (10 + 2 * 0.5))) ** 2, rel=1e-5)
    ended = critic_loss(linear(0.0), target, there, batch(done=1.0), UNIT, 0.9)
    assert float(ended.detach()) == pytest.approx(1.0)
    assert float(actor_loss(target, there, batch(), UNIT).detach()) == pytest.approx(-11.0, rel=1e-5)


def test_iql_bootstraps_from_v_of_the_next_state_and_never_from_an_action(problem):
    rows = tensors(problem, 1.0)
    agent = IQL(problem, rows.all, IQLConfig(), torch.Generator().manual_seed(0))
    some = rows.take(torch.arange(64))
    with torch.no_grad():
        for parameter in agent.critics.parameters():
            parameter.zero_()
        for parameter in agent.value.parameters():
            parameter.zero_()
        agent.value.biases[-1].fill_(5.0)
        y = some.reward[:, 0] + 0.9 * (1 - some.done) * 5.0
        torch.testing.assert_close(agent.target_value(some), y)
        assert float(agent.update(some, 1)["td_error"]) == pytest.approx(float(y.square().mean()), rel=1e-5)


def test_an_update_of_iql_is_what_autograd_makes_of_the_paper(problem):
    """Ten updates of a copy by three optimisers, whose gradients are autograd's, of losses written here."""
    rows = tensors(problem, 1.0)
    config = IQLConfig(batch=64, critic_hidden=(8, 8), actor_hidden=(8,), lr=1e-2)
    agent, other = (IQL(problem, rows.all, config, torch.Generator().manual_seed(3)) for _ in range(2))
    adam = {name: torch.optim.Adam(other.modules[name].parameters(), lr=config.lr) for name in ("value", "critics", "actor")}
    for step in range(1, 11):
        some = rows.take(torch.arange(64 * step, 64 * step + 64))
        agent.update(some, step)
        with torch.no_grad():
            q = other.target(some.now, some.u).min(0).values
            y = some.reward.sum(1) + 0.9 * (1 - some.done) * other.value(some.next[1])[0, :, 0]
        away = q - other.value(some.now[1])[0, :, 0]
        weight = (3 * away.detach()).exp().clamp(max=100)
        losses = {
            "value": torch.where(away < 0, 0.3, 0.7).mul(away**2).mean(),
            "critics": sum(torch.nn.functional.mse_loss(q, y) for q in other.critics(some.now, some.u)),
            "actor": (weight * (boxed(other.actor, some.z, some.box, other.unit) - some.u).square().sum(1)).mean(),
        }
        for name, loss in losses.items():
            adam[name].zero_grad()
            loss.backward()
            adam[name].step()
        for a, b in zip(other.target.parameters(), other.critics.parameters(), strict=True):
            a.data.mul_(1 - config.tau).add_(config.tau * b.data)
    for (name, a), b in zip(agent.modules.named_parameters(), other.modules.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)


def test_cql_pushes_nothing_where_q_is_flat_and_the_density_is_that_of_the_draw(problem):
    rows = tensors(problem, 1.0)
    agent = CQLSAC(problem, rows.all, CQLSACConfig(draws=400), torch.Generator().manual_seed(0))
    some = rows.take(torch.arange(32))
    with torch.no_grad():
        for parameter in agent.critics.parameters():
            parameter.zero_()
        # importance sampling of a flat Q: log mean exp(0) / density over the box [-1, 1]^2 is the log of its volume, 4
        _, push = agent.critic_loss(some)
        assert float(push) / 2 == pytest.approx(2 * math.log(2), abs=0.05)
        u, log_density = agent.sample(some.z[:1].expand(200_000, -1), tuple(v[:1].expand(200_000, -1) for v in some.box))
        # the density integrates to 1: E[1 / density] is the volume of the support
        inside = (u.abs() < 0.9).all(dim=1)
        assert float(((-log_density).exp() * inside).mean()) == pytest.approx(1.8**2, rel=0.1)


def test_batch_rl_proposes_inside_the_box_moves_a_little_and_takes_the_best(problem):
    rows = tensors(problem, 1.0)
    config = BatchRLConfig(perturbation=0.03, proposals=6)
    agent = BatchRL(problem, rows.all, config, torch.Generator().manual_seed(0))
    some = rows.take(torch.arange(50))
    with torch.no_grad():
        u = agent.decode(some.z, agent.codes(50), some.box)
        moved = agent.moved(agent.perturb, some.z, u, some.box)
        assert float((moved - u).abs().max()) <= 0.03 / float(agent.unit.min()) + 1e-6
        assert float(moved.abs().max()) <= 1 + 1e-6
        for parameter in agent.target.parameters():
            parameter.zero_()
        agent.target.net.biases[-1].copy_(torch.tensor([4.0, 8.0]).reshape(2, 1, 1))
        y = agent.target_value(some)
        expected = some.reward[:, 0] + 0.9 * (1 - some.done) * (0.75 * 4 + 0.25 * 8)
        torch.testing.assert_close(y, expected)


def test_the_corner_rule_goes_by_the_sign_alone():
    found = []
    for slope in ([2.0, -0.5], [0.5, -2.0]):
        problem = prepare(make_sessions(3000, seed=3, slope=np.array(slope)), "logged")
        learned = corner(problem, fit_value(problem), CornerConfig(), seed=0, progress=Progress(False))
        found.append((learned.action - problem.center)[0] / 0.3)
        assert learned.report["wanted_edge_share"] == 1.0
    np.testing.assert_allclose(found[0], [0.5, -0.5], atol=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def of_an_earlier_round(data, deployed, earlier, by):
    """`data` around the policy `deployed`, with the rows of `earlier` explored `by` before it, a day ago."""
    back = np.where(earlier[:, None], -np.float32(by), 0).astype(np.float32)
    there = deployed.act(data.state[:1])[0]
    return relabel(
        data,
        **{name: getattr(data, name) + there + back for name in ("action", "center", "next_center")},
        policy_sha=np.where(earlier, "earlier", deployed.sha).astype(object),
        dt=np.where(earlier, "2026-01-01", "2026-01-02").astype(object),
    )


@pytest.fixture(scope="module")
def of_two_rounds(tmp_path_factory):
    """Half of the rows half a box before the deployed policy; no action is worth more than another."""
    data, deployed = make_sessions(500, seed=0, slope=np.zeros(2)), policy_at(np.full(2, 0.15, np.float32))
    deployed.write(folder := tmp_path_factory.mktemp("rounds") / "deployed")
    return prepare(of_an_earlier_round(data, deployed, data.user % 2 == 0, 0.15), folder)


def test_only_rows_around_the_deployed_policy_hold_a_learner(of_two_rounds):
    hold, current = of_two_rounds.hold, of_two_rounds.current
    assert hold[~current].max() == 0
    assert hold[of_two_rounds.signal].mean() == pytest.approx(1)
    np.testing.assert_allclose(hold[current], 1 / current[of_two_rounds.signal].mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["td3_bc", "iql", "batch_rl", "cql_sac"])
def test_what_holds_a_learner_does_not_draw_it_back_to_an_earlier_round(name, of_two_rounds):
    """Without a signal the step is near 0: neither towards nor away from the earlier round's middle, half a box behind."""
    chosen = algorithm(name)
    config = with_overrides(
        chosen.config, {"steps": "400", "batch": "128", "critic_hidden": "32", "actor_hidden": "16", "max_rms_step": "1"}
    )
    found = chosen.learn(of_two_rounds, fit_value(of_two_rounds), config, seed=0, progress=Progress(False))
    assert np.abs(of_two_rounds.moves(found.action).mean(axis=0)).max() < 0.15


def test_iqls_advantage_holds_nothing_that_q_alone_sees(problem):
    """Where a column may not be read by values at s', V(s) reads it nevertheless: as Q does."""
    masked = prepare(relabel(problem.data, value_mask=np.array([False, True, True])), "logged")
    rows = tensors(masked, 1.0, joint=True)
    agent = IQL(masked, rows.all, IQLConfig(), torch.Generator().manual_seed(0))
    assert agent.value.weights[0].shape[1] + masked.data.action_width == agent.critics.net.weights[0].shape[1]
    some = rows.take(torch.arange(64))
    moved = replace(some, now=(some.now[0], some.now[1] + torch.eye(4)[1]))
    with torch.no_grad():
        assert not torch.equal(agent.value(some.now[1]), agent.value(moved.now[1]))
        torch.testing.assert_close(some.next[1][:, 1], torch.zeros(64))


def test_cqls_push_weighs_the_same_whatever_share_of_the_rows_it_is_of(problem):
    """Half of the actions lie outside the box now: the others count twice."""
    rows = tensors(problem, 1.0)
    half = (rows.all.box[2] - rows.all.box[1]) / 2 / torch.from_numpy(problem.unit)
    wide = replace(rows.all, u=torch.where(torch.arange(len(rows))[:, None] % 2 == 0, rows.all.u, 2 * half))
    agents = [CQLSAC(problem, of, CQLSACConfig(), torch.Generator().manual_seed(0)) for of in (rows.all, wide)]
    assert agents[0].push_scale == pytest.approx(1, rel=1e-5)
    assert agents[1].push_scale == pytest.approx(2, rel=0.01)
    assert not agents[1].inside(wide)[1::2].any()
    assert agents[1].inside(wide)[::2].all()
