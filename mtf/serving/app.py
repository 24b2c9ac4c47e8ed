"""The fusion server over HTTP: litestar on uvicorn, one process.

    POST /v1/rank             one request, JSON
    POST /v1/rank.arrow       a batch, Arrow IPC stream
    POST /v1/feedback         a list of impressions, JSON
    POST /v1/feedback.arrow   a batch, Arrow IPC stream
    POST /v1/clock            {"ts": ISO time}: the event clock (MTF_CLOCK=simulated only)
    GET  /v1/document         the deployment document in force
    GET  /healthz, /metrics, /schema (OpenAPI)

What was answered with 2xx is durable in the spool. More cores: start more processes of `mtf serve` on other ports behind
any balancer; each takes a spool file of its own, and readers and `seal_day` read all files of the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import OpenAPIConfig

from mtf.errors import ConflictError, InputError, MtfError
from mtf.logs.spool import open_spool
from mtf.rollout.document import encode
from mtf.serving import messages
from mtf.serving.deployment import Deployment
from mtf.serving.metrics import Metrics
from mtf.serving.service import Service
from mtf.settings import Settings
from mtf.store import open_store

LOG = logging.getLogger(__name__)
ARROW = "application/vnd.apache.arrow.stream"
POLL_S = 1.0
MAX_BODY = 64 * 1024 * 1024


def create_app(settings: Settings, surface: str, store_url: str | None = None) -> Litestar:
    """The application of one surface; the spool file is taken when it starts and let go when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        metrics = Metrics()
        simulated = settings.clock == "simulated"
        spool = open_spool(settings.spool_dir(surface), on_commit=metrics.on_commit, events_move_clock=not simulated)
        deployment = Deployment(open_store(store_url, settings), surface, settings.bundles_dir)
        service = Service(deployment, spool, metrics, simulated=simulated)
        app.state.service = service
        await service.tick()
        following = asyncio.create_task(_follow(service))
        try:
            yield
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            await asyncio.to_thread(service.close)

    return Litestar(
        route_handlers=[rank, rank_arrow, feedback, feedback_arrow, clock, document, healthz, metrics_text],
        lifespan=[lifespan],
        exception_handlers={MtfError: _refuse, HTTPException: _refuse_http, Exception: _failed},
        openapi_config=OpenAPIConfig(title=f"Fusion server: {surface}", version="1", use_handler_docstrings=True),
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )


@post("/v1/rank", status_code=200)
async def rank(data: messages.RankRequest, state: State) -> messages.RankAnswer:
    """Rank one request's candidates; the answer says what to show, in order."""
    with _timed(state, "/v1/rank"):
        return await _service(state).rank(data)


@post("/v1/rank.arrow", status_code=200, media_type=ARROW)
async def rank_arrow(body: bytes, state: State) -> bytes:
    """Rank a batch: an Arrow IPC stream in, one out (request_id, shown: indices into the candidates)."""
    with _timed(state, "/v1/rank.arrow"):
        return await _service(state).rank_arrow(body)


@post("/v1/feedback", status_code=200)
async def feedback(data: list[messages.Impression], state: State) -> messages.Accepted:
    """What users did with shown items; at least once is fine, the latest row of an item wins."""
    with _timed(state, "/v1/feedback"):
        return messages.Accepted(await _service(state).feedback(data))


@post("/v1/feedback.arrow", status_code=200)
async def feedback_arrow(body: bytes, state: State) -> messages.Accepted:
    """Feedback as an Arrow IPC stream in the contract's columns, without received_at."""
    with _timed(state, "/v1/feedback.arrow"):
        return messages.Accepted(await _service(state).feedback_arrow(body))


@post("/v1/clock", status_code=200)
async def clock(data: messages.ClockMark, state: State) -> messages.ClockMark:
    """Say that the event clock has reached `ts`, so that days before it can be sealed."""
    await _service(state).mark(messages.microseconds(data.ts))
    return data


@get("/v1/document", media_type="application/json")
async def document(state: State) -> bytes:
    """The deployment document in force."""
    return encode(_service(state).deployment.engine.document)


@get("/healthz")
async def healthz(state: State) -> Response[dict[str, Any]]:
    """200 where requests are answered, else 503; with what is in force and why a newer document is not.

    A spool that keeps nothing lets no request through: 503 until a commit succeeds; the server itself tries one
    once a second.
    """
    service = _service(state)
    engine, full = service.deployment.current, service.spool.error
    body = {
        "status": "no deployment document" if not engine else f"the spool keeps nothing: {full}" if full else "ok",
        "generation": engine.document.generation if engine else None,
        "champion": engine.document.champion.sha if engine else None,
        "clock": "simulated" if service.simulated else "real",
        "spool": {"file": service.spool.path.name, "waiting": service.spool.waiting},
        "reload_error": service.deployment.error,
    }
    return Response(body, status_code=200 if engine and not full else 503)


@get("/metrics", media_type="text/plain; version=0.0.4")
async def metrics_text(state: State) -> bytes:
    """Prometheus."""
    service = _service(state)
    engine = service.deployment.current
    service.metrics.generation.set(engine.document.generation if engine else 0)
    service.metrics.reloads.set(service.deployment.reloads)
    service.metrics.reload_failures.set(service.deployment.failures)
    service.metrics.waiting.set(service.spool.waiting)
    return service.metrics.render()


async def _follow(service: Service) -> None:
    while True:
        await asyncio.sleep(POLL_S)
        try:
            await service.tick()
        except MtfError:
            LOG.exception("the spool took no clock mark; trying again in %.0f s", POLL_S)


def _service(state: State) -> Service:
    service: Service = state.service
    return service


@contextlib.contextmanager
def _timed(state: State, route: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    _service(state).metrics.latency.labels(route).observe(time.perf_counter() - began)


def _refuse(request: Request[Any, Any, Any], error: MtfError) -> Response[dict[str, str]]:
    # whatever is neither the caller's input nor a conflict is ours, and may pass: not ready, or the spool cannot commit
    status = 400 if isinstance(error, InputError) else 409 if isinstance(error, ConflictError) else 503
    return _error(request, status, str(error))


def _refuse_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, str]]:
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        found = "; ".join(f"{e.get('key', 'body')}: {e.get('message')}" for e in error.extra)
        return _error(request, 400, f"{found}; see /schema for what is expected")
    if error.status_code == 400:
        return _error(request, 400, f"body: {error.detail}; see /schema for what is expected")
    return _error(request, error.status_code, error.detail)


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    LOG.error("a defect of ours at %s", request.url.path, exc_info=error)
    return _error(request, 500, f"{type(error).__name__}: {error}; a defect of the server, see its log")


def _error(request: Request[Any, Any, Any], status: int, message: str) -> Response[dict[str, str]]:
    route = request.url.path if status != 404 else "unknown"  # a label a made-up path would grow without bound
    _service(request.app.state).metrics.refused.labels(route, str(status)).inc()
    return Response({"error": message}, status_code=status, media_type="application/json")
