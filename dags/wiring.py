"""What the DAGs share: the surfaces, the assets that chain them, defaults, and how a step's answer becomes a task's state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from mtf.errors import MtfError
from mtf.pipeline import CriticalError, SkipError
from mtf.settings import Settings

SETTINGS = Settings()
SURFACES = SETTINGS.surfaces
DEFAULTS = {
    "owner": "fusion",
    "retries": 2,
    "retry_delay": timedelta(seconds=10),
    "execution_timeout": timedelta(minutes=30),
}
POOLED = "pooled"


def day_param(what: str) -> dict[str, Param]:
    """The form's field for the day that a person triggers a DAG with."""
    return {"dt": Param(None, type=["null", "string"], format="date", title="Day", description=what)}


def asset(name: str, surface: str) -> Asset:
    """An asset of a surface: `sealed_day`, `valid_day`, `dataset`, `candidate`, `verdict` or `box`."""
    return Asset(name=f"{name}__{surface}", uri=f"mtf://{surface}/{name}")


def named(number: int, name: str, surface: str) -> dict[str, Any]:
    """A DAG's id, its name in the UI, numbered so that the list is in the order of the chain, and its tags for the filter."""
    dag_id = f"{name}__{surface}"
    return {"dag_id": dag_id, "dag_display_name": f"{number} · {dag_id}", "tags": ["mtf", surface]}


def step(function: Callable[..., Any]) -> Callable[..., Any]:
    """Nothing to do: the task skips. Data that may not be used: it fails, and trying again would not help."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except SkipError as reason:
            raise AirflowSkipException(str(reason)) from None
        except CriticalError as reason:
            raise AirflowFailException(str(reason)) from None
        except MtfError as error:
            print(f"mtf: {error}")
            raise

    return wrapped


def tell(outlet_events: Any, made: Asset, extra: dict[str, Any], dag_run: Any, key: str) -> None:
    """Say what a step made, so that the next one starts. A run that a person triggered has no partition key, and an event without
    one starts nothing: it gets `key`, the day or POOLED, as a run of the chain has it."""
    if dag_run.partition_key is None:
        outlet_events[made].add_partitions(key)
    outlet_events[made].extra = extra


def extras(events: Any) -> list[dict[str, Any]]:
    """The extras of *all* triggering events; days that arrive together make one run."""
    return [dict(event.extra) for found in (events or {}).values() for event in found]


def day_of(dag_run: Any, params: Any) -> str:
    """The day `dt` of the event clock: the run's partition key, else the parameter. Never the wall clock."""
    dt = dag_run.partition_key or params.get("dt")
    if not dt:
        raise AirflowFailException("dt: trigger this DAG with the day as its parameter or its partition key (YYYY-MM-DD)")
    return str(dt)
