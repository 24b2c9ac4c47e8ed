"""## Evaluate the candidate

Judges the new version off-policy, on users whose rows training never sees, against the policy that is deployed now. The
verdict (pass, fail or inconclusive) goes to the version's tags and the report to its run. A verdict that is not a pass is
a result, not a failure: the chain goes on, and `deploy_canary` skips.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import PartitionedAssetTimetable, dag, task
from wiring import DEFAULTS, POOLED, SURFACES, asset, extras, named, step, tell


def evaluate_policy(surface: str) -> None:
    """The DAG of one surface."""
    verdict = asset("verdict", surface)

    @dag(
        **named(5, "evaluate_policy", surface),
        schedule=PartitionedAssetTimetable(assets=asset("candidate", surface)),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS,
        doc_md=__doc__,
    )
    def build() -> None:
        @task(outlets=[verdict])
        @step
        def evaluate(*, dag_run=None, triggering_asset_events=None, outlet_events=None):
            from mtf import pipeline
            from mtf.settings import Settings

            found = pipeline.evaluate_policy(Settings(), surface, extras(triggering_asset_events))
            tell(outlet_events, verdict, found, dag_run, POOLED)
            return found

        evaluate()

    build()


for name in SURFACES:
    evaluate_policy(name)
