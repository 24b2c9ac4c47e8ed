"""A day of simulated users played against a running fusion server, over HTTP, in simulated time, faster than real.

Sessions are split over a few shards. Each shard sends the next requests of all its users as one batch; while the server
ranks it, the feedback on the batch before travels beside it. Every message is repeated, unchanged, until the server
answers: delivery is at least once, as in production.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
import msgspec
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mtf.errors import InputError, MtfError
from mtf.spec import FusionSpec
from mtf.world import draws
from mtf.world.cohort import DAY_S, Cohort, Observation
from mtf.world.rows import feedback_rows
from mtf.world.world import World, day_number

SHARDS = 4
WIDTH = 512
DUPLICATES = 0.005
LATE = 0.001
ATTEMPTS = 12
ARROW = "application/vnd.apache.arrow.stream"


@dataclass
class DayStats:
    """What a played day came to. impressions: feedback rows, once each; duplicates: rows that were sent twice;
    late: rows that were held back to the end of the day; retries: messages that had to be repeated."""

    dt: str
    users: int
    requests: int = 0
    impressions: int = 0
    duplicates: int = 0
    late: int = 0
    retries: int = 0
    seconds: float = 0.0
    requests_per_second: float = field(default=0.0)


def play_day(
    world: World,
    url: str,
    *,
    users: int,
    dt: str,
    seed: int,
    progress: bool = False,
    duplicates: float = DUPLICATES,
    late: float = LATE,
) -> DayStats:
    """Play one session each of `users` users on day `dt` against the server at `url`, then set its clock one hour past
    the day's end, so that the day can be sealed.

    duplicates, late: shares of the feedback rows that are sent twice, or only at the end of the day.
    Raises MtfError where the server refuses a message or stays away.
    """
    try:
        return asyncio.run(_play_day(world, url.rstrip("/"), users, dt, seed, progress, duplicates, late))
    except ExceptionGroup as group:
        raise _first(group) from None


async def _play_day(
    world: World, url: str, users: int, dt: str, seed: int, progress: bool, duplicates: float, late: float
) -> DayStats:
    began = time.monotonic()
    stats = DayStats(dt=dt, users=users)
    chosen = world.sample_users(users, dt, seed)
    n_shards = min(SHARDS, max(1, users // 16))
    cohorts = [world.cohort(chosen[i::n_shards], dt=dt, seed=seed, width=WIDTH) for i in range(n_shards)]
    timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=60)
    with tqdm(total=users, unit="session", desc=f"traffic {dt}", disable=not progress) as bar:
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=2 * SHARDS)) as http:
            link = _Link(http, url, stats)
            async with asyncio.TaskGroup() as group:
                for i, cohort in enumerate(cohorts):
                    defects = _Defects(world.spec, int(draws.keys(seed, day_number(dt), 4, i)[0]), duplicates, late, stats)
                    group.create_task(_play_shard(cohort, link, defects, bar))
            end = datetime.fromtimestamp((day_number(dt) + 1) * DAY_S + 3600, UTC)
            await link.post_json("/v1/clock", {"ts": end.isoformat()})
    stats.seconds = round(time.monotonic() - began, 3)
    stats.requests_per_second = round(stats.requests / max(stats.seconds, 1e-9), 1)
    return stats


def _first(group: ExceptionGroup) -> Exception:
    """The error that made the others stop."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _play_shard(cohort: Cohort, link: _Link, defects: _Defects, bar: tqdm) -> None:
    spec, sending = cohort.world.spec, None
    async with asyncio.TaskGroup() as group:
        while cohort.active:
            seen = cohort.observe()
            ranked = await link.post_table("/v1/rank.arrow", rank_rows(spec, seen))
            shown = np.asarray(ranked.column("shown").combine_chunks().flatten()).reshape(len(seen.rows), -1)
            response = cohort.respond(seen, shown)
            rows = feedback_rows(spec, ranked.column("request_id").combine_chunks(), response)
            link.stats.requests += len(seen.rows)
            link.stats.impressions += rows.num_rows
            if sending is not None:
                await sending
            sending = group.create_task(link.post_table("/v1/feedback.arrow", defects.apply(rows)))
            bar.update(int(response.left.sum()))
    held = defects.held()
    if held is not None:
        await link.post_table("/v1/feedback.arrow", held)


