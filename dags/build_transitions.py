"""## Build transitions and version the dataset

Turns the day's rows into transitions (sessions, states, actions, rewards) and judges every built day by
`expectations/transitions.json` and `sessions.json`: a **critical** finding fails `build`, and nothing is published. Then commits
the pooled dataset to the dataset repository: pushed to the store, verified there, tagged. Days arrive one by one; the *dataset*
is all of them. Where the pooled content has not changed `publish` skips, and nothing downstream is asked to run.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import PartitionedAssetTimetable, dag, task
from wiring import DEFAULTS, SURFACES, asset, day_of, day_param, named, step, tell


def build_transitions(surface: str) -> None:
    """The DAG of one surface."""
    dataset = asset("dataset", surface)

    @dag(
        **named(3, "build_transitions", surface),
        schedule=PartitionedAssetTimetable(assets=asset("valid_day", surface)),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS,
        doc_md=__doc__,
        params=day_param("A sealed day that was validated"),
    )
    def wire() -> None:
        @task
        @step
        def build(*, params=None, dag_run=None):
            from mtf import pipeline
            from mtf.settings import Settings

            return pipeline.build_transitions(Settings(), surface, day_of(dag_run, params))

        @task(outlets=[dataset])
        @step
        def publish(built, *, dag_run=None, outlet_events=None):
            from mtf import pipeline
            from mtf.settings import Settings

            found = pipeline.publish_dataset(Settings(), surface, built["dt"], publisher=dag_run.run_id)
            tell(outlet_events, dataset, found, dag_run, built["dt"])
            return found

        publish(build())

    wire()


for name in SURFACES:
    build_transitions(name)
