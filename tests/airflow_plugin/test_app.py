"""The mounted application: its routes ask for a user, its files stay inside the site."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from mtf.rollout import intents
from mtf.rollout.controller import Controller
from mtf.rollout.document import PolicyRef, encode
from mtf.rollout.documents import put_bundle
from mtf.rollout.intents import Intent
from mtf.rollout.start import initialise
from mtf.settings import Settings
from mtf.store import open_store
from tests.conftest import random_policy
from tests.rollout.test_controller import CONFIG, DAY, SPEC, Rows


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The plugin's modules, imported with an AIRFLOW_HOME of their own: Airflow writes its configuration there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        from mtf.airflow_plugin import app, plugin

        yield app, plugin


@pytest.fixture
def state(tmp_path, monkeypatch):
    """An empty state folder that the application finds by the environment."""
    monkeypatch.setenv("MTF_STATE_DIR", str(tmp_path / "state"))
    return Settings()


@pytest.fixture
def stranger(plugin):
    return TestClient(plugin[0].create_app())


@pytest.fixture
def user(plugin):
    app = plugin[0].create_app()
    app.dependency_overrides[plugin[0].get_user] = lambda: None
    return TestClient(app, raise_server_exceptions=False)


def site(state):
    state.docs_dir.mkdir(parents=True)
    (state.docs_dir / "index.html").write_text("<h1>Days</h1>")
    (state.docs_dir / "days").mkdir()
    (state.docs_dir / "days" / "one.html").write_text("one")
    (state.docs_dir.parent / "secret.json").write_text("{}")
    (state.state_dir / "secrets.json").write_text("{}")


@pytest.mark.parametrize("path", ["/rollout/feed", "/rollout/none", "/docs/index.html", "/docs/none.html"])
def test_every_route_needs_a_user(state, stranger, path):
    site(state)
    assert stranger.get(path).status_code == 401


def test_no_other_route_is_open(plugin):
    assert {route.path for route in plugin[0].create_app().routes} == {"/rollout/{surface}", "/docs/{path:path}"}


def test_the_rollout_page_before_the_first_document(state, user):
    answer = user.get("/rollout/feed")
    assert answer.status_code == 200
    assert "no deployment document yet" in answer.text


def test_an_unknown_surface_is_named(state, user):
    answer = user.get("/rollout/search")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "no surface 'search'; there are feed"


def test_the_rollout_page_shows_the_documents_canary_and_its_last_look(state, user):
    """What the controller really writes: the document, and its last look beside it."""
    state.clock = "simulated"
    store, rows = open_store(settings=state), Rows()
    first = initialise(state, "feed", SPEC, CONFIG.exploring, 0.2)
    page = user.get("/rollout/feed").text
    assert "Generation 1" in page
    assert "explore 90.0%, champion 10.0%." in page
    policy = random_policy(5, spec=SPEC)
    ref = PolicyRef(sha=policy.sha, version="2", uri=put_bundle(store, policy.sha, policy.to_files()))
    start = Intent(action="start", policy=ref, gate_verdict="pass", gate_baseline_sha=first.champion.sha)
    rollout = intents.submit(store, "feed", start)
    controller = Controller(state, "feed", SPEC, rows, CONFIG)
    controller.tick()
    assert '<strong class="running">Running</strong>, version 2' in user.get("/rollout/feed").text
    rows.play(rollout, 100, effect=0.5)
    rows.mark = DAY + DAY // 2
    controller.tick()
    page = user.get("/rollout/feed").text
    assert "50 users in the canary, 50 in control." in page
    assert "50 complete users in the smaller arm, 200 needed" in page


def test_a_document_that_cannot_be_read_is_said_on_the_page(state, user):
    first = initialise(state, "feed", SPEC, CONFIG.exploring, 0.2)
    store = open_store(settings=state)
    (key,) = store.list("deploy/feed/document/")
    store.put(key, b"not a document")
    answer = user.get("/rollout/feed")
    assert answer.status_code == 503
    assert "not a deployment document" in answer.text
    store.put(key, encode(first))
    assert user.get("/rollout/feed").status_code == 200


def test_data_docs_before_the_first_day(state, user):
    answer = user.get("/docs/index.html")
    assert answer.status_code == 200
    assert "No day has been validated yet." in answer.text
    assert user.get("/docs/days/one.html").status_code == 404


def test_data_docs_are_served_and_never_from_a_cache(state, user):
    site(state)
    assert user.get("/docs/index.html").text == "<h1>Days</h1>"
    answer = user.get("/docs/days/one.html")
    assert (answer.text, answer.headers["cache-control"]) == ("one", "no-store")


@pytest.mark.parametrize(
    "path", ["../secret.json", "days/../../secret.json", "../../secrets.json", "", ".", "days", "a\0b", "none.html"]
)
def test_a_path_cannot_leave_the_site(state, plugin, path):
    site(state)
    assert plugin[0].docs_file(state.docs_dir, path) is None


def test_an_absolute_path_cannot_leave_the_site(state, plugin):
    site(state)
    assert plugin[0].docs_file(state.docs_dir, str(state.state_dir / "secrets.json")) is None


def test_a_link_cannot_leave_the_site(state, plugin):
    site(state)
    (state.docs_dir / "link.html").symlink_to(state.state_dir / "secrets.json")
    assert plugin[0].docs_file(state.docs_dir, "link.html") is None


@pytest.mark.parametrize("path", ["%2e%2e/secret.json", "days/%2e%2e/%2e%2e/secret.json", "..%2fsecret.json", "%00"])
def test_a_disguised_path_is_not_found(state, user, path):
    site(state)
    assert user.get(f"/docs/{path}").status_code == 404


def test_the_menu(plugin, tmp_path):
    views = plugin[1]._views(Settings(state_dir=tmp_path, surfaces=("feed", "search"), mlflow_url="http://127.0.0.1:5000"))
    assert [(view["name"], view["href"]) for view in views] == [
        ("Rollout: feed", "/mtf/rollout/feed"),
        ("Rollout: search", "/mtf/rollout/search"),
        ("Data Docs", "/mtf/docs/index.html"),
        ("MLflow", "http://127.0.0.1:5000/#/models?workflowType=machine_learning"),
    ]
    assert {view["destination"] for view in views} == {"nav"}
    # MLflow refuses to be framed by another origin: its entry opens a window of its own
    assert [view.get("url_route") for view in views] == ["mtf-rollout-feed", "mtf-rollout-search", "mtf-docs", None]
