"""Is a server well? One question a server, asked over HTTP on loopback."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import datetime

from mtf.platform.state import Platform

# loopback never goes through a proxy
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TIMEOUT = 10.0  # a busy machine is slow, not ill
_COMPONENTS = {
    "airflow-api": "metadatabase",
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag_processor",
    "airflow-triggerer": "triggerer",
}


def healthy(program: str, platform: Platform, since: float = 0.0) -> bool | None:
    """True or False; None for a program without a port (its process is all that can be looked at).

    since: when the program was started, unix seconds. A component of Airflow is well by a heartbeat in its database, and
    the last one of a process that was killed counts for half a minute: only a heartbeat after `since` is the new one's.
    """
    if program in _COMPONENTS:
        body = _get(f"{platform.airflow_url}/api/v2/monitor/health")
        if body is None:
            return False
        name = _COMPONENTS[program]
        part = json.loads(body).get(name) or {}
        beat = part.get(f"latest_{name}_heartbeat")
        fresh = beat is None or datetime.fromisoformat(beat).timestamp() > since
        return part.get("status") == "healthy" and fresh
    url = {
        "s3": f"{platform.s3_endpoint}/healthz",
        "mlflow": f"{platform.mlflow_url}/health",
        "serve": f"{platform.serve_url}/healthz",
    }.get(program)
    return None if url is None else _get(url) is not None


def _get(url: str) -> bytes | None:
    try:
        with _OPENER.open(url, timeout=TIMEOUT) as answer:
            body: bytes = answer.read()
            return body
    except (urllib.error.URLError, OSError):
        return None
