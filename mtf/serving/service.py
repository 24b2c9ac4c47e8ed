"""The fusion service without HTTP: decide, make durable, then answer.

Everything from the server's time stamp to the spool's queue happens in one thread, the lane, so that rows become
visible in the order of `received_at`: a reader that has seen a row of time t has seen every earlier one. The event loop
stays free for HTTP; commits run in the spool's own thread, and share an fsync while they wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtf.errors import ConflictError, InputError
from mtf.logs.spool import Spool
from mtf.serving import messages
from mtf.serving.deployment import Deployment
from mtf.serving.engine import Decisions, Engine, RankBatch
from mtf.serving.metrics import Metrics

T = TypeVar("T")
MARK_EVERY_US = 30_000_000


class Service:
    """One a process. simulated: callers keep the clock (MTF_CLOCK=simulated)."""

    def __init__(self, deployment: Deployment, spool: Spool, metrics: Metrics, *, simulated: bool) -> None:
        self.deployment, self.spool, self.metrics, self.simulated = deployment, spool, metrics, simulated
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="lane")
        self._rng = np.random.default_rng()  # entropy of the system: ids and exploration must not repeat after a restart
        self._last_us = 0
        self._marked_us = 0

    async def rank(self, request: messages.RankRequest) -> messages.RankAnswer:
        """One request. Raises InputError, NotReadyError."""

        def decode(engine: Engine, now_us: int) -> RankBatch:
            return messages.rank_batch(engine.spec, request, simulated=self.simulated, now_us=now_us)

        return await self._rank(decode, messages.rank_answer)

    async def rank_arrow(self, body: bytes) -> bytes:
        """A batch of requests. Raises InputError, NotReadyError."""

        def decode(engine: Engine, now_us: int) -> RankBatch:
            return messages.rank_batch_arrow(engine.spec, body, simulated=self.simulated, now_us=now_us)

        return await self._rank(decode, messages.rank_answer_arrow)

    async def feedback(self, events: Sequence[messages.Impression]) -> int:
        """Rows of feedback; how many are durable. Raises InputError, NotReadyError."""

        def decode(engine: Engine, now_us: int) -> pa.Table:
            return messages.feedback_table(engine.spec, events, simulated=self.simulated, now_us=now_us)

        return await self._feedback(decode)

    async def feedback_arrow(self, body: bytes) -> int:
        """A batch of feedback; how many rows are durable. Raises InputError, NotReadyError."""

        def decode(engine: Engine, now_us: int) -> pa.Table:
            return messages.feedback_table_arrow(engine.spec, body, simulated=self.simulated, now_us=now_us)

        return await self._feedback(decode)

    async def mark(self, ts_us: int) -> None:
        """The event clock has reached `ts_us`. Raises ConflictError where the server keeps its own clock."""
        if not self.simulated:
            raise ConflictError("clock: this server keeps its own clock; only a server with MTF_CLOCK=simulated is told the time")
        await asyncio.to_thread(self.spool.mark, ts_us)

    async def tick(self) -> None:
        """Follow the deployment document; in real time, tell the spool how late it is, so that quiet days can be sealed.

        Where the spool's last commit failed, try one that changes nothing.
        """
        await asyncio.to_thread(self.deployment.refresh)
        if self.spool.error is not None:
            await asyncio.to_thread(self.spool.mark, 0)
        now_us = time.time_ns() // 1000
        if not self.simulated and now_us - self._marked_us > MARK_EVERY_US:
            await asyncio.to_thread(self.spool.mark, now_us)
            self._marked_us = now_us

    def close(self) -> None:
        """Finish what was begun and commit it."""
        self._lane.shutdown(wait=True)
        self.spool.close()

    async def _rank(self, decode: Callable[[Engine, int], RankBatch], answer: Callable[[Decisions], T]) -> T:
        def work() -> tuple[T, pa.Table, Future[None]]:
            began = time.perf_counter_ns()
            engine, now_us = self.deployment.engine, self._now_us()
            batch = decode(engine, now_us)
            _distinct(batch)
            decisions = engine.decide(batch, self._rng, now_us)
            share_us = (time.perf_counter_ns() - began) // 1000 // len(batch.user_ids)
            rows = _with_latency(decisions.rows, min(share_us, 2**31 - 1))
            return answer(decisions), rows, self.spool.submit(rows)

        answered, rows, durable = await self._in_lane(work)
        await asyncio.wrap_future(durable)
        self._count(rows)
        return answered

    async def _feedback(self, decode: Callable[[Engine, int], pa.Table]) -> int:
        def work() -> tuple[int, Future[None]]:
            rows = decode(self.deployment.engine, self._now_us())
            self._last_us += rows.num_rows  # each row has a moment of its own
            return rows.num_rows, self.spool.submit(feedback=rows)

        n, durable = await self._in_lane(work)
        await asyncio.wrap_future(durable)
        self.metrics.feedback.inc(n)
        return n

    async def _in_lane(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._lane, work)

    def _now_us(self) -> int:
        """The server's clock, never twice the same."""
        self._last_us = max(time.time_ns() // 1000, self._last_us + 1)
        return self._last_us

    def _count(self, rows: pa.Table) -> None:
        for name, counter in (("arm", self.metrics.requests), ("fallback", self.metrics.fallbacks)):
            for found in pc.value_counts(rows.column(name).drop_null()).to_pylist():
                counter.labels(found["values"]).inc(found["counts"])


def _distinct(batch: RankBatch) -> None:
    """Feedback is known by (request_id, item_id), so what is shown must not hold an item twice. All candidates are looked at, for
    what is shown depends on the action drawn: to refuse by that would leave others than were drawn in the log."""
    items = batch.item_ids
    if batch.n_candidates is not None:
        place = np.arange(items.shape[1])
        items = np.where(place < np.asarray(batch.n_candidates)[:, None], items, np.iinfo(np.int64).min + place)
    ordered = np.sort(items, axis=1)
    row, column = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
    if len(row):
        raise InputError(f"items: row {row[0]} has the item {ordered[row[0], column[0]]} twice; send each candidate once")


def _with_latency(rows: pa.Table, latency_us: int) -> pa.Table:
    place = rows.schema.get_field_index("latency_us")
    return rows.set_column(place, rows.schema.field(place), pa.array(np.full(rows.num_rows, latency_us, np.int32)))
