"""What runs the transitions expression: DuckDB in this process, or Spark.

An engine reads Parquet files as tables, keeps an intermediate result, and streams a result as Arrow batches. Everything
else is in the expression.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import ibis
import ibis.expr.datatypes as dt
import pyarrow as pa

from mtf.errors import InputError

if TYPE_CHECKING:
    import ibis.expr.types as ir

BATCH_ROWS = 65_536
MEMORY = "1500MB"


class Engine(Protocol):
    """See the module."""

    def read(self, name: str, files: Sequence[Path], without: Path | None) -> ir.Table:
        """The rows of Parquet files of one schema. without: a Parquet file of the places (file, file_row) to leave out."""
        ...

    def table(self, name: str) -> ir.Table:
        """What `read` or `keep` made under `name`."""
        ...

    def micros(self, ts: ir.TimestampColumn) -> ir.IntegerColumn:
        """A timestamp as int64 microseconds since 1970."""
        ...

    def keep(self, name: str, expression: ir.Table) -> ir.Table:
        """Compute `expression` once, under `name`."""
        ...

    def batches(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        """The rows of `expression`, in its order."""
        ...

    def close(self) -> None:
        """Give back memory and scratch space."""
        ...


def open_engine(name: str, scratch: Path, threads: int) -> Engine:
    """The engine `name`; it spills to `scratch`. Raises InputError on another name, or where Spark is not installed."""
    if name == "duckdb":
        return DuckDB(scratch, threads)
    if name == "spark":
        return Spark(scratch, threads)
    raise InputError(f"engine = {name!r}: use duckdb (in this process) or spark")


class DuckDB:
    """DuckDB in this process, with bounded memory: what does not fit is spilled to `scratch`."""

    def __init__(self, scratch: Path, threads: int) -> None:
        self._con = ibis.duckdb.connect(threads=threads, memory_limit=MEMORY, temp_directory=str(scratch / "duckdb"))

    def read(self, name: str, files: Sequence[Path], without: Path | None) -> ir.Table:
        self._con.raw_sql(f"CREATE TEMP VIEW {name} AS {rows_sql(files, without)}")
        return self._con.table(name)

    def table(self, name: str) -> ir.Table:
        return self._con.table(name)

    def micros(self, ts: ir.TimestampColumn) -> ir.IntegerColumn:
        return _epoch_us(ts)

    def keep(self, name: str, expression: ir.Table) -> ir.Table:
        self._con.raw_sql(f"CREATE OR REPLACE TEMP TABLE {name} AS {self._con.compile(expression)}")
        return self._con.table(name)

    def batches(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        yield from self._con.con.sql(self._con.compile(expression)).to_arrow_reader(BATCH_ROWS)

    def close(self) -> None:
        self._con.disconnect()


class Spark:
    """Spark on this machine, or the master that SPARK_MASTER names; needs the `spark` extra and Java.

    It spills to SPARK_LOCAL_DIRS or the system's temporary folder, not to `scratch`: a JVM keeps to the folder of its first
    session, and would make a deleted one again.
    """

    def __init__(self, scratch: Path, threads: int) -> None:
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise InputError("engine = 'spark': pyspark is not installed; pip install 'mtf[spark]', or use duckdb") from None
        self._scratch = scratch
        self._session: Any = (
            SparkSession.builder.appName("mtf-transitions")
            .master(os.environ.get("SPARK_MASTER", f"local[{threads}]"))
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.driver.memory", "2g")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.shuffle.partitions", "8")
            .config("spark.sql.session.timeZone", "UTC")
            .getOrCreate()
        )
        self._con = ibis.pyspark.connect(self._session)
        self._kept: dict[str, Any] = {}

    def read(self, name: str, files: Sequence[Path], without: Path | None) -> ir.Table:
        if without is not None:
            # places in a file are what DuckDB found; it writes the other rows aside for Spark to read
            clean = self._scratch / f"{name}.parquet"
            with duckdb.connect() as con:
                con.execute(f"COPY ({rows_sql(files, without)}) TO '{clean}' (FORMAT parquet, COMPRESSION zstd)")
            files = [clean]
        self._session.read.parquet(*(str(f) for f in files)).createOrReplaceTempView(name)
        return self._con.table(name)

    def table(self, name: str) -> ir.Table:
        return self._con.table(name)

    def micros(self, ts: ir.TimestampColumn) -> ir.IntegerColumn:
        return _unix_micros(ts)

    def keep(self, name: str, expression: ir.Table) -> ir.Table:
        if name in self._kept:
            self._kept[name].unpersist()
        self._kept[name] = self._session.sql(self._con.compile(expression)).cache()
        self._kept[name].createOrReplaceTempView(name)
        return self._con.table(name)

    def batches(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        yield from self._session.sql(self._con.compile(expression)).toArrow().to_batches(BATCH_ROWS)

    def close(self) -> None:
        self._session.stop()


def rows_sql(files: Sequence[Path], without: Path | None) -> str:
    """SQL (DuckDB's): the files' rows, but for those at the places that the Parquet file `without` lists."""
    names = ", ".join(f"'{_quoted(f)}'" for f in files)
    if without is None:
        return f"SELECT * FROM read_parquet([{names}], hive_partitioning = false)"
    return (
        "SELECT * EXCLUDE (filename, file_row_number) FROM "
        f"read_parquet([{names}], filename = true, file_row_number = true, hive_partitioning = false) f "
        f"ANTI JOIN '{_quoted(without)}' w ON f.filename = w.file AND f.file_row_number = w.file_row"
    )


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


@ibis.udf.scalar.builtin(name="epoch_us", signature=((dt.Timestamp(timezone="UTC", scale=6),), dt.int64))
def _epoch_us(ts):  # type: ignore[no-untyped-def]
    """Microseconds since 1970 in DuckDB."""


@ibis.udf.scalar.builtin(name="unix_micros", signature=((dt.Timestamp(timezone="UTC", scale=6),), dt.int64))
def _unix_micros(ts):  # type: ignore[no-untyped-def]
    """Microseconds since 1970 in Spark."""
