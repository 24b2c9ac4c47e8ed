"""## Train a policy

Checks the newest dataset revision out, asks what it could detect at all (power), trains against the policy that is deployed
now, and registers the bundle as a model version with its lineage. Days that arrive together make one training.

Skips while a rollout runs, and where the dataset ends with a day of one: the gate needs rows explored around the champion.
The same data, settings and code return the version that exists already; **force** trains again.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import FixedKeyMapper, Param, PartitionedAssetTimetable, dag, task
from wiring import DEFAULTS, POOLED, SURFACES, asset, extras, named, step, tell

from mtf.learning.registry import ALGORITHMS


def train_policy(surface: str) -> None:
    """The DAG of one surface."""
    candidate = asset("candidate", surface)

    @dag(
        **named(4, "train_policy", surface),
        # a fixed key: an event with a key does not trigger a plain asset schedule, and days together make one run
        schedule=PartitionedAssetTimetable(assets=asset("dataset", surface), default_partition_mapper=FixedKeyMapper(POOLED)),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS | {"execution_timeout": timedelta(hours=5)},
        doc_md=__doc__,
        params={
            "algorithm": Param(
                None,
                type=["null", "string"],
                examples=list(ALGORITHMS),
                title="Algorithm",
                description="Empty: the surface's own",
            ),
            "steps": Param(None, type=["null", "integer"], minimum=1, title="Steps", description="Empty: the algorithm's own"),
            "seed": Param(None, type=["null", "integer"], minimum=0, title="Seed", description="Empty: the surface's own"),
            "force": Param(False, type="boolean", title="Force", description="Train again although the result exists"),
        },
    )
    def build() -> None:
        @task(outlets=[candidate])
        @step
        def train(*, params=None, dag_run=None, triggering_asset_events=None, outlet_events=None):
            from mtf import pipeline
            from mtf.settings import Settings

            found = pipeline.train_policy(Settings(), surface, extras(triggering_asset_events), **params)
            tell(outlet_events, candidate, found, dag_run, POOLED)
            return found

        train()

    build()


for name in SURFACES:
    train_policy(name)
