"""A connection to MLflow, and the names that a surface has there."""

from __future__ import annotations

import ipaddress
import os
from typing import Any
from urllib.parse import urlparse

from mtf.errors import InputError
from mtf.settings import Settings


def connect(settings: Settings) -> Any:
    """An MlflowClient. Raises InputError where no server is configured."""
    if settings.mlflow_url is None:
        raise InputError("mlflow_url: not set; start the platform with `mtf up`, or set MTF_MLFLOW_URL")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # a server that is away is known within seconds, not after minutes of retries
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    _bypass_proxy(settings.mlflow_url)
    import mlflow

    mlflow.set_tracking_uri(settings.mlflow_url)
    return mlflow.MlflowClient(settings.mlflow_url)


def _bypass_proxy(url: str) -> None:
    """Loopback never goes through a proxy. MLflow's client takes the shell's, and can be told so by the environment alone."""
    host = urlparse(url).hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        loopback = False
    if not loopback:
        return
    for name, other in (("no_proxy", "NO_PROXY"), ("NO_PROXY", "no_proxy")):
        # programs read the one or the other: a variable that we set must not hide what the other says
        kept = os.environ.get(name) or os.environ.get(other) or ""
        known = kept.strip() == "*" or host in (entry.strip() for entry in kept.split(","))  # `*` counts only alone
        os.environ[name] = kept if known else f"{kept},{host}".lstrip(",")


def model_name(surface: str) -> str:
    """The registered model of a surface; also the name of its experiment."""
    return f"mtf-{surface}"


def registry_page(mlflow_url: str, *surfaces: str, version: str | None = None) -> str:
    """Where a person sees the models in MLflow's UI: of one surface its own (or one version of it), of several the list.

    The UI opens with its pages for language models, which have nothing to show here, unless the address says otherwise.
    """
    model = f"/{model_name(surfaces[0])}" if len(surfaces) == 1 else ""
    place = f"{model}/versions/{version}" if version else model
    return f"{mlflow_url}/#/models{place}?workflowType=machine_learning"
