"""The pages, as a user meets them: logging in, triggering a day, the menu's entries, an alias in MLflow, Data Docs offline."""

from __future__ import annotations

import re
from urllib.parse import urlparse

import pytest

from mtf.logs.days import list_days, read_manifest
from mtf.registry import find_version
from tests.browser.conftest import DAGS, DT

pytestmark = pytest.mark.browser


def from_menu(page, entry):
    """Click an entry of the menu Browse."""
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name=entry).click()


def test_a_stranger_is_shown_the_login(stranger, settings):
    stranger.goto(settings.airflow_url)
    stranger.wait_for_selector("input[name=password]")
    stranger.fill("input[name=username]", "admin")
    stranger.fill("input[name=password]", "admin")
    stranger.click("button[type=submit]")
    stranger.get_by_text("Invalid credentials").wait_for()


@pytest.mark.parametrize("path", ["/mtf/rollout/feed", "/mtf/docs/index.html"])
def test_a_stranger_sees_no_page_of_ours(stranger, settings, path):
    assert stranger.goto(settings.airflow_url + path).status == 401
    assert "Rollout" not in stranger.content() and "Data quality" not in stranger.content()


def test_the_list_shows_exactly_the_dags_of_the_surface_in_the_order_of_the_chain(page, settings):
    page.goto(f"{settings.airflow_url}/dags")
    page.get_by_text(f"{len(DAGS)} Dags").wait_for()
    names = page.locator("a[href^='/dags/']").filter(has_text=re.compile("__")).all_inner_texts()
    assert names == [f"{i} · {dag_id}" for i, dag_id in enumerate(DAGS, start=1)]


def test_a_dag_explains_itself(page, settings):
    page.goto(f"{settings.airflow_url}/dags/seal_day__feed")
    page.get_by_role("button", name="Dag Docs").click()
    page.get_by_role("dialog").get_by_role("heading", name="Seal a day").wait_for()


def test_a_day_is_sealed_with_the_form(page, sealed, settings):
    page.goto(sealed)
    page.get_by_text("Success", exact=True).first.wait_for()
    assert list_days(settings.logs_dir("feed")) == [DT]
    assert read_manifest(settings.logs_dir("feed"), DT).rows("requests") > 60


def test_the_rollout_page_opens_from_the_menu(page, context, settings):
    page.goto(settings.airflow_url)
    from_menu(page, "Rollout: feed")
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="Rollout of feed").wait_for()
    assert "explore 90.0%, champion 10.0%." in frame.locator("body").inner_text()
    # the frame's sandbox lets no window open; the link must lead to the version all the same
    with context.expect_page() as opened:
        frame.get_by_role("link", name="version 1").first.click()
    opened.value.get_by_role("heading", name="Version 1").wait_for()
    assert opened.value.url.startswith(settings.mlflow_url)
    opened.value.close()


def test_data_docs_open_from_the_menu(page, sealed, settings):
    page.goto(settings.airflow_url)
    from_menu(page, "Data Docs")
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="Data quality").wait_for()
    frame.get_by_role("link", name=DT).click()
    frame.get_by_role("heading", name=f"feed · {DT} revision 1").wait_for()
    frame.get_by_text("Requests by hour (UTC)").wait_for()
    frame.get_by_role("link", name="requests", exact=True).click()
    frame.get_by_text("Expectation Validation Result").wait_for()


def test_mlflow_opens_from_the_menu_in_a_window_of_its_own(page, context, settings):
    page.goto(settings.airflow_url)
    with context.expect_page() as opened:
        from_menu(page, "MLflow")
    opened.value.get_by_role("heading", name="mtf-feed").wait_for()  # not its welcome page, which speaks of language models
    assert opened.value.url.startswith(settings.mlflow_url)
    opened.value.close()


def test_a_model_version_gets_an_alias_in_mlflow(page, settings):
    page.goto(f"{settings.mlflow_url}/#/models/mtf-feed")
    page.get_by_role("link", name="Version 1").click()
    page.get_by_role("heading", name="Fusion policy for feed").wait_for()
    aliases = page.get_by_test_id("descriptions-item").filter(has_text="Aliases")
    assert "challenger" not in aliases.inner_text()
    aliases.get_by_role("button").click()
    form = page.get_by_role("dialog")
    form.get_by_role("combobox").fill("challenger")
    form.get_by_role("combobox").press("Enter")
    form.get_by_role("button", name="Save").click()
    aliases.get_by_text("challenger").wait_for()
    assert find_version(settings, "feed", "challenger").version == "1"


def test_data_docs_are_readable_without_a_network(sealed, browser, settings):
    context = browser.new_context()
    asked, failed = [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("requestfailed", lambda request: failed.append(request.url))
    page = context.new_page()
    index = (settings.docs_dir / "index.html").as_uri()
    page.goto(index)
    page.get_by_role("link", name=DT).click()
    page.get_by_role("heading", name=f"feed · {DT} revision 1").wait_for()
    page.get_by_role("link", name="All days").click()
    assert page.url == index
    reached = [link.evaluate("a => a.href") for link in page.get_by_role("link").all()]
    assert len(reached) >= 9  # the day, the rules and the results of four suites
    for address in reached:
        page.goto(address)
        assert page.evaluate("getComputedStyle(document.body).fontFamily").startswith("system-ui"), address
    assert failed == []
    assert {urlparse(address).scheme for address in asked} == {"file"}
    context.close()


def test_no_page_asks_another_machine_for_anything(page, context, settings):
    """Last, for it looks at what all the tests before it asked for."""
    assert any(address.startswith(settings.airflow_url) for address in context.asked)
    elsewhere = {urlparse(address).netloc for address in context.asked if urlparse(address).scheme.startswith(("http", "ws"))}
    assert elsewhere <= {urlparse(url).netloc for url in (settings.airflow_url, settings.mlflow_url)}
