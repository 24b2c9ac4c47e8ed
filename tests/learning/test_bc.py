import numpy as np
import pytest

from mtf.learning.bc import BCConfig, learn
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions, relabel


def cloned(data):
    problem = prepare(data, "logged")
    return learn(problem, fit_value(problem), BCConfig(), seed=0, progress=Progress(False))


def test_the_middle_of_the_box_is_what_was_logged_whatever_paid():
    for slope in (np.zeros(2), np.array([2.0, -2.0])):
        found = cloned(make_sessions(3000, seed=0, slope=slope))
        assert np.abs(found.action).mean() / 0.3 < 0.02
        # uniform on [-1, 1]
        assert found.report["residual_rms"] == pytest.approx(1 / np.sqrt(3), rel=0.02)


def test_a_mean_that_depends_on_the_state_is_cloned():
    data = make_sessions(3000, seed=1, slope=np.zeros(2))
    action = np.clip(0.05 * data.state[:, :1] + 0.3 * data.action, -0.3, 0.3)
    found = cloned(relabel(data, action=np.broadcast_to(action, data.action.shape).astype(np.float32)))
    np.testing.assert_allclose(found.action, 0.05 * data.state[:, :1].clip(-3, 3) * [1, 1], atol=0.02)