def rank_rows(spec: FusionSpec, seen: Observation) -> pa.Table:
    """The body of POST /v1/rank.arrow, one row a request."""
    c, k = seen.scores.shape[1:]

    def fixed(values: np.ndarray, kind: pa.DataType, width: int) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1), kind), width)

    return pa.table(
        {
            "user_id": pa.array(seen.user_ids, pa.string()),
            "ts": pa.array(seen.ts_us, pa.timestamp("us", tz="UTC")),
            "given": fixed(seen.given, pa.float32(), len(spec.given_features)),
            "item_ids": fixed(seen.item_ids, pa.int64(), c),
            "scores": fixed(seen.scores, pa.float32(), c * k),
        }
    )


class _Defects:
    """The realistic flaws of feedback: some rows are sent twice, some come only at the end of the day."""

    def __init__(self, spec: FusionSpec, seed: int, duplicates: float, late: float, stats: DayStats) -> None:
        self._rng = np.random.default_rng(seed)
        self._duplicates, self._late, self._stats = duplicates, late, stats
        self._again: pa.Table | None = None
        self._held: list[pa.Table] = []

    def apply(self, rows: pa.Table) -> pa.Table:
        """The rows to send now: without those held back, with the ones of the message before that are repeated."""
        luck = self._rng.random(rows.num_rows)
        again, held = luck < self._duplicates, luck >= 1 - self._late
        message = rows.filter(pa.array(~held)) if held.any() else rows
        if held.any():
            self._held.append(rows.filter(pa.array(held)))
            self._stats.late += int(held.sum())
        if self._again is not None:
            message = pa.concat_tables([message, self._again])
        self._again = rows.filter(pa.array(again)) if again.any() else None
        self._stats.duplicates += int(again.sum())
        return message

    def held(self) -> pa.Table | None:
        """What is left to send when the shard's last session has ended."""
        left = [*self._held, *([self._again] if self._again is not None else [])]
        return pa.concat_tables(left) if left else None


class _Link:
    """Messages to the server, each repeated with the same content until it is answered."""

    def __init__(self, http: aiohttp.ClientSession, url: str, stats: DayStats) -> None:
        self._http, self._url, self.stats = http, url, stats

    async def post_table(self, path: str, rows: pa.Table) -> pa.Table:
        """Send a table as one Arrow record batch; the table of the answer (empty where it answers JSON)."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            for batch in rows.combine_chunks().to_batches():
                writer.write_batch(batch)
        body, kind = await self._post(path, sink.getvalue().to_pybytes(), ARROW)
        if "json" in kind:
            return pa.table({})
        with pa.ipc.open_stream(body) as reader:
            return reader.read_all()

    async def post_json(self, path: str, content: dict[str, str]) -> None:
        """Send a JSON object."""
        await self._post(path, msgspec.json.encode(content), "application/json")

    async def _post(self, path: str, body: bytes, kind: str) -> tuple[bytes, str]:
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self.stats.retries += 1
                await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
            try:
                async with self._http.post(self._url + path, data=body, headers={"content-type": kind}) as answer:
                    content = await answer.read()
                    if answer.status < 300:
                        return content, answer.headers.get("content-type", "")
                    problem = f"{answer.status} {content[:300].decode(errors='replace')}"
                    if answer.status < 500 and answer.status not in (408, 425, 429):
                        raise MtfError(f"traffic: {self._url}{path} refused the message: {problem}")
            except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
                raise InputError(f"url = {self._url!r}: no address of a server; give e.g. http://127.0.0.1:8088") from None
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise MtfError(f"traffic: {self._url}{path} gave no answer in {ATTEMPTS} attempts ({problem}); is `mtf serve` running?")
