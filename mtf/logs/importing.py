"""Other people's logs: a company's exposure and feedback files become sealed days of the contract, by a column map.

DuckDB reads the files, forms requests and their lists, and keeps what it makes on disk; a day at a time is then written by
`write_day`, as traffic's days are. Importing the same files again changes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf.errors import InputError
from mtf.logs import column_sql as sql
from mtf.logs.column_map import ColumnMap, Columns, raw_targets, read_map, score_targets, source
from mtf.logs.days import Manifest, write_day
from mtf.logs.import_rows import feedback_table, requests_table
from mtf.spec import FusionSpec

if TYPE_CHECKING:
    import duckdb

MAPS = Path(__file__).parent / "maps"
MEMORY_LIMIT = "1500MB"
_UUID7 = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"


@dataclass
class Imported:
    """What an import did, or would do.

    read: rows of each section's files. dropped: rows that went no further, by reason. filled: targets that nothing is mapped
    to, with what stands there. unused: columns that no target reads. days: {dt: (requests, feedback rows)}.
    """

    read: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)
    unused: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    days: dict[str, tuple[int, int]] = field(default_factory=dict)
    users: int = 0
    explored: int = 0
    with_candidates: int = 0
    manifests: list[Manifest] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Requests in all."""
        return sum(n for n, _ in self.days.values())

    @property
    def feedback(self) -> int:
        """Feedback rows in all."""
        return sum(n for _, n in self.days.values())


def map_of(log_format: str, map_path: Path | None) -> Path:
    """The map to use: the given one, or the format's own. Raises InputError where a format has none."""
    if map_path is not None:
        return Path(map_path)
    if log_format == "kuairand":
        return MAPS / "kuairand.json"
    raise InputError("map: --format parquet knows no columns by itself; give --map FILE (docs/import.md shows one)")


def import_logs(folder: Path, map_path: Path, out_dir: Path | None, *, threads: int = 2) -> Imported:
    """Import the files of `folder` by the map at `map_path` into sealed days in `out_dir`; None writes nothing.

    A day that holds the same rows already stays as it is, other rows make a new revision. Raises InputError naming the file,
    column or value that cannot be used.
    """
    import duckdb

    column_map, spec = read_map(map_path)
    with tempfile.TemporaryDirectory(dir=_scratch(out_dir), prefix=".import.") as scratch:
        settings: dict[str, Any] = {"threads": threads, "memory_limit": MEMORY_LIMIT, "temp_directory": scratch}
        with duckdb.connect(str(Path(scratch) / "import.duckdb"), config=settings) as con:
            con.execute("SET TimeZone = 'UTC'")
            try:
                return _Import(con, Path(folder), column_map, spec).run(out_dir)
            except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.BinderException) as error:
                raise InputError(f"{folder}: a column's values are not what {map_path} says: {_first_line(error)}") from error


