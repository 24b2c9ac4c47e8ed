"""Sources of a column map as DuckDB expressions over a company's table."""

from __future__ import annotations

from collections.abc import Mapping

from mtf.errors import InputError
from mtf.logs.column_map import US_A_UNIT, Source


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """A value in SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def text(source: Source, table: str) -> str:
    """VARCHAR; null where missing."""
    if source.column is None:
        return literal(str(source.value))
    return _without(f"CAST({table}.{quoted(source.column)} AS VARCHAR)", [str(m) for m in source.missing])


def number(source: Source, table: str) -> str:
    """DOUBLE; null where missing, and where `values` does not know the text. What is no number is an error when it is read."""
    if source.any_of:
        parts = ", ".join(f"coalesce(CAST({table}.{quoted(c)} AS DOUBLE), 0)" for c in source.any_of)
        return f"CAST(greatest({parts}) > 0 AS DOUBLE)"
    if source.column is None:
        return f"CAST({literal(source.value)} AS DOUBLE)"
    column = f"{table}.{quoted(source.column)}"
    if source.values:
        cases = " ".join(f"WHEN {literal(k)} THEN {float(v)!r}" for k, v in source.values.items())
        sql = f"CAST(CASE CAST({column} AS VARCHAR) {cases} END AS DOUBLE)"
    else:
        sql = _without(f"CAST({column} AS DOUBLE)", [float(m) for m in source.missing])
    if source.scale != 1:
        sql = f"({sql} * {source.scale!r})"
    return f"CAST({sql} > {source.above!r} AS DOUBLE)" if source.above is not None else sql


def microseconds(source: Source, table: str, types: Mapping[str, str], where: str) -> str:
    """BIGINT: microseconds since 1970. types: the table's columns. Raises InputError where the column's type leaves it open."""
    if source.column is None:
        raise InputError(f"{where}: is a time; name its column")
    column, kind = f"{table}.{quoted(source.column)}", types[source.column]
    if kind == "TIMESTAMP WITH TIME ZONE":
        return f"epoch_us({column})"
    if kind.startswith("TIMESTAMP"):
        if source.zone is None:
            raise InputError(f'{where}: column {source.column!r} has times without a zone; give "zone", e.g. "UTC"')
        return f"epoch_us(timezone({literal(source.zone)}, CAST({column} AS TIMESTAMP)))"
    if kind in ("VARCHAR", "DATE", "BOOLEAN", "BLOB") or source.unit is None:
        raise InputError(
            f'{where}: column {source.column!r} is {kind}; give a timestamp, or a number with its "unit": s, ms, us, ns'
        )
    if source.unit in ("us", "ns") and "INT" in kind:
        return f"CAST({column} AS BIGINT)" if source.unit == "us" else f"CAST({column} AS BIGINT) // 1000"
    return f"CAST(round(CAST({column} AS DOUBLE) * {US_A_UNIT[source.unit]!r}) AS BIGINT)"


def item(source: Source, table: str, types: Mapping[str, str]) -> str:
    """BIGINT: the item's id; of texts the first 60 bits of their md5."""
    assert source.column is not None
    column, kind = f"{table}.{quoted(source.column)}", types[source.column]
    if kind.endswith("[]"):
        return f"list_transform({column}, lambda x: {_item('x', kind)})"
    return _item(column, kind)


def floats(source: Source, table: str) -> str:
    """FLOAT[]."""
    assert source.column is not None
    return f"CAST({table}.{quoted(source.column)} AS FLOAT[])"


def uuid7_sql(ts_us: str, key: str) -> str:
    """The UUIDv7 of a time and a key: the same two give the same id, so that importing again changes nothing."""
    ms, h = f"format('{{:012x}}', CAST({ts_us} // 1000 AS BIGINT))", f"md5({key})"
    variant = f"substr('89ab', 1 + (strpos('0123456789abcdef', substr({h}, 4, 1)) - 1) % 4, 1)"
    return (
        f"substr({ms}, 1, 8) || '-' || substr({ms}, 9, 4) || '-7' || substr({h}, 1, 3) || '-' || {variant} || substr({h}, 5, 3) "
        f"|| '-' || substr({h}, 8, 12)"
    )


def _item(column: str, kind: str) -> str:
    if "INT" in kind:
        return f"CAST({column} AS BIGINT)"
    return f"CAST('0x' || substr(md5(CAST({column} AS VARCHAR)), 1, 15) AS BIGINT)"


def _without(sql: str, missing: list[str] | list[float]) -> str:
    return f"CASE WHEN {sql} NOT IN ({', '.join(map(literal, missing))}) THEN {sql} END" if missing else sql
