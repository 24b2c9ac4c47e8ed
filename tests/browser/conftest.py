"""A real platform with one played day, and Chromium in front of it: started once for all tests of this folder.

Nothing is mocked. Where Chromium or Playwright is missing every test here is skipped, before anything is started.
"""

from __future__ import annotations

import json
import shutil
import time

import pytest

from mtf.demo.airflow import DONE, Airflow
from mtf.platform.processes import survivors
from mtf.platform.run import down, up
from mtf.settings import Settings
from mtf.world.presets import Knobs, build
from mtf.world.traffic import play_day
from mtf.world.world import World

DT = "2026-03-02"
CHAIN = ("seal_day", "validate_logs", "build_transitions", "train_policy", "evaluate_policy", "refresh_exploration")
DAGS = [f"{name}__feed" for name in (*CHAIN, "deploy_canary", "reconcile_registry")]
# a test of pages needs no training; the reconciler would answer an alias before a test has looked at it
PAUSED = ("train_policy__feed", "reconcile_registry__feed")
USERS = 60
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-proxy-server"]


@pytest.fixture(scope="session")
def chromium_path():
    """Where Chromium is; skips where it or Playwright is missing."""
    pytest.importorskip("playwright.sync_api", reason="Playwright is missing: install the `browser` extra")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the PATH")
    return path


@pytest.fixture(scope="session")
def settings(chromium_path, tmp_path_factory):
    """The settings of a running platform whose fusion server has answered a small day, not sealed yet."""
    folder = tmp_path_factory.mktemp("browser")
    world = World(build("default", Knobs(users=2_000, items=500)))
    world.save(folder / "world")
    settings = Settings(state_dir=folder / "state", clock="simulated")
    try:
        up(settings, spec=folder / "world" / "spec.json")
        settings = Settings(state_dir=settings.state_dir, clock="simulated")
        airflow = Airflow(settings.airflow_url, settings.airflow_password_file)
        airflow.wait_parsed(DAGS)
        for dag_id in PAUSED:
            airflow._call("PATCH", f"/dags/{dag_id}", {"is_paused": True})
        play_day(world, settings.serve_url, users=USERS, dt=DT, seed=1)
        yield settings
    finally:
        down(settings)
        assert survivors(settings) == []


@pytest.fixture(scope="session")
def airflow(settings):
    """Airflow's REST interface."""
    return Airflow(settings.airflow_url, settings.airflow_password_file)


@pytest.fixture(scope="session")
def browser(settings, chromium_path):
    """Chromium; after the platform, whose traffic needs an event loop of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def stranger(browser):
    """The window of somebody who has not logged in."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def context(browser):
    """The administrator's windows; `asked` is every address that they asked for."""
    found = browser.new_context(viewport={"width": 1400, "height": 900})
    found.set_default_timeout(60_000)
    found.asked = []
    found.on("request", lambda request: found.asked.append(request.url))
    yield found
    found.close()


@pytest.fixture(scope="session")
def page(context, settings):
    """The administrator's window, logged in to Airflow through its form."""
    page = context.new_page()
    page.goto(settings.airflow_url)
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", json.loads(settings.airflow_password_file.read_text())["admin"])
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/auth/login" not in url)
    return page


@pytest.fixture(scope="session")
def sealed(page, settings, airflow):
    """The address of the run that sealed the day: triggered with the form of `seal_day__feed`, as a person would. Its Data Docs
    are written when this returns."""
    page.goto(f"{settings.airflow_url}/dags/seal_day__feed")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    form.locator("input[type=date]").fill(DT)
    form.get_by_role("button", name="Trigger").last.click()
    page.wait_for_url("**/runs/manual__*")
    wait_done(airflow, "seal_day__feed")
    wait_done(airflow, "validate_logs__feed")
    return page.url


def wait_done(airflow, dag_id, seconds=600):
    """Wait until the DAG's only run has ended."""
    deadline = time.monotonic() + seconds
    while not [run for run in airflow.runs(dag_id) if run.state in DONE]:
        assert time.monotonic() < deadline, f"{dag_id} has not ended after {seconds} s"
        time.sleep(0.5)
