"""## Reconcile the registry

People move MLflow's aliases; this turns such a move into an intent for the rollout controller, once. `challenger` asks for a
canary, `champion` promotes (where the gate passed against today's champion), `champion` back on `previous_champion` rolls back.
A refused move is moved back, and the version's tag `rollout` says why.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import dag, task
from wiring import DEFAULTS, SURFACES, named, step


def reconcile_registry(surface: str) -> None:
    """The DAG of one surface."""

    @dag(
        **named(8, "reconcile_registry", surface),
        schedule=timedelta(minutes=2),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS | {"retries": 1, "execution_timeout": timedelta(minutes=2)},
        doc_md=__doc__,
    )
    def build() -> None:
        @task
        @step
        def reconcile():
            from mtf.registry import reconcile as bring
            from mtf.settings import Settings

            return bring(Settings(), surface)

        reconcile()

    build()


for name in SURFACES:
    reconcile_registry(name)
