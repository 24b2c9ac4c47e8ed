"""`mtf clean` and `mtf down` touch what is ours, and `clean` loses nothing by accident."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mtf.errors import ConflictError
from mtf.platform.clean import clean
from mtf.platform.doctor import examine
from mtf.platform.processes import stop_all, survivors
from mtf.platform.state import MARKER, ensure_secrets
from mtf.settings import ROOT, Settings

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def settings(tmp_path):
    return Settings(state_dir=tmp_path / "state")


@pytest.fixture
def orphan(settings):
    """A process of this platform whose supervisor is gone; and one of another platform."""
    marker = ensure_secrets(settings).state_id
    started = [subprocess.Popen([sys.executable, "-c", SLEEP], env=os.environ | {MARKER: value}) for value in (marker, "another")]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_down_stops_what_is_ours_and_nothing_else(settings, orphan):
    ours, others = orphan
    assert [process.pid for process in survivors(settings)] == [ours.pid]
    assert stop_all(settings) == 1
    assert ours.wait(timeout=5) is not None
    assert others.poll() is None


def test_down_without_a_platform_does_nothing(settings):
    assert stop_all(settings) == 0


def test_clean_refuses_while_a_server_runs(settings, orphan):
    with pytest.raises(ConflictError, match="mtf down"):
        clean(settings)
    assert settings.state_dir.exists()
    assert clean(settings, force=True)
    assert not settings.state_dir.exists()
    assert not clean(settings)


def test_clean_leaves_a_folder_that_holds_something_else(settings):
    """MTF_STATE_DIR may name a whole disk by mistake."""
    (settings.state_dir / "photos").mkdir(parents=True)
    (settings.state_dir / "spool").mkdir()
    with pytest.raises(ConflictError, match="holds `photos`, which the platform did not write"):
        clean(settings)
    assert (settings.state_dir / "photos").exists()
    assert clean(settings, force=True)


def test_clean_never_deletes_the_checkout():
    with pytest.raises(ConflictError, match="holds the checkout"):
        clean(Settings(state_dir=ROOT))


def test_doctor_looks_at_everything(settings):
    found = {finding.what: finding for finding in examine(settings)}
    assert set(found) == {
        "Python", "packages", "state folder", "disk", "memory", "ports", "S3 server", "git", "Java", "Chromium",
    }  # fmt: skip
    assert found["Python"].level == "ok"
    assert all(finding.mend for finding in found.values() if finding.level == "bad")


def test_doctor_names_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    found = {finding.what: finding for finding in examine(Settings(state_dir=tmp_path / "state"))}
    assert found["state folder"].level == "bad"
    assert "MTF_STATE_DIR" in found["state folder"].mend
