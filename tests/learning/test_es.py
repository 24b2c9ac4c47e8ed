"""One setting for everybody, found on logged candidates alone."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtf.errors import InputError
from mtf.fusion import rank
from mtf.learning.es import EvolutionConfig, _means, _some, _worth, learn, require
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.value import fit_value
from mtf.policy import Lineage, constant_policy
from mtf.spec import RewardHead
from tests.conftest import small_spec
from tests.learning.test_train import with_candidates

SPEC = small_spec()
CONFIG = EvolutionConfig(steps=15, population=8, requests=800, max_rms_step=1.0)


@pytest.fixture(scope="module")
def problem():
    start = constant_policy(np.zeros(4), 3, spec=SPEC, lineage=Lineage(algorithm="t"))
    return prepare(with_candidates(10, 1200, SPEC, start, start), "logged")


def search(problem, **changes):
    config = replace(CONFIG, **changes)
    return learn(problem, fit_value(problem), config, seed=0, progress=Progress(False))


def test_it_finds_the_score_that_is_paid_and_stays_in_the_box(problem):
    found = search(problem)
    (best,) = found.report["settings"]
    setting = np.array(best["setting"])
    assert (found.action == found.action[0]).all()
    assert (np.abs(setting) <= 0.4 + 1e-6).all()
    # only the watch score is paid: its power rises, the other's falls
    assert setting[1] > 0.2 > -0.2 > setting[0]
    assert best["after"] > best["before"]
    (wide,) = search(problem, within_box=False, sigma=0.4).report["settings"]
    assert wide["after"] >= best["after"]
    assert np.abs(wide["setting"]).max() > 0.4


def test_each_segment_has_the_setting_of_its_own_candidates(problem):
    """The watch score says nothing where the first feature is high: there the other one cannot matter either."""
    data, feature = problem.data, SPEC.features[0].name
    high = data.state[:, 0] > np.quantile(data.state[:, 0], 0.5)
    scores = data.candidates(np.arange(len(data)))[0].copy()
    scores[high, :, 1] = 0.5
    payload = pa.chunked_array([pa.array([of.astype("<f2").tobytes() for of in scores], pa.binary())])
    found = search(prepare(replace(data, cand_scores=payload), "logged"), segment=feature, segments=2)
    low_part, high_part = found.report["settings"]
    assert low_part["segment"].startswith(f"{feature} <= ")
    assert high_part["segment"].startswith(f"{feature} > ")
    assert low_part["share"] == pytest.approx(0.5, abs=0.01)
    assert low_part["setting"][1] > 0.2
    assert low_part["after"] > 1.02 * low_part["before"]
    assert high_part["after"] == pytest.approx(high_part["before"], rel=1e-3)
    np.testing.assert_allclose(found.action[~high], np.tile(low_part["setting"], (int((~high).sum()), 1)))
    np.testing.assert_allclose(found.action[high], np.tile(high_part["setting"], (int(high.sum()), 1)))


def test_a_segment_that_does_not_exist_and_one_that_is_everybody(problem):
    with pytest.raises(InputError, match="segment=nobody: no such column of the state; there are"):
        search(problem, segment="nobody")
    same = replace(problem.data, state=np.ones_like(problem.data.state))
    (one,) = search(prepare(same, "logged"), segment=SPEC.features[0].name).report["settings"]
    assert one["segment"] == "all"


def test_the_objective_is_the_reward_that_the_scores_promise(problem):
    """Without behaviours to calibrate on: weight .01 a second, three items, mean watch score of the ranked slates."""
    found = search(problem)
    rows = np.flatnonzero(problem.data.has_candidates)
    rows = rows[np.linspace(0, len(rows) - 1, 800).astype(int)]
    scores, count = problem.data.candidates(rows)
    shown = rank(SPEC, np.zeros((len(rows), 4)), scores, count)
    plain = 3 * 0.01 * np.take_along_axis(scores[..., 1], shown, 1).mean()
    assert found.report["settings"][0]["before"] == pytest.approx(plain, rel=1e-4)


def test_where_no_setting_promises_more_it_stays(problem):
    """One candidate as often as slots: every setting shows the same."""
    data = problem.data
    few = pa.chunked_array([pa.array([np.ones((3, 2), "<f2").tobytes()] * len(data), pa.binary())])
    found = search(prepare(replace(data, cand_scores=few), "logged"))
    (best,) = found.report["settings"]
    assert best["after"] == best["before"]
    np.testing.assert_allclose(best["setting"], problem.center.mean(axis=0), atol=1e-6)
    unpaid = small_spec(reward_heads=(RewardHead(name="valid", weights={"valid": 1.0}),))
    with pytest.raises(InputError, match=r"es: no objective \(click, watch\) is a behaviour that a reward head weighs"):
        require(prepare(replace(data, spec=unpaid), "logged"), CONFIG)


def test_a_score_in_other_units_does_no_harm(problem):
    """Behaviours bring each head to its level: half of what the scores promise was watched."""
    data = problem.data
    rows = np.arange(len(data))
    scores, count = data.candidates(rows)
    shown = rank(SPEC, data.action, scores, count)
    watched = 0.5 * np.take_along_axis(scores[..., 1], shown, 1).sum(axis=1)
    behaviour = np.column_stack([watched, np.zeros(len(data)), np.zeros(len(data))]).astype(np.float32)
    (calibrated,) = search(prepare(replace(data, behaviour=behaviour), "logged")).report["settings"]
    (plain,) = search(problem).report["settings"]
    assert calibrated["before"] == pytest.approx(0.5 * plain["before"], rel=0.02)


def test_it_is_searched_under_the_limit_that_is_served(problem):
    """Shortened afterwards, a step in dimensions that hardly matter would cost those that do."""
    found, free = search(problem, max_rms_step=0.3), search(problem)
    (best,), (widest,) = (of.report["settings"] for of in (found, free))
    step, wanted = (np.array(of["setting"]) / problem.half_width for of in (best, widest))
    assert 0.29 < np.sqrt(np.square(step).mean()) <= 0.3 * (1 + 1e-5), "as far as the limit lets it"
    assert np.sqrt(np.square(wanted).mean()) > 0.5
    assert best["before"] < best["after"] < widest["after"]
    # what it wanted is within the box and beyond the limit, and nothing was cut from the free one's
    assert 0.3 < found.report["rms_wanted"] <= 1
    assert free.report["rms_wanted"] == pytest.approx(np.sqrt(np.square(wanted).mean()), rel=1e-4)
    # what is reported is what its setting is worth
    worth = _worth(problem, rows := _some(np.arange(len(problem.data)), CONFIG.requests))
    scores, count = problem.data.candidates(rows)
    at = np.tile(np.float32(best["setting"]), (len(rows), 1))
    assert float(worth @ _means(problem, at, torch.from_numpy(scores), count)) == pytest.approx(best["after"], rel=1e-5)
