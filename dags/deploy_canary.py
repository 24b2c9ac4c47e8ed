"""## Deploy a canary

Points the alias `challenger` at a version that passed its gate and asks the rollout controller for a canary; then waits, at no
cost, for the outcome. The controller decides and writes the deployment document, whether or not this task is alive.

Skips where the verdict is not a pass, or where the version's data end before the champion's.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import PartitionedAssetTimetable, PokeReturnValue, dag, task
from wiring import DEFAULTS, SURFACES, asset, extras, named, step


def deploy_canary(surface: str) -> None:
    """The DAG of one surface."""

    @dag(
        **named(7, "deploy_canary", surface),
        schedule=PartitionedAssetTimetable(assets=asset("box", surface)),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        default_args=DEFAULTS,
        doc_md=__doc__,
    )
    def build() -> None:
        @task
        @step
        def start(*, triggering_asset_events=None):
            from mtf import pipeline
            from mtf.settings import Settings

            return pipeline.deploy_canary(Settings(), surface, extras(triggering_asset_events))

        @task.sensor(mode="reschedule", poke_interval=10, timeout=timedelta(days=30).total_seconds())
        @step
        def outcome(started):
            from mtf import pipeline
            from mtf.settings import Settings

            found = pipeline.rollout_outcome(Settings(), surface, started["intent"])
            return PokeReturnValue(is_done=found is not None, xcom_value=found)

        outcome(start())

    build()


for name in SURFACES:
    deploy_canary(name)
