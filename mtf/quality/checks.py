"""Great Expectations: the suites of `expectations/` against the day's frames, and the pages of its Data Docs.

Row-level suites see every row of the flat columns (a fixed sample of very large days), table-level ones a frame of one
row of figures. Verdicts are not taken from Great Expectations' overall success, which a warning also turns false.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mtf.errors import InputError
from mtf.logs.days import day_bounds, to_datetime
from mtf.quality.history import parameters_of, threshold
from mtf.quality.rules import LEVELS, Rule, read_suite, suite_path
from mtf.quality.verdict import Check

if TYPE_CHECKING:
    import pandas as pd

# unexpected values that a page shows
EXAMPLES = 5


@dataclass(frozen=True)
class Judged:
    """What is judged: a revision of a day. history: the figures of earlier days, oldest first; known: what figures there are.

    absent: {column: why} of figures that were not measured.
    """

    surface: str
    dt: str
    revision: int
    history: Sequence[Mapping[str, float | None]]
    known: Sequence[str]
    absent: Mapping[str, str]

    @property
    def run_name(self) -> str:
        """Names a run in the Data Docs and in their paths."""
        return f"{self.surface}_{self.dt}_r{self.revision}"


def run_suites(
    frames: Mapping[str, pd.DataFrame], expectations_dir: Path, judged: Judged, pages_dir: Path
) -> tuple[list[Check], list[str]]:
    """Validate {suite: frame} and write one Data Docs page a suite into the new folder `pages_dir`. Returns (checks, skipped).

    Expectations about what was not measured, or whose threshold the history cannot give yet, are left out and listed.
    Raises InputError where an expectation cannot be evaluated at all: an unknown type, argument or column.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier

    context = _context(pages_dir)
    run_id = RunIdentifier(run_name=judged.run_name, run_time=to_datetime(day_bounds(judged.dt)[0]))
    source = context.data_sources.add_pandas(judged.surface)
    checks: list[Check] = []
    skipped: list[str] = []
    for name, frame in frames.items():
        where = str(suite_path(expectations_dir, name))
        wanted, thresholds, left_out = _evaluable(name, frame, expectations_dir, judged)
        skipped += left_out
        if not wanted:
            continue
        suite = _suite(name, wanted, where)
        context.suites.add(suite)
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(judged.dt)
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            result_format={"result_format": "BASIC", "partial_unexpected_count": EXAMPLES},
        )
        result = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": frame}, expectation_parameters=thresholds, run_id=run_id
        )
        (validation,) = result.run_results.values()
        checks += [_check(name, r, where) for r in validation.results]
    context.build_data_docs()  # once: an action would build the site anew after each suite
    return checks, skipped


def _evaluable(
    name: str, frame: pd.DataFrame, expectations_dir: Path, judged: Judged
) -> tuple[list[dict[str, Any]], dict[str, float], list[str]]:
    """A suite's expectations that can be evaluated today, their thresholds, and what is left out with the reason."""
    wanted: list[dict[str, Any]] = []
    thresholds: dict[str, float] = {}
    skipped: list[str] = []
    for i, expectation in enumerate(read_suite(expectations_dir, name)):
        where, rule = f"{suite_path(expectations_dir, name)}, expectation {i}", expectation["meta"]["rule"]
        column = expectation["kwargs"].get("column")
        if column in judged.absent:
            skipped.append(f"{name}.{rule}: {judged.absent[column]}")
            continue
        if column is not None and column not in frame.columns:
            there = ", ".join(sorted({*frame.columns, *judged.absent}))
            raise InputError(f"{suite_path(expectations_dir, name)}: column = {column!r}; there are {there}")
        parameters = parameters_of(expectation, where)
        values = {key: threshold(p, judged.history, judged.known, where) for key, p in parameters.items()}
        reason = next((v for v in values.values() if isinstance(v, str)), None)
        if reason is not None:
            skipped.append(f"{name}.{rule}: {reason}")
            continue
        for key, value in values.items():
            if thresholds.setdefault(key, float(value)) != value:
                raise InputError(f"{where}: parameter {key!r} is defined twice, differently; give each its own name")
        wanted.append(expectation)
    return wanted, thresholds, skipped


