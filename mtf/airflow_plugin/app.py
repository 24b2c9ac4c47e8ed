"""The pages as a FastAPI application that Airflow mounts; every route asks for a logged-in user."""

from __future__ import annotations

from pathlib import Path

from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, Response

from mtf.airflow_plugin.page import empty_page, rollout_page
from mtf.errors import MtfError
from mtf.settings import Settings

PREFIX = "/mtf"


def create_app() -> FastAPI:
    """The application. Files are served by a route, for mounted static files would skip the login."""
    app = FastAPI(title="mtf pages", dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/rollout/{surface}", response_class=HTMLResponse)
    def rollout(surface: str) -> Response:
        try:
            return HTMLResponse(_rollout(surface))
        except MtfError as error:  # the page asks again by itself
            return HTMLResponse(empty_page(f"Rollout of {surface}", str(error)), 503)

    @app.get("/docs/{path:path}", response_class=Response)
    def docs(path: str) -> Response:
        found = docs_file(Settings().docs_dir, path)
        if found is None and path == "index.html":
            return HTMLResponse(empty_page("Data Docs", "No day has been validated yet."))
        if found is None:
            raise HTTPException(404, f"no page {path!r}")
        return FileResponse(found, headers={"Cache-Control": "no-store"})

    return app


def docs_file(site: Path, path: str) -> Path | None:
    """The file of the Data Docs site, or None where there is none or `path` leaves the site."""
    if "\0" in path:
        return None
    found = (site / path).resolve()
    return found if found.is_relative_to(site.resolve()) and found.is_file() else None


def _rollout(surface: str) -> str:
    from mtf.rollout.documents import read_latest
    from mtf.store import open_store

    settings = Settings()
    if surface not in settings.surfaces:
        raise HTTPException(404, f"no surface {surface!r}; there are {', '.join(settings.surfaces)}")
    store = open_store(settings=settings)
    document = read_latest(store, surface)
    if document is None:
        return empty_page(f"Rollout of {surface}", "There is no deployment document yet: `mtf up` writes the first one.")
    progress = None
    if document.rollout is not None:
        key = f"deploy/{surface}/progress/{document.rollout.id}.json"
        progress = store.get(key) if store.exists(key) else None
    return rollout_page(document, progress, settings.mlflow_url)
