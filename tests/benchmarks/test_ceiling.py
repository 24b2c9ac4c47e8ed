"""The model-free ceiling against the design's figures, and against what can be worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.ceiling import ceiling

SESSIONS = (20_000, 100_000, 300_000, 1_000_000)
# what the design says of the world of its figures: 10-D, about 8 requests a session, a return of 15 to 16, TD residual 5.3,
# the paper's box
DESIGN = {"value": 15.0, "discounted_requests": 8.0, "requests": 8.0, "residual_sd": 5.3, "half_width": 0.15, "dimensions": 10}


@pytest.mark.parametrize(("features", "figures"), [(5, (0.40, 0.77, 0.90, 0.96)), (20, (0.11, 0.49, 0.74, 0.89))])
def test_the_design_s_figures_within_four_points(features, figures):
    """They cannot be met exactly, see the next test: they look like those of a learner that has to find out the spread."""
    shares = [ceiling(0.1, 1.0, sessions, rounds=5, features=features, **DESIGN) for sessions in SESSIONS]
    assert shares == pytest.approx(figures, abs=0.04)


@pytest.mark.parametrize("features", [5, 20])
@pytest.mark.parametrize("personal", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("value", [5.0, 15.0, 50.0])
def test_odds_rise_no_faster_than_sessions(features, personal, value):
    """Whatever the inputs; the design's 20 features go from odds of at most .130 to at least .942, with five times of them."""
    inputs = DESIGN | {"value": value}
    few, many = (ceiling(0.1, personal, sessions, rounds=5, features=features, **inputs) for sessions in (20_000, 100_000))
    assert few < many
    assert many / (1 - many) <= 5 * few / (1 - few) * (1 + 1e-9)
    assert 0.942 / 0.130 > 5


def test_by_hand():
    """A request can gain .1 x 20 / 5 = .4, so c = 2 x .4 / (4 x .09) = 20/9 and v = 3 x 4 / (100 x 10 x .04 x 400/81) = .06075.

    Half of .09 is the intercept's, .0225 each of two features': remaining .045 x .575 and .0225 x .7297 with v alone.
    """
    inputs = {"value": 20.0, "discounted_requests": 5.0, "requests": 10.0, "residual_sd": 2.0, "half_width": 0.2}
    inputs |= {"dimensions": 4, "features": 2}
    left = [p * 0.06075 / (p + 0.06075) for p in (0.045, 0.0225, 0.0225)]
    assert ceiling(0.1, 0.5, 100, rounds=1, **inputs) == pytest.approx(1 - sum(left) / 0.09)
    twice = [p * 0.030375 / (p + 0.030375) for p in (0.045, 0.0225, 0.0225)]
    assert ceiling(0.1, 0.5, 100, rounds=2, **inputs) == pytest.approx(1 - sum(twice) / 0.09)


def test_all_global_needs_no_feature():
    five, twenty = (ceiling(0.1, 0.0, 100_000, rounds=5, features=features, **DESIGN) for features in (5, 20))
    assert five == twenty > ceiling(0.1, 0.2, 100_000, rounds=5, features=20, **DESIGN)