def _suite(name: str, wanted: list[dict[str, Any]], where: str) -> Any:
    import great_expectations as gx

    try:
        return gx.ExpectationSuite(
            name=name, expectations=[copy.deepcopy(e) | {"notes": f"{e['severity']}: {e['meta']['reason']}"} for e in wanted]
        )
    except Exception as error:  # pydantic's, marshmallow's and GX's own, according to what is wrong
        raise InputError(f"{where}: Great Expectations does not take it: {error}") from error


def _check(suite: str, result: Any, where: str) -> Check:
    config = result.expectation_config
    raised = result.exception_info
    if raised.get("raised_exception", False) or any(isinstance(v, dict) and v["raised_exception"] for v in raised.values()):
        messages = [raised.get("exception_message"), *(v["exception_message"] for v in raised.values() if isinstance(v, dict))]
        raise InputError(f"{where}: rule {config.meta['rule']}: {next(m for m in messages if m)}")
    found, level = result.result, LEVELS[suite]
    observed = found.get("observed_value")
    return Check(
        suite=suite,
        rule=config.meta["rule"],
        level=level,
        severity=str(config.severity.value),  # type: ignore[arg-type]
        success=bool(result.success),
        reason=config.meta["reason"],
        limit=limit(config.type, config.kwargs),
        bad=found.get("unexpected_count") if level == "row" else None,
        of=found["element_count"] - found["missing_count"] if level == "row" else None,
        observed=float(observed) if level == "table" and observed is not None else None,
    )


def over_all_rows(check: Check, rules: Sequence[Rule], bad: Mapping[str, tuple[int, int]]) -> Check:
    """The check of a row rule with {rule: (bad, of)} over every row, where the page may have seen some of them."""
    broken, of = bad[check.rule]
    mostly = next(r.mostly for r in rules if r.name == check.rule)
    return msgspec.structs.replace(check, bad=broken, of=of, success=of == 0 or (of - broken) / of >= mostly)


def limit(kind: str, kwargs: Mapping[str, Any]) -> str:
    """An expectation's bounds in words."""
    column = kwargs.get("column", "rows")
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    tail = f", in {kwargs['mostly']:.6g} of the rows" if kwargs.get("mostly", 1) != 1 else ""
    if "value_set" in kwargs:
        verb = "is not" if "not_be_in_set" in kind else "is"
        values = [str(value).lower() if isinstance(value, bool) else str(value) for value in kwargs["value_set"]]
        return f"{column} {verb} {' or '.join(values)}{tail}"
    if "regex" in kwargs:
        return f"{column} matches {kwargs['regex']}{tail}"
    if low is not None and high is not None:
        return f"{column} {low:g} to {high:g}{tail}"
    if low is not None:
        return f"{column} {'>' if kwargs.get('strict_min') else '≥'} {low:g}{tail}"
    if high is not None:
        return f"{column} {'<' if kwargs.get('strict_max') else '≤'} {high:g}{tail}"
    return f"{column}: {kind.removeprefix('expect_').replace('_', ' ')}{tail}"


def _context(pages_dir: Path) -> Any:
    """An ephemeral context: nothing on disk but the pages. A file context would rewrite its own configuration."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, ProgressBarsConfig

    memory = {"class_name": "InMemoryStoreBackend"}
    classes = {
        "expectations_store": "ExpectationsStore",
        "validation_results_store": "ValidationResultsStore",
        "checkpoint_store": "CheckpointStore",
        "validation_definition_store": "ValidationDefinitionStore",
    }
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(pages_dir.resolve())},
    }
    config = DataContextConfig(
        config_version=4.0,
        stores={name: {"class_name": kind, "store_backend": memory} for name, kind in classes.items()},
        expectations_store_name="expectations_store",
        validation_results_store_name="validation_results_store",
        checkpoint_store_name="checkpoint_store",
        data_docs_sites={"site": site},
        analytics_enabled=False,
        data_context_id="00000000-0000-4000-8000-000000000001",
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)
