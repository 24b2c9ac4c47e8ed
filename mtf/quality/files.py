"""Can the day be read at all? The files of a sealed day against its manifest and the contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mtf.contracts import feedback_schema, requests_schema
from mtf.fileio import sha256_file
from mtf.logs.days import Manifest, day_files
from mtf.quality.flatten import Table
from mtf.spec import FusionSpec

TABLES: tuple[Table, ...] = ("requests", "feedback")


@dataclass(frozen=True)
class FileReport:
    """paths: what the manifest names. counts: the figures that `expectations/files.json` speaks of. details: which, in words."""

    paths: dict[Table, list[Path]]
    counts: dict[str, int]
    details: dict[str, list[str]]

    @property
    def readable(self) -> bool:
        """No problem of any kind."""
        return not any(self.counts.values())


def inspect_files(logs_dir: Path, dt: str, manifest: Manifest, spec: FusionSpec) -> FileReport:
    """Compare every file of the day with the manifest's hashes and the contract's columns and types."""
    details: dict[str, list[str]] = {
        name: [] for name in ("missing_files", "changed_files", "unreadable_files", "missing_columns", "mistyped_columns")
    }
    schemas = {"requests": requests_schema(), "feedback": feedback_schema(spec.behaviours)}
    paths = {t: day_files(logs_dir, dt, t, verify=False, revision=manifest.revision) for t in TABLES}
    for table in TABLES:
        segments = [s for s in manifest.segments if s.kind == table]
        if not segments:
            details["missing_files"].append(f"no {table} file at all")
        for path, segment in zip(paths[table], segments, strict=True):
            if not path.exists():
                details["missing_files"].append(path.name)
                continue
            if sha256_file(path) != segment.sha256:
                details["changed_files"].append(path.name)
            try:
                found = _read_through(path)
            except (pa.ArrowException, OSError) as error:
                details["unreadable_files"].append(f"{path.name} ({str(error).splitlines()[0]})")
                continue
            for field in schemas[table]:
                if field.name not in found.names:
                    details["missing_columns"].append(f"{field.name} of {path.name}")
                elif not _same_kind(found.field(field.name).type, field.type):
                    kind = found.field(field.name).type
                    details["mistyped_columns"].append(f"{field.name} of {path.name} is {kind}, not {field.type}")
    return FileReport(paths, {name: len(found) for name, found in details.items()}, details)


def _read_through(path: Path) -> pa.Schema:
    """The schema, after decoding the narrowest column: a damaged footer or body shows without reading the whole file."""
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if file.metadata.num_rows and "request_id" in schema.names:
            for _ in file.iter_batches(columns=["request_id"]):
                pass
        return schema


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for what costs nothing: the width of integers and floats, large strings and lists, dictionaries."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean):
        if test(wanted):
            return bool(test(found))
    if pa.types.is_timestamp(wanted):
        return pa.types.is_timestamp(found) and found.tz is not None
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if pa.types.is_binary(wanted):
        return pa.types.is_binary(found) or pa.types.is_large_binary(found)
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return is_list and _same_kind(found.value_type, wanted.value_type)
    return bool(found == wanted)
