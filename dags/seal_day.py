"""## Seal a day

Closes a day of the event clock: its rows leave the spool and become Parquet files with a manifest, under a revision that never
changes. Everything else follows from here: `validate_logs`, `build_transitions`, `train_policy`, `evaluate_policy`,
`refresh_exploration`, `deploy_canary`.

On a real clock it seals yesterday every night. On a simulated clock nobody but the caller knows what day it is: trigger it
with the day as its parameter. Sealing a day again gives the same revision, or a new one where rows came late.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import CronPartitionTimetable, PartitionedAtRuntime, dag, task
from wiring import DEFAULTS, SETTINGS, SURFACES, asset, day_of, day_param, named, step, tell

# after midnight by more than the grace time that late rows get
NIGHTLY = CronPartitionTimetable("45 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d")


def seal_day(surface: str) -> None:
    """The DAG of one surface."""
    sealed = asset("sealed_day", surface)

    @dag(
        **named(1, "seal_day", surface),
        schedule=NIGHTLY if SETTINGS.clock == "real" else PartitionedAtRuntime(),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        default_args=DEFAULTS,
        doc_md=__doc__,
        params=day_param("The day (UTC) of the event clock that is over and is to be sealed"),
    )
    def build() -> None:
        @task(outlets=[sealed])
        @step
        def seal(*, params=None, dag_run=None, outlet_events=None):
            from mtf import pipeline
            from mtf.settings import Settings

            dt = day_of(dag_run, params)
            found = pipeline.seal_day(Settings(), surface, dt)
            tell(outlet_events, sealed, found, dag_run, dt)
            return found

        seal()

    build()


for name in SURFACES:
    seal_day(name)
