"""Requests a second through the fusion server: HTTP, decision, durable spool, answer.

    OMP_NUM_THREADS=1 python -m benchmarks.serving [--batch 512] [--candidates 40] [--seconds 8] [--concurrency 2]

Starts `mtf serve` pinned to one core, plays Arrow batches (and single JSON requests) from this process on another, and
prints requests a second, latency and what the server's metrics say of the spool's commits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa

from mtf.contracts import feedback_schema
from mtf.rollout.document import Arms
from mtf.rollout.start import initialise
from mtf.settings import Settings
from mtf.spec import Feature, FusionSpec, RewardHead

K = 5
SPEC = FusionSpec(
    objectives=("click", "valid", "watch", "like", "interact"),
    power_low=(0.0,) * K,
    power_high=(2.0,) * K,
    bias_low=(0.001,) * K,
    bias_high=(1.0,) * K,
    start=(0.0,) * (2 * K),
    behaviours=("watch", "click", "valid", "like", "interact"),
    reward_heads=(RewardHead(name="watch", weights={"watch": 0.01}),),
    features=(
        *(Feature(name=f"caller_{i}", source="caller") for i in range(6)),
        *(Feature(name=f"score_mean:{o}", source="scores") for o in ("click", "valid", "watch", "like", "interact")),
    ),
)
Send = Callable[[aiohttp.ClientSession], Awaitable[int]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--explore", type=float, default=0.9)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {client_core})
    print(f"server on core {server_core}, client on core {client_core}, OMP_NUM_THREADS=1, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), server_core, arguments.explore) as url:
        asyncio.run(measure(url, arguments))


async def measure(url: str, arguments: argparse.Namespace) -> None:
    """Play each kind of call for a while."""
    n, c = arguments.batch, arguments.candidates
    rng = np.random.default_rng(0)
    rank = [rank_body(rng, n, c) for _ in range(8)]
    single = json_body(rng, c)

    async def batch(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{url}/v1/rank.arrow", data=rank[rng.integers(len(rank))]) as answer:
            body = await answer.read()
            assert answer.status == 200, body
        return n

    async def one(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{url}/v1/rank", data=single) as answer:
            body = await answer.read()
            assert answer.status == 200, body
        return 1

    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/rank.arrow", data=rank[0]) as answer:
            ids = pa.ipc.open_stream(await answer.read()).read_all().column("request_id")
        impressions = feedback_body(ids)

        async def feedback(session: aiohttp.ClientSession) -> int:
            async with session.post(f"{url}/v1/feedback.arrow", data=impressions) as answer:
                body = await answer.read()
                assert answer.status == 200, body
            return n

        await play(session, f"rank.arrow, batches of {n} x {c} candidates x {K} scores", batch, arguments.concurrency, arguments)
        await play(session, f"feedback.arrow, {SPEC.n_shown} impressions a request", feedback, arguments.concurrency, arguments)
        await play(session, f"rank, JSON, {c} candidates", one, 1, arguments)
        await play(session, f"rank, JSON, {c} candidates", one, 16, arguments)
        async with session.get(f"{url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
    wanted = ("mtf_spool_commit_seconds_sum", "mtf_spool_commit_seconds_count", "mtf_spool_appends_total")
    seconds, commits, appends = (float(next(x for x in lines if x.startswith(w)).split()[-1]) for w in wanted)
    print(f"spool: {commits:.0f} commits, {1000 * seconds / commits:.2f} ms each, {appends / commits:.2f} appends a commit")


async def play(session: aiohttp.ClientSession, name: str, send: Send, concurrency: int, arguments: argparse.Namespace) -> None:
    """Send from `concurrency` loops for the time asked; print what came."""
    times: list[float] = []
    done = 0
    until = time.perf_counter() + arguments.seconds

    async def loop() -> None:
        nonlocal done
        while (began := time.perf_counter()) < until:
            sent = await send(session)
            done += sent
            times.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(concurrency)))
    rate = done / (time.perf_counter() - began)
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1000
    print(
        f"{name}, concurrency {concurrency}: {rate:,.0f} requests/s, "
        f"call p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {1000 * max(times):.0f} ms"
    )


@contextlib.contextmanager
def serving(folder: Path, core: int, explore: float) -> Iterator[str]:
    """`mtf serve` on one core, with a fresh state folder; its URL."""
    initialise(Settings(state_dir=folder), "feed", SPEC, Arms(explore=explore), 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MTF_STATE_DIR": str(folder), "MTF_CLOCK": "real", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mtf.cli", "serve", "--port", str(port)]
    with subprocess.Popen(command, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, {core})) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)


def rank_body(rng: np.random.Generator, n: int, c: int) -> bytes:
    """n requests as the server takes them."""
    return to_stream(
        {
            "user_id": pa.array([f"user-{i}" for i in rng.integers(0, 100_000, n)]),
            "given": fixed(rng.random((n, 6), dtype=np.float32)),
            "item_ids": fixed(rng.permuted(np.tile(np.arange(10 * c), (n, 1)), axis=1)[:, :c]),
            "scores": fixed(rng.random((n, c * K), dtype=np.float32)),
        }
    )


def json_body(rng: np.random.Generator, c: int) -> bytes:
    """One request as JSON."""
    items = [{"id": i, "scores": dict(zip(SPEC.objectives, rng.random(K).tolist(), strict=True))} for i in range(c)]
    return json.dumps({"user_id": "user-1", "features": {"caller_1": 0.5}, "items": items}).encode()


def feedback_body(ids: pa.ChunkedArray) -> bytes:
    """Six impressions for each request."""
    m = SPEC.n_shown
    rows = len(ids) * m
    columns = {
        "request_id": pa.array([i for i in ids.to_pylist() for _ in range(m)]),
        "item_id": pa.array(np.arange(rows)),
        "position": pa.array(np.tile(np.arange(m, dtype=np.int32), len(ids))),
        "watch_s": pa.array(np.ones(rows, np.float32)),
        "duration_s": pa.array(np.ones(rows, np.float32)),
    }
    flags = {f.name: pa.array(np.ones(rows, np.int8)) for f in feedback_schema(SPEC.behaviours) if f.type == pa.int8()}
    return to_stream(columns | flags)


def fixed(matrix: np.ndarray) -> pa.Array:
    """[n, w] as a fixed-size list column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def to_stream(columns: dict[str, pa.Array]) -> bytes:
    """Columns as an Arrow IPC stream."""
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


if __name__ == "__main__":
    main()
