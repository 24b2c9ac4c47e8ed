"""## Refresh the exploration box

Works out how far around the policy users may be explored next: the candidate's box, in force at its promotion; after a
verdict that is not a pass, the champion's next box. Runs after every verdict.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import PartitionedAssetTimetable, dag, task
from wiring import DEFAULTS, POOLED, SURFACES, asset, extras, named, step, tell


def refresh_exploration(surface: str) -> None:
    """The DAG of one surface."""
    box = asset("box", surface)

    @dag(
        **named(6, "refresh_exploration", surface),
        schedule=PartitionedAssetTimetable(assets=asset("verdict", surface)),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS,
        doc_md=__doc__,
    )
    def build() -> None:
        @task(outlets=[box])
        @step
        def refresh(*, dag_run=None, triggering_asset_events=None, outlet_events=None):
            from mtf import pipeline
            from mtf.settings import Settings

            found = pipeline.refresh_exploration(Settings(), surface, extras(triggering_asset_events))
            tell(outlet_events, box, found, dag_run, POOLED)
            return found

        refresh()

    build()


for name in SURFACES:
    refresh_exploration(name)
