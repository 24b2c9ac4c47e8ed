"""Critics of what an action does to a slate, `form=slate`: by hand, against their replay, and where slates' worth is known."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtf.errors import InputError
from mtf.fusion import rank
from mtf.learning import slate_replay
from mtf.learning.integrated_rl import IntegratedAgent, IntegratedRLConfig, learn, require
from mtf.learning.networks import SlateCritics
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.rows import tensors
from mtf.learning.slate_critics import require_candidates, slate_part
from mtf.learning.slate_replay import SlateReplayConfig
from mtf.learning.value import fit_value
from mtf.policy import Lineage, constant_policy
from mtf.spec import RewardHead
from tests.conftest import small_spec
from tests.learning.test_integrated_rl import batch
from tests.learning.test_train import with_candidates

SPEC = small_spec()
SMALL = IntegratedRLConfig(form="slate", steps=300, batch=256, critics=4, critic_hidden=(16,), head_lr=1e-2, value_lr=1e-2)


def critics(slopes, second, prior, away):
    """SlateCritics with the given numbers, a critic for each row of `away`, and V = 0."""
    numbers = [torch.as_tensor(v, dtype=torch.float32) for v in (slopes, second, prior)]
    made = SlateCritics(len(away), 1, *numbers, (), torch.Generator())
    with torch.no_grad():
        made.away.copy_(torch.as_tensor(away))
        made.value_net.weights[0].zero_()
        made.value_net.biases[0].zero_()
    return made


def seen(slate, phi):
    """A row that logged this slate at this state."""
    return replace(batch(), now=(torch.ones(1, 1), torch.tensor([phi])), slate=torch.tensor([slate]))


def test_the_advantage_of_a_logged_slate_by_hand():
    """l~ = .5, l~^2 - E = -.2, z = 2: f = [.5, -.2, 1]. One critic at the prior, [1, 2, 3], one at [1.5, 1, 4]."""
    made = critics(np.zeros((1, 2, 3)), np.zeros((1, 3)), [1.0, 2.0, 3.0], [[0.0, 0.0, 0.0], [0.5, -1.0, 1.0]])
    found = made.logged_part(seen([0.5, -0.2], [1.0, 2.0])).detach()
    assert found[:, 0].tolist() == pytest.approx([0.5 - 0.4 + 3.0, 0.75 - 0.2 + 4.0])


def test_the_advantage_of_a_replayed_action_by_hand():
    """T = [[1, 0, 2], [0, 1, -1]], phi = [1, 2]: f moves by [1, 2, 0] a half-width, and bends by [4, 0, 2]."""
    slopes, second = [[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]], [[4.0, 0.0, 2.0]]
    made = critics(slopes, second, [1.0, 2.0, 3.0], [[0.0, 0.0, 0.0], [0.5, -1.0, 1.0]])
    row, u = seen([0.5, -0.2], [1.0, 2.0]), torch.tensor([[0.5]])
    square = 0.25 - 1 / 3
    expected = [0.5 * (1 + 4) + 0.5 * (4 + 6) * square, 0.5 * (1.5 + 2) + 0.5 * (6 + 8) * square]
    assert made.action_part(row.now, u)[:, 0].tolist() == pytest.approx(expected)
    torch.testing.assert_close(made(row.now, u), made.action_part(row.now, u))


@pytest.fixture(scope="module")
def data():
    """One-request sessions whose reward is the sum of the shown items' second scores."""
    start = constant_policy(np.zeros(4), 3, spec=SPEC, lineage=Lineage(algorithm="t"))
    return with_candidates(10, 2500, SPEC, start, start)


@pytest.fixture(scope="module")
def learnable(data):
    problem = prepare(data, "logged")
    return problem, fit_value(problem)


def part(problem, value, scale=1.0, **settings):
    nobody = np.zeros(len(problem.data), bool)
    return slate_part(problem, value, scale, **{"held": nobody, "seed": 0, "progress": Progress(False)} | settings)


def test_what_is_logged_moves_with_the_action_as_what_is_replayed(learnable):
    """A critic for each feature alone: least squares of its A at the logged slates on u x phi finds its replayed slopes."""
    problem, value = learnable
    found = part(problem, value)
    width, p, f = found.slopes.shape
    made = critics(found.slopes, found.second, np.zeros(f), np.eye(f, dtype=np.float32))
    phi, u = problem.phi, problem.u
    rows = replace(batch(len(phi)), now=(torch.ones(len(phi), 1), torch.from_numpy(phi)), slate=torch.from_numpy(found.effects))
    logged = made.logged_part(rows).detach().numpy().T
    design = np.column_stack([phi, (u[:, :, None] * phi[:, None, :]).reshape(len(phi), -1)])
    fitted = np.linalg.lstsq(design, logged, rcond=None)[0][p:]
    replayed = found.slopes.reshape(width * p, f).numpy()
    # l~ and l~ x z; squares hardly have slopes here
    for of in (slice(6), slice(12, None)):
        share = np.sum(fitted[:, of] * replayed[:, of]) / np.sum(replayed[:, of] ** 2)
        assert share == pytest.approx(1, abs=0.1)


def paid(data, **changes):
    """`data` with behaviour that the spec's heads pay for: a hundredth of a reward for what is watched."""
    behaviour = np.repeat(data.reward.sum(axis=1, keepdims=True), 3, axis=1) * np.array([100.0, 0.0, 0.0], np.float32)
    return replace(data, behaviour=behaviour, **changes)


