"""`evaluate` from files to report: verdicts, what they rest on, and the page."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mtf.errors import InputError
from mtf.evaluation.page import render
from mtf.evaluation.power import power
from mtf.evaluation.report import Report
from mtf.evaluation.run import evaluate, evaluate_set
from mtf.evaluation.steps import make_steps
from mtf.policy import Lineage, constant_policy
from tests.conftest import small_spec
from tests.transitions.files import write_transitions

SLOPE = np.array([0.8, -0.5, 0.3])
BETTER, WORSE = np.sign(SLOPE) * 0.15, np.sign(SLOPE) * -0.15


@pytest.fixture(scope="module")
def data(world):
    return world(3000, seed=7, slope=SLOPE)


@pytest.fixture(scope="module")
def better(data, constant):
    return evaluate_set(data, constant(BETTER), None)


def test_a_better_policy_passes_with_its_lift(better):
    truth = float(np.abs(SLOPE).sum() * 0.15)
    assert better.verdict == "pass", better.reason
    assert better.lift.low < truth < better.lift.high
    assert better.value_target == pytest.approx(better.value_deployed.mean * (1 + better.lift.mean))
    assert {c.name for c in better.checks} == {
        "coverage", "users", "baseline", "propensities", "value", "step", "calibration", "referee",
    }  # fmt: skip
    assert better.weights.mean == pytest.approx(1, abs=3 * better.weights.mean_se)
    assert better.weights.square_expected == pytest.approx(1 + 3 * 3 / 4)
    assert better.step_rms == pytest.approx(0.5)
    assert better.detectable_lift == pytest.approx(2.8954 * better.lift.se, rel=1e-4)
    assert [d.y_mean for d in better.dimensions] == pytest.approx([0.5, -0.5, 0.5])


def test_a_worse_one_fails_and_an_equal_one_is_inconclusive(data, constant):
    assert evaluate_set(data, constant(WORSE), None).verdict == "fail"
    same = evaluate_set(data, constant(np.zeros(3)), None)
    assert (same.verdict, same.lift.mean) == ("inconclusive", 0.0)
    assert "includes 0" in same.reason


def test_a_policy_outside_the_box_fails_whatever_it_would_earn(data, constant):
    report = evaluate_set(data, constant(np.sign(SLOPE) * 0.5), None)
    assert report.verdict == "fail"
    assert "leaves the explored box in 100.0% of states" in report.reason
    assert report.uncovered == 1.0


def test_too_long_a_step_is_inconclusive(data, constant):
    report = evaluate_set(data, constant(np.sign(SLOPE) * 0.29), None)
    assert report.verdict == "inconclusive"
    assert "moves 0.97 half-widths" in report.reason


def test_the_sessions_that_did_not_explore_check_the_level(world, constant, changed):
    data = world(2000, seed=8, slope=SLOPE)
    still = np.isin(data.user, np.arange(0, 2000, 4))
    parts = {name: np.where(still[:, None], 0, getattr(data, name)).astype(np.float32) for name in ("action", "lower", "upper")}
    # without a box the reward is that of the centre
    reward = np.where(still[:, None], data.reward / np.maximum(1 + data.action @ SLOPE, 0.01)[:, None], data.reward)
    mixed = changed(data, exploring=~still, reward=reward.astype(np.float32), **parts)
    report = evaluate_set(mixed, constant(BETTER), None)
    assert report.drops["not_explored"] == 500
    assert report.on_policy.sessions == 500
    assert abs(report.on_policy.z) < 4
    # a level that is off by a third is seen
    off = evaluate_set(changed(mixed, reward=np.where(still[:, None], mixed.reward * 1.35, mixed.reward)), constant(BETTER), None)
    assert off.on_policy.z < -4


def test_few_users_give_a_reason_and_no_number(data, constant):
    few = evaluate_set(data.select(data.session < 8), constant(BETTER), None)
    assert few.verdict == "inconclusive"
    assert few.lift.mean is None
    assert "Only 8 users are left" in few.reason
    some = evaluate_set(data.select(data.session < 120), constant(BETTER), None)
    assert some.verdict == "inconclusive"
    assert "Only 120 users" in some.reason


def test_gate_users_alone_are_read_and_the_report_comes_back(world, constant, tmp_path):
    from mtf.transitions.table import is_gate_user

    data = world(800, seed=9, slope=SLOPE)
    folder = write_transitions(tmp_path / "t", data)
    constant(BETTER).write(tmp_path / "policy")
    constant(np.zeros(3)).write(tmp_path / "bundle")
    report = evaluate(folder, tmp_path / "policy", "logged", tmp_path / "out")
    assert report.users == sum(is_gate_user(f"u{i}") for i in range(800))
    again = Report.from_json((tmp_path / "out" / "report.json").read_bytes())
    assert again == report
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("report.json", "report.html")}
    evaluate(folder, tmp_path / "policy", "logged", tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before
    # the same centre as a bundle: rows do not say which policy made them
    bundle = evaluate(folder, tmp_path / "policy", tmp_path / "bundle", tmp_path / "out")
    assert bundle.lift == report.lift
    assert (bundle.baseline, bundle.baseline_sha) == ("bundle", constant(np.zeros(3)).sha)
    with pytest.raises(InputError, match="no spec"):
        evaluate(folder, tmp_path / "policy", "bootstrap", tmp_path / "out")


def test_the_page_stands_alone_and_says_what_the_report_says(better, data, constant):
    page = render(better)
    assert page.startswith("<!doctype html>")
    assert "<strong>Pass</strong>" in page
    assert f"{better.lift.mean:+.2%}" in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="https?:', page)
    for check in better.checks:
        assert f"<td>{check.name}</td>" in page
    for report in (evaluate_set(data.select(data.session < 8), constant(BETTER), None),):
        page = render(report)
        assert "<strong>Inconclusive</strong>" in page
        assert "None" not in page
        assert "nan" not in page


def test_the_page_escapes_what_it_is_given(better):
    import msgspec

    page = render(msgspec.structs.replace(better, reason="<b>x</b> & y", baseline="<i>"))
    assert "&lt;b&gt;x&lt;/b&gt; &amp; y" in page
    assert "<i>" not in page


def test_the_report_is_plain_json(better):
    plain = json.loads(better.to_json())
    assert plain["verdict"] == "pass"
    assert set(plain["lift"]) == {"mean", "low", "high", "se"}
    assert plain["drops"]["not_explored"] == 0


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_rewards_that_never_differ_are_inconclusive_with_the_reason(world, constant, changed, reward):
    """Sessions of one step: noise of the last digit would else be a lift, and zeros a division by nothing."""
    single = world(600, seed=3, slope=SLOPE, end=1.0, longest=1)
    alike = changed(single, reward=np.full_like(single.reward, reward))
    report = evaluate_set(alike, constant(BETTER), None)
    assert report.verdict == "inconclusive"
    assert f"sessions earned {reward:g}, so that no policy can be told from another" in report.reason
    assert "no policy can be told" in str(power(alike).reason)


def test_a_policy_of_another_spec_is_refused(data):
    spec = small_spec()
    of = replace(data, spec=spec)
    policy = constant_policy(np.zeros(data.action_width), data.state_width, spec=None, lineage=Lineage(algorithm="t"))
    policy.spec = other = small_spec(n_shown=2)
    with pytest.raises(InputError, match=f"policy: was made for spec {other.version}, the transitions are of {spec.version}"):
        make_steps(of, policy, None)
