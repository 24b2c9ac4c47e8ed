"""## Validate a sealed day

Checks the day against the expectations in `expectations/` (Great Expectations) and writes Data Docs. Rows that break a rule
are set aside and counted. A **critical** finding fails the task, at once and without a retry: the chain stops, and everything
stays as it was.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import PartitionedAssetTimetable, dag, task
from wiring import DEFAULTS, SURFACES, asset, day_of, day_param, named, step, tell


def validate_logs(surface: str) -> None:
    """The DAG of one surface."""
    valid = asset("valid_day", surface)

    @dag(
        **named(2, "validate_logs", surface),
        schedule=PartitionedAssetTimetable(assets=asset("sealed_day", surface)),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        default_args=DEFAULTS,
        doc_md=__doc__,
        params=day_param("A sealed day"),
    )
    def build() -> None:
        @task(outlets=[valid])
        @step
        def validate(*, params=None, dag_run=None, outlet_events=None):
            from mtf import pipeline
            from mtf.settings import Settings

            found = pipeline.validate_logs(Settings(), surface, day_of(dag_run, params))
            tell(outlet_events, valid, {"dt": found["dt"], "status": found["status"]}, dag_run, found["dt"])
            return found

        validate()

    build()


for name in SURFACES:
    validate_logs(name)
