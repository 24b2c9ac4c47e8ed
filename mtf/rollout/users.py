"""From log rows to one row a user: the canary's sample. The controller feeds it from the spool, `mtf verify` from sealed days."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtf.rollout.statistics import Comparison, DecisionRules, Users, compare
from mtf.spec import FusionSpec

WINDOW_S = 7200.0
"""Seconds from enrolment after which a session is cut: who never pauses must not keep everybody behind him waiting."""


class Sample:
    """The requests and feedback of one rollout's canary and control arms.

    A user's window is his first session after enrolment, its first two hours at most. A watch time that is no number or below
    0 counts as 0, as no other row can tell what it was.
    """

    def __init__(self, spec: FusionSpec, rollout_id: str) -> None:
        self.spec = spec
        self.rollout_id = rollout_id
        self._con = duckdb.connect(":memory:")
        self._con.execute("set threads = 1")
        self._unmatched: pa.Table | None = None
        self._con.execute(
            "create table requests "
            "(request_id varchar, user_id varchar, arm varchar, ts bigint, received_at bigint, state float[])"
        )
        behaviours = ", ".join(f'"{b}" double' for b in spec.behaviours)
        self._con.execute(f"create table feedback (request_id varchar, item_id bigint, received_at bigint, {behaviours})")

    def add(self, requests: list[pa.Table], feedback: list[pa.Table]) -> None:
        """Take in new rows; those of other arms and rollouts are left out.

        Files of several servers are read one after another: feedback may come before its request, and waits for the next call.
        """
        # all of them in one statement a kind: what answers which request is looked up once, not once a batch
        values = ", ".join('watch_s as "watch"' if b == "watch" else f'"{b}"' for b in self.spec.behaviours)
        if requests:
            columns = ["request_id", "user_id", "arm", "ts", "received_at", "state", "rollout_id"]
            self._con.register("incoming", pa.concat_tables([rows.select(columns) for rows in requests]))
            self._con.execute(
                "insert into requests select request_id, user_id, arm, epoch_us(ts), epoch_us(received_at), state "
                "from incoming where rollout_id = ? and arm in ('canary', 'control')",
                [self.rollout_id],
            )
            self._con.unregister("incoming")
        waiting = [self._unmatched] if self._unmatched is not None else []
        if feedback or waiting:
            self._con.register("incoming", pa.concat_tables([*feedback, *waiting]))
            self._con.execute(
                f"insert into feedback select request_id, item_id, epoch_us(received_at), {values} from incoming "
                "where request_id in (select request_id from requests)"
            )
            self._con.unregister("incoming")
        self._unmatched = None
        if feedback:
            self._con.register("incoming", pa.concat_tables(feedback))
            self._unmatched = (
                self._con.sql("select * from incoming where request_id not in (select request_id from requests)")
                .to_arrow_table()
                .cast(feedback[0].schema)
            )
            self._con.unregister("incoming")

    def compare(self, rules: DecisionRules, *, watermark_us: int, received_until_us: int | None = None) -> Comparison:
        """One look at the users whose window was complete at `watermark_us`, from rows received by `received_until_us`."""
        if received_until_us is None:
            received_until_us = self._received_until()
        users = self._users(watermark_us, received_until_us)
        counts = dict(
            self._con.execute(
                "select arm, count(distinct user_id) from requests where received_at <= ? group by arm", [received_until_us]
            ).fetchall()
        )
        enrolled = (int(counts.get("canary", 0)), int(counts.get("control", 0)))
        return compare(users, enrolled, rules, watermark_us=watermark_us, received_until_us=received_until_us)

    def _received_until(self) -> int:
        latest = self._con.execute(
            "select greatest((select max(received_at) from requests), (select max(received_at) from feedback))"
        ).fetchall()[0][0]
        return int(latest or 0)

    def _users(self, watermark_us: int, received_until_us: int) -> Users:
        gap_us = int(self.spec.session_gap_s * 1e6)
        sums = ", ".join(f"sum({self._value(b)}) as {_quoted(b)}" for b in self.spec.behaviours)
        totals = ", ".join(f"coalesce(sum(f.{_quoted(b)}), 0) as {_quoted(b)}" for b in self.spec.behaviours)
        # a user who had been open before the rollout enters with the rest of that session: both arms alike
        table = self._con.sql(
            f"""
            with timed as (
                select *, lag(ts) over (partition by user_id order by ts, request_id) as before from requests
                where received_at <= $received
            ), numbered as (
                select *, sum(case when before is null or ts - before > $gap then 1 else 0 end)
                    over (partition by user_id order by ts, request_id) as session from timed
            ), opened as (
                select *, min(ts) over (partition by user_id) as enrolled from numbered
            ), latest as (
                select * from feedback where received_at <= $received
                qualify row_number() over (partition by request_id, item_id order by received_at desc) = 1
            ), f as (select request_id, {sums} from latest group by request_id),
            windows as (
                select user_id, min(arm) as arm, min(ts) as enrolled, max(ts) as last, arg_min(state, ts) as state, {totals}
                from opened left join f using (request_id) where session = 1 and ts <= enrolled + $window group by user_id
            )
            select *, last + $gap < $watermark as complete from windows order by enrolled, user_id
            """,
            params={
                "received": received_until_us,
                "gap": gap_us,
                "watermark": watermark_us,
                "window": int(WINDOW_S * 1e6),
            },
        ).to_arrow_table()
        complete = table.column("complete").to_numpy(zero_copy_only=False).astype(bool)
        # in the order of enrolment, up to the first open window: who ends early must not enter early
        n = len(complete) if complete.all() else int(np.argmin(complete))
        table = table.slice(0, n)
        values = {b: table.column(b).to_numpy(zero_copy_only=False) for b in self.spec.behaviours}
        weights: dict[str, float] = {}
        for head in self.spec.reward_heads:
            for behaviour, weight in head.weights.items():
                weights[behaviour] = weights.get(behaviour, 0.0) + weight
        reward = np.zeros(n) + sum(weight * values[b] for b, weight in weights.items())
        states = pc.list_flatten(table.column("state")).to_numpy().astype(np.float64)
        return Users(
            canary=table.column("arm").to_numpy(zero_copy_only=False) == "canary",
            totals={"reward": reward, **({"valid": values["valid"]} if "valid" in values else {}), "duration": values["watch"]},
            covariates=states.reshape(n, -1) if n else np.empty((0, 0)),
        )

    def _value(self, behaviour: str) -> str:
        if behaviour != "watch":
            return _quoted(behaviour)
        return f"case when isfinite(watch) then least(greatest(watch, 0), {self.spec.watch_cap_s}) else 0 end"


def _quoted(name: str) -> str:
    return f'"{name}"'
