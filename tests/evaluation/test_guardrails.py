"""Guarded metrics before a canary: the primary with a behaviour in the reward's place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mtf.evaluation import gate
from mtf.evaluation.guardrails import guardrails
from mtf.evaluation.intervals import Estimate
from mtf.evaluation.page import render
from mtf.evaluation.primary import primary
from mtf.evaluation.run import evaluate_set
from mtf.evaluation.steps import make_steps
from mtf.evaluation.values import fit_action_value
from tests.conftest import small_spec

SLOPE = np.array([0.8, -0.5, 0.3, 0.0])
BETTER = np.sign(SLOPE) * 0.15
NAMES = ("watch", "click", "valid")


@pytest.fixture(scope="module")
def data(world):
    """Of each step: valid is its reward, watch what the reward leaves of 3, click nothing."""
    data = world(3000, seed=7, slope=SLOPE)
    reward = data.total_reward
    return replace(data, behaviour=np.stack([3 - reward, np.zeros(len(data)), reward], axis=1).astype(np.float32))


@pytest.fixture(scope="module")
def steps(data, constant):
    return make_steps(data, constant(BETTER), None)[0]


def test_the_rewards_own_behaviour_has_the_primarys_lift(data, steps):
    found = guardrails(steps, data.behaviour, NAMES, 0.04)
    assert found["valid"] == primary(steps, fit_action_value(steps), 0.04).lift


def test_what_the_reward_takes_falls_by_its_closed_form(data, steps):
    """Actions move no end: a step's reward is e^(1/8) in the mean, and its watch the rest of 3."""
    level = np.exp(0.125)
    truth = -float(np.abs(SLOPE).sum() * 0.15) * level / (3 - level)
    found = guardrails(steps, data.behaviour, NAMES, 0.04)["duration"]
    assert found.low < truth < found.high < 0
    assert found.mean == pytest.approx(truth, abs=3 * found.se)


@pytest.mark.parametrize("behaviours", [("click",), ("click", "like")])
def test_a_surface_without_the_behaviours_has_no_guardrail(data, steps, behaviours):
    assert guardrails(steps, data.behaviour[:, :1], behaviours, 0.04) == {}
    assert guardrails(steps, None, NAMES, 0.04) == {}


def test_a_metric_that_is_constant_or_not_known_is_left_out(data, steps):
    noise = np.random.default_rng(0).normal(size=len(data)).astype(np.float32)
    behaviour = np.stack([noise, noise, np.full(len(data), 2.0, np.float32)], axis=1)
    assert guardrails(steps, behaviour, NAMES, 0.04) == {}


def test_a_fall_is_said_with_the_verdict_and_does_not_change_it(data, constant):
    report = evaluate_set(replace(data, spec=small_spec()), constant(BETTER), None)
    assert report.verdict == "pass"
    assert report.guardrails["duration"].high < 0 < report.guardrails["valid"].low
    (check,) = [c for c in report.checks if c.name == "guardrails"]
    assert (check.holds, check.votes) == (False, False)
    assert "; but it is expected to lower duration by " in report.reason
    assert "valid by" not in report.reason
    assert "it is expected to lower duration" in render(report)


def test_what_may_be_chance_does_not_warn():
    def estimate(low, high):
        return Estimate(mean=(low + high) / 2, low=low, high=high, se=0.01)

    assert gate.guardrail_check({"valid": estimate(-0.05, 0.0), "duration": estimate(0.01, 0.02)}).holds
    check = gate.guardrail_check({"valid": estimate(-0.05, -0.01), "duration": estimate(-0.2, -0.1)})
    assert "lower valid by 3.0% (1.0% to 5.0%) and duration by 15.0% (10.0% to 20.0%)" in check.why