class _Import:
    def __init__(self, con: duckdb.DuckDBPyConnection, folder: Path, column_map: ColumnMap, spec: FusionSpec) -> None:
        self.con, self.folder, self.map, self.spec = con, folder, column_map, spec
        self.found = Imported(notes=column_map.notes)
        self.types: dict[str, dict[str, str]] = {}
        # state columns that nothing is mapped to and that the candidates' scores give
        by_scores = "cand_scores" in column_map.exposures.columns
        features = enumerate(spec.features) if by_scores else ()
        self.computed = [i for i, f in features if f.source == "scores" and f"state:{f.name}" not in column_map.exposures.columns]

    def run(self, out_dir: Path | None) -> Imported:
        self._open("exposures", self.map.exposures.files, self.map.exposures.columns, self.map.exposures.where)
        if self.map.feedback is not None:
            self._open("feedback", self.map.feedback.files, self.map.feedback.columns, self.map.feedback.where)
        if self.map.users is not None:
            self._open("users", self.map.users.files, self.map.users.columns, {}, key=self.map.users.key)
        self._exposures()
        if self.map.exposures.rows == "impressions":
            self._group_impressions()
        else:
            self._requests()
        self._identify()
        self._feedback()
        self._count()
        if out_dir is not None:
            for dt in self.found.days:
                self.found.manifests.append(self._write(dt, out_dir))
        return self.found

    # --- reading ---

    def _open(self, name: str, files: str, columns: Columns, where: Mapping[str, list[Any]], key: str | None = None) -> None:
        """The view `<name>_raw` over a section's files; raises InputError where a file or a column is missing."""
        import duckdb

        paths = sorted(self.folder.glob(files))
        if not paths:
            raise InputError(f"{name}.files: {self.folder} holds no {files}")
        names = ", ".join(sql.literal(str(p)) for p in paths)
        try:
            self.con.execute(
                f"CREATE VIEW {name}_raw AS SELECT * FROM read_parquet([{names}], union_by_name = true, filename = 'mtf_file', "
                "file_row_number = true, hive_partitioning = false)"
            )
            described = self.con.execute(f"DESCRIBE {name}_raw").fetchall()
        except duckdb.Error as error:
            raise InputError(f"{name}.files: {files} in {self.folder} is not readable Parquet: {_first_line(error)}") from error
        self.types[name] = {c: kind for c, kind, *_ in described if c not in ("mtf_file", "file_row_number")}
        wanted = {c for value in columns.values() for c in source(value).columns} | set(where) | ({key} if key else set())
        for column in sorted(wanted - set(self.types[name])):
            raise InputError(f"{name}.columns: {files} has no column {column!r}; it has {', '.join(self.types[name])}")
        self.found.unused[name] = sorted(set(self.types[name]) - wanted)
        self.found.read[name] = self._one(f"SELECT count(*) FROM {name}_raw")
        self._drop(name, "left out by `where`", f"NOT ({_kept(where)})", f"{name}_raw")

    def _exposures(self) -> None:
        """The table `exposure`: the mapped rows, in the contract's units, with `place`, their order in the files."""
        e, columns, types = self.map.exposures, self.map.exposures.columns, self.types["exposures"]
        outcome = columns if self.map.feedback is None else {}
        chosen = {
            "place": "row_number() OVER (ORDER BY e.mtf_file, e.file_row_number)",
            "user_id": self._text("user_id", columns),
        }
        chosen |= {
            "ts_us": self._time("ts", columns, "exposures"),
            "received_us": self._time("received_at", columns, "exposures"),
        }
        chosen["original"] = self._text("request_id", columns)
        for target in ("policy_sha", "policy_version", "arm"):
            chosen[target] = self._text(target, columns)
        chosen["log_propensity"] = self._number("log_propensity", columns)
        for target in ("center", "lower", "upper", "cand_scores"):
            chosen[target] = sql.floats(source(columns[target]), "e") if target in columns else "CAST(NULL AS FLOAT[])"
        for target in ("cand_item_ids", "item_ids"):
            chosen[target] = sql.item(source(columns[target]), "e", types) if target in columns else "CAST(NULL AS BIGINT[])"
        chosen["action"] = self._action(columns)
        chosen["state"] = self._state(columns)
        if e.rows == "impressions":
            chosen["item_id"] = sql.item(source(columns["item_id"]), "e", types)
            chosen["shown_at"] = self._number("position", columns)
            chosen["scores"] = self._list(
                [self._number(t, columns) for t in score_targets(self.spec)], score_targets(self.spec)[0]
            )
        else:
            chosen["scores"] = sql.floats(source(columns["scores"]), "e") if "scores" in columns else "CAST(NULL AS FLOAT[])"
        chosen |= self._outcomes(outcome, "e")
        join = ""
        if self.map.users is not None:
            key = sql.quoted(self.map.users.key)
            self.con.execute(f"CREATE VIEW users_once AS SELECT DISTINCT ON ({key}) * FROM users_raw ORDER BY {key}")
            join = f"LEFT JOIN users_once u ON CAST(u.{key} AS VARCHAR) = {chosen['user_id']}"
        body = ",\n".join(f"{expression} AS {name}" for name, expression in chosen.items())
        self.con.execute(f"CREATE TABLE exposure AS SELECT {body} FROM exposures_raw e {join} WHERE {_kept(e.where, 'e')}")
        null = "user_id IS NULL OR ts_us IS NULL OR " + ("item_id IS NULL" if e.rows == "impressions" else "item_ids IS NULL")
        if self.map.exposures.rows == "requests" or "request_id" in columns:
            null += " OR original IS NULL"
        self._drop("exposures", "without a user, time, item or request", null, "exposure", delete=True)
        self._say_what_is_filled(columns)

    def _say_what_is_filled(self, columns: Columns) -> None:
        filled, mapped = self.found.filled, set(columns) | set(self.map.users.columns if self.map.users is not None else {})
        for i, f in enumerate(self.spec.features):
            if f"state:{f.name}" not in mapped:
                of = "computed from the candidates' scores; where none are logged " if i in self.computed else ""
                filled[f"state:{f.name}"] = f"{of}its default, {f.default:g}"
        if not {"scores", *score_targets(self.spec)} & mapped:
            filled["scores"] = "0: what reads scores (MTF-GAUC, slate replay, es) says nothing about this log"
        if not {"action", *raw_targets(self.spec)} & mapped:
            filled["action"] = "the spec's start: the log does not tell which weights were served"
        if "lower" not in mapped:
            filled["center, lower, upper, log_propensity"] = (
                "the action, and no box: nothing explored, nothing says what else would do"
            )
        elif "log_propensity" not in mapped:
            filled["log_propensity"] = "the density of a uniform draw in the box"
        if "cand_scores" not in columns:
            filled["cand_item_ids, cand_scores"] = "null: slate replay and es need them"
        if "request_id" not in mapped:
            gap = self.map.exposures.request_gap_s
            filled["request_id"] = f"made: impressions of a user within {gap:g} s, at most {self.spec.n_shown}, are a request"
        for target, what in {
            "received_at": "ts",
            "policy_sha": "`imported`",
            "arm": "champion, or explore where it explored",
        }.items():
            if target not in mapped:
                filled[target] = what

    # --- requests ---

    def _group_impressions(self) -> None:
        """Impressions become `shown` (one row an item of a request) and `request` (one row each, with lists)."""
        if "request_id" not in self.map.exposures.columns:
            self._drop(
                "exposures", "repeats of (user, item, time)", self._again("user_id, item_id, ts_us"), "exposure", delete=True
            )
            self._form_requests()
        else:
            self.con.execute("CREATE VIEW keyed AS SELECT *, original AS key FROM exposure")
        self.con.execute("CREATE TABLE keyed_rows AS SELECT * FROM keyed")
        several = "key IN (SELECT key FROM keyed_rows GROUP BY key HAVING count(DISTINCT user_id) > 1)"
        self._drop("exposures", "of requests with several users", several, "keyed_rows", delete=True)
        again = self._again("key, item_id", "keyed_rows")
        self._drop("exposures", "repeats of (request, item)", again, "keyed_rows", delete=True)
        self.con.execute(
            """CREATE TABLE shown AS
            SELECT *, row_number() OVER (PARTITION BY key ORDER BY coalesce(shown_at, 0), ts_us, place) - 1 AS position
            FROM keyed_rows"""
        )
        facts = ["user_id", "received_us", "log_propensity", "policy_sha", "policy_version", "arm", "state"]
        facts += ["action", "center", "lower", "upper", "cand_item_ids", "cand_scores"]
        first = ", ".join(f"arg_min({c}, position) AS {c}" for c in facts)
        self.con.execute(
            f"""CREATE TABLE request AS SELECT key, min(ts_us) AS ts_us, {first}, list(item_id ORDER BY position) AS item_ids,
            flatten(list(scores ORDER BY position)) AS scores FROM shown GROUP BY key"""
        )

    def _form_requests(self) -> None:
        gap, most = round(self.map.exposures.request_gap_s * 1e6), self.spec.n_shown
        self.con.execute(
            f"""CREATE VIEW keyed AS
            WITH gaps AS (SELECT *, coalesce(ts_us - lag(ts_us) OVER w > {gap}, true)::INT AS new FROM exposure
                          WINDOW w AS (PARTITION BY user_id ORDER BY ts_us, place)),
                 visits AS (SELECT *, sum(new) OVER (PARTITION BY user_id ORDER BY ts_us, place) AS visit FROM gaps),
                 parts AS (SELECT *, (row_number() OVER (PARTITION BY user_id, visit ORDER BY ts_us, place) - 1) // {most} AS part
                           FROM visits)
            SELECT *, user_id || ' ' || min(ts_us) OVER (PARTITION BY user_id, visit) || ' ' || part AS key FROM parts"""
        )

    def _requests(self) -> None:
        self._drop("exposures", "repeats of a request", self._again("original"), "exposure", delete=True)
        width = self.spec.n_objectives
        self.con.execute(
            f"""CREATE TABLE request AS SELECT * REPLACE (
                coalesce(scores, list_transform(range(len(item_ids) * {width}), lambda x: CAST(0 AS FLOAT))) AS scores),
                original AS key FROM exposure"""
        )

    def _identify(self) -> None:
        """`request.request_id`: the log's own where all are UUIDv7 in event time, else made of time and key."""
        ms = "TRY_CAST('0x' || substr(key, 1, 8) || substr(key, 10, 4) AS BIGINT)"
        is_own = f"regexp_matches(key, '{_UUID7}') AND abs({ms} - ts_us // 1000) <= 1000"
        own = self._one(f"SELECT coalesce(bool_and({is_own}), false) FROM request")
        self.con.execute("ALTER TABLE request ADD COLUMN request_id VARCHAR")
        self.con.execute(f"UPDATE request SET request_id = {'key' if own else sql.uuid7_sql('ts_us', 'key')}")
        if not own and "request_id" in self.map.exposures.columns:
            self.found.filled["request_id"] = "a UUIDv7 made of its time and the log's own id"

    # --- feedback ---

    def _feedback(self) -> None:
        """The table `answer`: feedback rows with their request's id, the item's position, and the request's time."""
        flags = [b for b in self.spec.behaviours if b != "watch"]
        if self.map.feedback is None:
            names = ", ".join(["watch_s", "duration_s", *(f'"{b}"' for b in flags)])
            self.con.execute(
                f"""CREATE TABLE answer AS SELECT r.request_id, s.item_id, s.position, r.ts_us AS day_us,
                s.ts_us + CAST(CASE WHEN watch_s BETWEEN 0 AND 86400 THEN watch_s ELSE 0 END * 1000000 AS BIGINT) AS seen_us,
                s.received_us AS got_us, {names} FROM shown s JOIN request r USING (key)"""
            )
            return
        columns, types = self.map.feedback.columns, self.types["feedback"]
        chosen = {"key": self._text("request_id", columns), "item_id": sql.item(source(columns["item_id"]), "e", types)}
        chosen |= {"seen_us": self._time("ts", columns, "feedback"), "got_us": self._time("received_at", columns, "feedback")}
        chosen |= self._outcomes(columns, "e")
        body = ", ".join(f"{expression} AS {name}" for name, expression in chosen.items())
        self.con.execute(f"CREATE TABLE told AS SELECT {body} FROM feedback_raw e WHERE {_kept(self.map.feedback.where, 'e')}")
        self._drop("feedback", "without a request or item", "key IS NULL OR item_id IS NULL", "told", delete=True)
        unknown = "key NOT IN (SELECT key FROM request)"
        self._drop("feedback", "of requests that the exposures do not hold", unknown, "told", delete=True)
        if self.map.exposures.rows == "requests":
            self.con.execute(
                """CREATE VIEW shown AS SELECT key, unnest(item_ids) AS item_id, unnest(range(len(item_ids))) AS position
                FROM request"""
            )
        not_shown = "NOT EXISTS (SELECT 1 FROM shown s WHERE s.key = told.key AND s.item_id = told.item_id)"
        self._drop("feedback", "on items that the request did not show", not_shown, "told", delete=True)
        zeros = ", ".join(f"coalesce(t.{n}, 0) AS {n}" for n in ["watch_s", *(f'"{b}"' for b in flags)])
        # an impression without a word is one that nothing was done with; a ranked item may never have been seen
        join = "LEFT JOIN" if self.map.exposures.rows == "impressions" else "JOIN"
        self.con.execute(
            f"""CREATE TABLE answer AS SELECT r.request_id, s.item_id, s.position, r.ts_us AS day_us, t.seen_us, t.got_us,
            {zeros}, t.duration_s
            FROM shown s JOIN request r USING (key) {join} told t ON t.key = s.key AND t.item_id = s.item_id"""
        )

    # --- writing ---

    def _count(self) -> None:
        day = "strftime(make_timestamp({}), '%Y-%m-%d')"
        answers = dict(self.con.execute(f"SELECT {day.format('day_us')} AS d, count(*) FROM answer GROUP BY d").fetchall())
        asked = self.con.execute(f"SELECT {day.format('ts_us')} AS d, count(*) FROM request GROUP BY d ORDER BY d").fetchall()
        if not asked:
            raise InputError(f"{self.folder}: no request is left; dropped: {self.found.dropped or 'nothing'}")
        self.found.days = {d: (n, answers.get(d, 0)) for d, n in asked}
        self.found.users = self._one("SELECT count(DISTINCT user_id) FROM request")
        self.found.explored = self._one(f"SELECT count(*) FILTER ({_EXPLORED}) FROM request")
        self.found.with_candidates = self._one("SELECT count(cand_scores) FROM request")

    def _write(self, dt: str, out_dir: Path) -> Manifest:
        where = f"strftime(make_timestamp({{}}), '%Y-%m-%d') = '{dt}'"
        asked = self.con.sql(f"SELECT *, {_EXPLORED} AS explored FROM request WHERE {where.format('ts_us')} ORDER BY request_id")
        answered = self.con.sql(f"SELECT * FROM answer WHERE {where.format('day_us')} ORDER BY request_id, position")
        requests = requests_table(asked.to_arrow_table(), self.spec, self.computed)
        feedback = feedback_table(answered.to_arrow_table(), self.spec)
        return write_day(out_dir, dt, requests, feedback, self.spec, surface=self.spec.surface)

    # --- expressions ---

    def _text(self, target: str, columns: Columns) -> str:
        return sql.text(source(columns[target]), "e") if target in columns else "CAST(NULL AS VARCHAR)"

    def _number(self, target: str, columns: Columns, table: str = "e") -> str:
        return sql.number(source(columns[target]), table) if target in columns else "CAST(NULL AS DOUBLE)"

    def _time(self, target: str, columns: Columns, section: str) -> str:
        if target not in columns:
            return "CAST(NULL AS BIGINT)"
        return sql.microseconds(source(columns[target]), "e", self.types[section], f"{section}.columns.{target}")

    def _action(self, columns: Columns) -> str:
        """FLOAT[A]: as mapped; of raw weights the place in the spec's range; else the spec's start."""
        if "action" in columns:
            return sql.floats(source(columns["action"]), "e")
        targets = raw_targets(self.spec)
        if targets[0] not in columns:
            return self._list([repr(float(a)) for a in self.spec.start], None)
        ends = zip(targets, self.spec.raw_low.tolist(), self.spec.raw_high.tolist(), strict=True)
        return self._list([f"2 * ({self._number(t, columns)} - {low!r}) / {high - low!r} - 1" for t, low, high in ends], None)

    def _state(self, columns: Columns) -> str:
        """FLOAT[S]: the mapped features; the default where there is none, or no finite number."""
        of_users = self.map.users.columns if self.map.users is not None else {}
        parts = []
        for f in self.spec.features:
            target = f"state:{f.name}"
            value = self._number(target, columns) if target in columns else self._number(target, of_users, "u")
            parts.append(f"coalesce(CASE WHEN isfinite({value}) THEN {value} END, {f.default!r})")
        return self._list(parts, None)

    def _list(self, parts: list[str], needs: str | None) -> str:
        """FLOAT[] of the parts; zeros where `needs` is not mapped."""
        if needs is not None and needs not in self.map.exposures.columns:
            parts = ["0"] * len(parts)
        return f"CAST([{', '.join(parts)}] AS FLOAT[])"

    def _outcomes(self, columns: Columns, table: str) -> dict[str, str]:
        if not columns:
            return {}
        chosen = {"watch_s": f"CAST(coalesce({self._number('watch_s', columns, table)}, 0) AS FLOAT)"}
        chosen["duration_s"] = f"CAST({self._number('duration_s', columns, table)} AS FLOAT)"
        for b in self.spec.behaviours:
            if b != "watch":
                chosen[f'"{b}"'] = f"CAST(coalesce({self._number(b, columns, table)} > 0, false) AS TINYINT)"
        return chosen

    def _again(self, keys: str, table: str = "exposure") -> str:
        """Predicate: the row repeats an earlier one's keys."""
        numbered = f"SELECT place, row_number() OVER (PARTITION BY {keys} ORDER BY place) AS n FROM {table}"
        return f"place IN (SELECT place FROM ({numbered}) WHERE n > 1)"

    def _drop(self, section: str, reason: str, where: str, table: str, *, delete: bool = False) -> None:
        """Count rows that go no further, and delete them."""
        n = self._one(f"SELECT count(*) FROM {table} WHERE {where}")
        if n:
            self.found.dropped[f"{section}: {reason}"] = n
            if delete:
                self.con.execute(f"DELETE FROM {table} WHERE {where}")

    def _one(self, query: str) -> int:
        return int(self.con.execute(query).fetchall()[0][0])


_EXPLORED = "coalesce(list_max(upper) > 0 OR list_min(lower) < 0, false)"


def _kept(where: Mapping[str, list[Any]], table: str | None = None) -> str:
    """SQL: the row passes every filter of `where`; TRUE without one."""
    prefix = f"{table}." if table else ""
    tests = [f"{prefix}{sql.quoted(c)} IN ({', '.join(map(sql.literal, values))})" for c, values in where.items()]
    return " AND ".join(f"coalesce({t}, false)" for t in tests) or "TRUE"


def _scratch(out_dir: Path | None) -> Path | None:
    if out_dir is None:
        return None
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    return Path(out_dir)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
