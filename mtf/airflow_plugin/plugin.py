"""The Airflow plugin (entry point `airflow.plugins`): pages under /mtf and their links in the UI's menu."""

from __future__ import annotations

from urllib.parse import urlparse

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from mtf.airflow_plugin.app import PREFIX, create_app
from mtf.registry.client import registry_page
from mtf.settings import Settings


def _views(settings: Settings) -> list[dict[str, str]]:
    """Menu entries; hrefs carry the prefix of `[api] base_url`, for Airflow behind a proxy."""
    base = urlparse(conf.get("api", "base_url", fallback="")).path.rstrip("/")
    views = [
        {"name": f"Rollout: {surface}", "href": f"{base}{PREFIX}/rollout/{surface}", "url_route": f"mtf-rollout-{surface}"}
        for surface in settings.surfaces
    ]
    views.append({"name": "Data Docs", "href": f"{base}{PREFIX}/docs/index.html", "url_route": "mtf-docs"})
    if settings.mlflow_url is not None:
        # no url_route: opens MLflow itself
        views.append({"name": "MLflow", "href": registry_page(settings.mlflow_url, *settings.surfaces)})
    return [{**view, "destination": "nav", "category": "browse"} for view in views]


class MtfPlugin(AirflowPlugin):  # type: ignore[misc]
    """Data Docs, rollout pages and MLflow in the Airflow UI."""

    name = "mtf"
    fastapi_apps = [{"app": create_app(), "url_prefix": PREFIX, "name": "mtf"}]  # noqa: RUF012 (Airflow's own form)
    external_views = _views(Settings())
