"""A surface of its own for each test, on the one MLflow server of all."""

from __future__ import annotations

from itertools import count

import pytest

from mtf.rollout.document import Arms
from mtf.rollout.start import initialise
from mtf.settings import Settings
from tests.conftest import small_spec

NUMBERS = count()


@pytest.fixture
def settings(mlflow_url, tmp_path):
    return Settings(state_dir=tmp_path / "state", mlflow_url=mlflow_url)


@pytest.fixture
def surface():
    return f"feed{next(NUMBERS)}"


@pytest.fixture
def started(settings, surface):
    """A surface whose bootstrap policy is registered and served; returns its first document."""
    from mtf.registry import register_bootstrap

    spec = small_spec(surface=surface)
    version = register_bootstrap(settings, surface, spec)
    return initialise(settings, surface, spec, Arms(explore=0.5), 0.2, version)
