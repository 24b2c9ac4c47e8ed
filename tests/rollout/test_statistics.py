import numpy as np
import pytest

from mtf.rollout.statistics import (
    Comparison,
    DecisionRules,
    Lift,
    Users,
    adjust,
    decide,
    lift,
    sequence_half_width,
    srm_bayes_factor,
)

RULES = DecisionRules()


def users(rng, n, effect=0.0, covariate_weight=0.0):
    canary = np.arange(n) % 2 == 0
    x = rng.normal(size=(n, 2))
    y = rng.gamma(1 / 1.16**2, 1.16**2, n) * (1 + effect * canary) + covariate_weight * x[:, 0]
    return Users(canary=canary, totals={"reward": y}, covariates=x)


def test_published_values():
    assert sequence_half_width(1000, 1.0, 0.05, 1000) == pytest.approx(0.09599, abs=5e-6)
    assert srm_bayes_factor((60, 40), (0.5, 0.5)) == pytest.approx(0.9130, abs=5e-5)


def test_sample_ratio_evidence_grows_with_a_wrong_split():
    assert srm_bayes_factor((5000, 5000), (0.5, 0.5)) < 0.1
    assert srm_bayes_factor((5400, 4600), (0.5, 0.5)) > 1e10
    assert srm_bayes_factor((100_000, 0), (0.5, 0.5)) > 1e100  # and no overflow


def test_interval_covers_at_every_look():
    """A/A with 12 looks from 1,000 users an arm on: at most alpha of the paths ever exclude 0."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(150):
        whole = users(rng, 8000)
        for n in range(2000, 8001, 500):
            part = Users(canary=whole.canary[:n], totals={"reward": whole.totals["reward"][:n]}, covariates=whole.covariates[:n])
            found = lift(part, "reward", RULES)
            if found.low > 0 or found.high < 0:
                wrong += 1
                break
    assert wrong <= 12  # binomial(150, .05): 7.5, and 12 is the 95 % point


def test_a_real_lift_is_found():
    found = lift(users(np.random.default_rng(1), 20_000, effect=0.15), "reward", RULES)
    assert found.low > 0
    assert found.low < 0.15 < found.high


def test_covariates_narrow_the_interval_and_keep_the_lift():
    sample = users(np.random.default_rng(2), 10_000, covariate_weight=1.0)
    plain = Users(canary=sample.canary, totals=sample.totals, covariates=np.empty((10_000, 0)))
    with_x, without = lift(sample, "reward", RULES), lift(plain, "reward", RULES)
    assert with_x.high - with_x.low < 0.85 * (without.high - without.low)
    assert adjust(sample, "reward").mean() == pytest.approx(sample.totals["reward"].mean())


def test_missing_covariates_get_an_indicator():
    sample = users(np.random.default_rng(3), 4000, covariate_weight=1.0)
    sample.covariates[::3, 0] = np.nan
    assert np.isfinite(adjust(sample, "reward")).all()


NAN = float("nan")


def test_a_total_that_is_no_number_shows_nothing():
    sample = users(np.random.default_rng(0), 4000, effect=0.5)
    assert lift(sample, "reward", RULES).low > 0
    sample.totals["reward"][7] = -np.inf
    found = lift(sample, "reward", RULES)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_without_a_guardrail_it_is_not_asked_for():
    found = look((0.1, 0.02, 0.2))
    del found.metrics["valid"]
    assert decide(found, RULES, last_look=False) == ("promote", "reward is better: +10.0% [+2.0%, +20.0%]; duration within -5%")


def look(reward, valid=(0.05, 0.0, 0.1), duration=(0.05, 0.0, 0.1), n=5000, srm=1.0):
    metrics = {k: Lift(lift=v[0], low=v[1], high=v[2]) for k, v in (("reward", reward), ("valid", valid), ("duration", duration))}
    return Comparison(
        n_canary=n,
        n_control=n,
        enrolled_canary=n,
        enrolled_control=n,
        srm_bayes_factor=srm,
        metrics=metrics,
        watermark_us=0,
        received_until_us=0,
    )


@pytest.mark.parametrize(
    ("comparison", "last", "decision", "reason"),
    [
        (look((0.1, 0.02, 0.2)), False, "promote", "reward is better"),
        (look((0.1, -0.02, 0.2)), False, "wait", "not shown to be better"),
        (look((0.1, -0.02, 0.2)), True, "roll_back", "inconclusive"),
        (look((-0.1, -0.2, -0.01)), False, "roll_back", "reward is worse"),
        (look((0.1, 0.02, 0.2), valid=(-0.2, -0.3, -0.1)), False, "roll_back", "valid is worse"),
        (look((0.1, 0.02, 0.2), duration=(0.0, -0.08, 0.08)), False, "wait", "duration may be worse by more than 5%"),
        (look((0.1, 0.02, 0.2), srm=2000), False, "roll_back", "sample ratio"),
        (look((NAN, NAN, NAN)), False, "wait", "not shown to be better"),
        (look((0.1, 0.02, 0.2), valid=(NAN, NAN, NAN)), True, "roll_back", "inconclusive: valid may be worse"),
        (look((0.1, 0.02, 0.2), n=900), False, "wait", "900 complete users"),
        (look((0.1, 0.02, 0.2), n=900), True, "roll_back", "inconclusive: 900"),
    ],
)
def test_decision_table(comparison, last, decision, reason):
    found = decide(comparison, RULES, last_look=last)
    assert found[0] == decision
    assert reason in found[1]