def two_heads(data):
    """`data` whose reward is paid by two heads, a quarter and three quarters of it."""
    heads = tuple(RewardHead(name=name, weights={"watch": weight}) for name, weight in (("a", 0.0025), ("b", 0.0075)))
    return replace(data, spec=small_spec(reward_heads=heads), reward=data.reward * np.array([0.25, 0.75], np.float32))


def test_critics_begin_at_the_plug_in_reward_as_far_as_rewards_bear_it_out(data):
    problem = prepare(paid(data), "logged")
    value = fit_value(problem)
    found, half = part(problem, value), part(problem, value, 2.0)
    # scores are exact here: the promise is kept, and its slopes are those of what is watched
    assert found.report["plug_in_trusted"] == pytest.approx(1, abs=0.1)
    slope = (found.slopes @ found.prior[0])[:, 0]
    assert slope[1] > 0.02 > -0.02 > slope[0]
    torch.testing.assert_close(half.prior, found.prior / 2)
    dealt = prepare(paid(data, reward=np.random.default_rng(0).permutation(data.reward)), "logged")
    assert abs(part(dealt, fit_value(dealt)).report["plug_in_trusted"]) < 0.1


def test_a_heads_critics_begin_at_what_that_head_pays(data):
    """All heads together promise the plug-in reward once."""
    split = paid(two_heads(data))
    problem = prepare(split, "logged")
    value = fit_value(problem)
    whole, apart = part(problem, value), part(problem, value, by_head=True)
    assert (whole.prior != 0).any()
    torch.testing.assert_close(apart.prior, whole.prior * torch.tensor([[0.25], [0.75]]))
    rows = tensors(problem, 1.0, by_head=True).all
    agent = IntegratedAgent(problem, rows, replace(SMALL, groups="heads"), 0, apart)
    u = torch.full((len(rows), 4), 0.5)
    begun = agent.critics.action_part(rows.now, u).unflatten(0, (2, SMALL.critics))
    alone = IntegratedAgent(problem, tensors(problem, 1.0).all, SMALL, 0, whole).critics.action_part(rows.now, u)
    torch.testing.assert_close(begun.sum(0), alone)
    torch.testing.assert_close(3 * begun[0], begun[1])
    one = replace(split, reward=split.reward[:, :1])
    problem = prepare(one, "logged")
    with pytest.raises(InputError, match="`reward` has width 1, the spec 2 reward heads"):
        require_candidates(problem, by_head=True)


@pytest.mark.parametrize("groups", ["total", "heads"])
def test_it_trains_inside_the_box_to_slates_that_are_worth_more(data, groups):
    """Nothing is promised, so all of it is learned from rewards; and where slate replay goes as well."""
    problem = prepare(two_heads(data), "logged")
    value = fit_value(problem)
    found = learn(problem, value, replace(SMALL, groups=groups), seed=0, progress=Progress(False))
    assert found.report["plug_in_trusted"] == 0
    step = found.action - problem.center
    assert (np.abs(step) <= 0.4 + 1e-6).all()
    other = slate_replay.learn(problem, value, SlateReplayConfig(), seed=0, progress=Progress(False)).action - problem.center
    assert np.corrcoef(step.ravel(), other.ravel())[0, 1] > 0.8
    scores, _ = data.candidates(np.arange(len(data)))

    def worth(action):
        return float(np.take_along_axis(scores[..., 1], rank(SPEC, action, scores), 1).sum(axis=1).mean())

    assert worth(found.action) > 1.05 * worth(problem.center)


def without(data, share):
    """`data` of which this share logged no candidates."""
    some = data.cand_scores.to_pylist()
    some[: int(share * len(some))] = [None] * int(share * len(some))
    return replace(data, cand_scores=pa.chunked_array([pa.array(some, pa.binary())]))


def test_without_candidates_it_is_refused(data):
    says = r"form = 'slate': {} of 2510 explored rows logged their candidates; log them, or use 'advantage'"
    for bad, logged in ((replace(data, cand_scores=None), 0), (without(data, 0.6), 1004), (replace(data, spec=None), 2510)):
        problem = prepare(bad, "logged")
        with pytest.raises(InputError, match=says.format(logged)):
            require(problem, SMALL)
    # most of them are enough; the others shape V alone
    problem = prepare(without(data, 0.3), "logged")
    found = part(problem, fit_value(problem)).effects
    assert not found[:753].any()
    assert found[753:].any(axis=1).mean() > 0.3


def test_where_an_action_acts_past_its_slates_the_critics_do_without_them(data):
    """As in slate replay: the fourth dimension hardly moves a slate, and a reward that it moves cannot come through one."""
    problem = prepare(replace(data, reward=(data.reward + 1.5 * data.action[:, 3:]).astype(np.float32)), "logged")
    found = learn(problem, fit_value(problem), SMALL, seed=0, progress=Progress(False))
    assert found.report["direct_effect"]["max_z"] > 4
    assert found.report["warnings"][0].startswith("mediation_fails")
    assert (found.report["used"], "plug_in_worth" in found.report) == ("advantage", False)
    assert found.action.mean(axis=0)[3] > 0.1
    through = prepare(data, "logged")
    kept = learn(through, fit_value(through), SMALL, seed=0, progress=Progress(False))
    assert kept.report["direct_effect"]["max_z"] < 4
    assert kept.report["used"] == "slate"
    assert not any(warning.startswith("mediation_fails") for warning in kept.report["warnings"])
