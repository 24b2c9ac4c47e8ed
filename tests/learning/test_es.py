"""One setting for everybody, found on logged candidates alone."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.fusion import rank
from mtf.learning.es import EvolutionConfig, learn
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.value import fit_value
from mtf.policy import Lineage, constant_policy
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions
from tests.learning.test_train import with_candidates

SPEC = small_spec()
CONFIG = EvolutionConfig(steps=15, population=8, requests=800)


@pytest.fixture(scope="module")
def problem():
    start = constant_policy(np.zeros(4), 3, spec=SPEC, lineage=Lineage(algorithm="t"))
    return prepare(with_candidates(10, 1200, SPEC, start, start), "logged")


def search(problem, **changes):
    config = replace(CONFIG, **changes)
    return learn(problem, fit_value(problem), config, seed=0, progress=Progress(False))


def test_it_finds_the_score_that_is_paid_and_stays_in_the_box(problem):
    found = search(problem)
    setting = np.array(found.report["setting"])
    assert (found.action == found.action[0]).all()
    assert (np.abs(setting) <= 0.4 + 1e-6).all()
    # only the watch score is paid: its power rises, the other's falls
    assert setting[1] > 0.2 > -0.2 > setting[0]
    assert found.report["after"] > found.report["before"]
    wide = search(problem, within_box=False, sigma=0.4)
    assert wide.report["after"] >= found.report["after"]
    assert np.abs(wide.report["setting"]).max() > 0.4


def test_the_objective_is_the_reward_that_the_scores_promise(problem):
    """Without behaviours to calibrate on: weight .01 a second, three items, mean watch score of the ranked slates."""
    found = search(problem)
    rows = np.flatnonzero(problem.data.has_candidates)
    rows = rows[:: max(1, len(rows) // 800)][:800]
    scores, count = problem.data.candidates(rows)
    shown = rank(SPEC, np.zeros((len(rows), 4)), scores, count)
    plain = 3 * 0.01 * np.take_along_axis(scores[..., 1], shown, 1).mean()
    assert found.report["before"] == pytest.approx(plain, rel=1e-4)


def test_a_score_in_other_units_does_no_harm(problem):
    """Behaviours bring each head to its level: half of what the scores promise was watched."""
    data = problem.data
    rows = np.arange(len(data))
    scores, count = data.candidates(rows)
    shown = rank(SPEC, data.action, scores, count)
    watched = 0.5 * np.take_along_axis(scores[..., 1], shown, 1).sum(axis=1)
    behaviour = np.column_stack([watched, np.zeros(len(data)), np.zeros(len(data))]).astype(np.float32)
    calibrated = search(prepare(replace(data, behaviour=behaviour), "logged"))
    assert calibrated.report["before"] == pytest.approx(0.5 * search(problem).report["before"], rel=0.02)


def test_it_says_what_it_needs():
    problem = prepare(make_sessions(100, seed=0, slope=np.zeros(2)), "logged")
    with pytest.raises(InputError, match="needs a spec and the candidates' scores"):
        search(problem)
