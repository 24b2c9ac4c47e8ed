"""The bar that somebody who waits looks at."""

import io
import sys

import numpy as np

from mtf.learning.progress import Progress
from mtf.learning.run import train_on
from tests.evaluation.conftest import make_sessions


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_training_shows_its_stages_and_its_losses_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    data, short = make_sessions(100, seed=0, slope=np.zeros(2)), {"steps": "1500", "batch": "64"}
    train_on(data, None, algorithm="td3_bc", baseline="logged", overrides=short, progress=True)
    shown = screen.getvalue()
    assert "td3_bc: " in shown
    assert "td_error=" in shown
    assert "held_out=" in shown


def test_nothing_is_shown_where_nobody_looks(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(True)
    assert list(progress.over(range(3), "replay")) == [0, 1, 2]
    progress.show({"loss": 1.0})
    assert screen.getvalue() == ""
    assert list(progress.seconds) == ["replay"]
