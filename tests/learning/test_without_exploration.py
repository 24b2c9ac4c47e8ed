"""A log of which nothing explored: what was served can be cloned, nothing else learned, and every refusal names the way out."""

from dataclasses import replace

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.evaluation.run import evaluate_set
from mtf.learning.registry import ALGORITHMS
from mtf.learning.run import train_on
from mtf.transitions.table import TransitionSet
from tests.evaluation.conftest import make_sessions


@pytest.fixture(scope="module")
def data() -> TransitionSet:
    """Requests at actions that a linear policy of the state chose."""
    found = make_sessions(300, seed=0, slope=np.zeros(2))
    served = (0.2 + 0.3 * found.state[:, :2] / np.abs(found.state).max()).astype(np.float32)
    after = (0.2 + 0.3 * found.next_state[:, :2] / np.abs(found.state).max()).astype(np.float32)
    none = np.zeros_like(served)
    return replace(
        found,
        action=served,
        center=served,
        lower=none,
        upper=none,
        next_center=after,
        next_lower=none,
        next_upper=none,
        exploring=np.zeros(len(found), bool),
    )


def test_what_was_served_is_cloned_and_the_gate_says_why_it_cannot_judge(data):
    found = train_on(data, None, algorithm="bc", baseline="logged", progress=False)
    # but for the few states that the policy's scaler clips
    assert np.quantile(np.abs(found.policy.act(data.state) - data.action), 0.99) < 0.01
    assert found.report["rows"]["explored"] == 0
    assert found.report["distilled"]["outside_share"] == 0
    assert any(w.startswith("no_exploration: ") for w in found.report["warnings"])
    report = evaluate_set(data, found.policy, None)
    assert report.verdict == "inconclusive"
    assert "explored (no row has a box of non-zero width)" in report.reason


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"bc"}))
def test_who_needs_exploration_says_so_and_what_to_do(data, algorithm):
    with pytest.raises(InputError, match=r"none of \d+ rows explored.*log actions drawn from a box.*--algorithm bc"):
        train_on(data, None, algorithm=algorithm, baseline="logged", progress=False)


def test_without_a_box_only_the_logged_policy_can_be_the_baseline(data, tmp_path):
    train_on(data, tmp_path / "p", algorithm="bc", baseline="logged", progress=False)
    with pytest.raises(InputError, match="explored around it; use --baseline logged"):
        train_on(data, None, algorithm="bc", baseline=tmp_path / "p", progress=False)
