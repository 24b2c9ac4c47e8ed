"""How long, and in how much memory, logs become transitions: beside pandas, a bare scan and sort, and Spark.

    python -m benchmarks.transitions compare --requests 1000000      # one day, four ways, each in a process of its own
    python -m benchmarks.transitions grow --requests 1000000,2000000,5000000
    python -m benchmarks.transitions large --days 10 --requests 2000000 --width full

The rows are random in the shape of real ones (benchmarks/transitions_rows.py). `large` makes, builds and deletes a day
at a time. Every time printed is of one process, after its imports, from sealed files to the finished Parquet file; the bare
job reads and sorts the columns that the build reads (requests by user and time, feedback by request) and drops the result.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.transitions_rows import SPECS, write_random_day

FIRST_DAY = datetime.date(2026, 1, 1)
READ = {
    "requests": "request_id, surface, user_id, ts, state, action, center, lower, upper, log_propensity, exploring, policy_sha, "
    "policy_version, exploration_sha, arm, rollout_id, item_ids, scores, cand_scores, fallback, spec_version",
    "feedback": "request_id, item_id, position, watch_s",
}
MEMORY = "1500MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "grow", "large", "day", *JOBS])
    parser.add_argument("--requests", default="1000000", help="a day; `grow` takes several")
    parser.add_argument("--days", type=int, default=2, help="of `large`")
    parser.add_argument("--width", choices=sorted(SPECS), default="full")
    parser.add_argument("--logged", type=float, default=0.05, help="share of requests that log their candidates")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", default="build,scan_sort,pandas,spark", help="of `compare`")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a disk with room")
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dt", default=str(FIRST_DAY), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what in JOBS:
        _measure(options)
        return
    if options.what == "day":
        n = int(options.requests)
        print(write_random_day(options.logs, options.dt, n, SPECS[options.width], logged=options.logged, seed=0))
        return
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads; {' '.join(sys.argv[1:])}"
    )
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        {"compare": compare, "grow": grow, "large": large}[options.what](options, Path(scratch))


def compare(options: argparse.Namespace, scratch: Path) -> None:
    """One day, each way in turn; their rows must agree."""
    rows = _day(options, scratch / "logs", str(FIRST_DAY), int(options.requests))
    print(f"{rows:,} requests, {options.width}\n{'':10} seconds  cpu s  requests/s  peak MiB  time against build")
    base, contents = 0.0, set()
    for job in options.jobs.split(","):
        found = _run(options, job, scratch / "logs", scratch / job, str(FIRST_DAY))
        base = base or found["seconds"]
        contents |= {found["content"]} - {None}
        numbers = f"{found['seconds']:8.1f} {found['cpu_s']:6.1f} {rows / found['seconds']:11,.0f} {found['peak_mib']:9,.0f}"
        print(f"{job:10}{numbers} {found['seconds'] / base:8.2f}", flush=True)
        shutil.rmtree(scratch / job, ignore_errors=True)
    print("content:", *contents)
    if len(contents) > 1:
        raise SystemExit("the ways disagree")


def grow(options: argparse.Namespace, scratch: Path) -> None:
    """One day of each size."""
    print("  requests  seconds  cpu s  us a request  peak MiB")
    for size in map(int, options.requests.split(",")):
        logs, out = scratch / f"logs{size}", scratch / f"out{size}"
        rows = _day(options, logs, str(FIRST_DAY), size)
        found = _run(options, "build", logs, out, str(FIRST_DAY))
        per = 1e6 * found["seconds"] / rows
        print(f"{rows:10,} {found['seconds']:8.1f} {found['cpu_s']:6.1f} {per:13.1f} {found['peak_mib']:9,.0f}", flush=True)
        shutil.rmtree(logs)
        shutil.rmtree(out)


def large(options: argparse.Namespace, scratch: Path) -> None:
    """Many days; of each day only what the next one needs is kept."""
    print("day         requests  transitions  carried  seconds  cpu s  peak MiB")
    total = built = peak = 0
    seconds = 0.0
    for number in range(options.days):
        dt = str(FIRST_DAY + datetime.timedelta(days=number))
        rows = _day(options, scratch / "logs", dt, int(options.requests))
        found = _run(options, "build", scratch / "logs", scratch / "out", dt)
        total, built, seconds = total + rows, built + found["rows"], seconds + found["seconds"]
        peak = max(peak, found["peak_mib"])
        numbers = (
            f"{found['rows']:12,} {found['carried']:8,} {found['seconds']:8.1f} {found['cpu_s']:6.1f} {found['peak_mib']:9,}"
        )
        print(f"{dt} {rows:9,} {numbers}", flush=True)
        shutil.rmtree(scratch / "logs" / f"dt={dt}")
        (scratch / "out" / f"dt={dt}" / "transitions.parquet").unlink()
    rate = total / seconds
    print(f"{total:,} requests, {built:,} transitions in {seconds:,.0f} s ({rate:,.0f} requests/s); peak {peak:,} MiB")


def _day(options: argparse.Namespace, logs: Path, dt: str, requests: int) -> int:
    return int(_child(options, "day", logs, logs, dt, "--requests", str(requests)))


def _run(options: argparse.Namespace, job: str, logs: Path, out: Path, dt: str) -> dict:
    return json.loads(_child(options, job, logs, out, dt))


def _child(options: argparse.Namespace, what: str, logs: Path, out: Path, dt: str, *more: str) -> str:
    # its own process: the peak of memory is a process's, and making a day must not count
    command = [sys.executable, "-m", "benchmarks.transitions", what, "--logs", str(logs), "--out", str(out), "--dt", dt, *more]
    command += ["--threads", str(options.threads), "--width", options.width, "--logged", str(options.logged)]
    pinned = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | pinned)
    return done.stdout.strip().splitlines()[-1]


def _measure(options: argparse.Namespace) -> None:
    """Run one job in this process and print what it cost as a line of JSON."""
    import ibis  # noqa: F401
    import pandas  # noqa: F401

    import mtf.transitions.build  # noqa: F401

    pa.set_cpu_count(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    job = JOBS[options.what]
    begin, cpu = time.perf_counter(), time.process_time()
    found = job(options)
    cost = {"seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.what == "spark":
        # the work is the JVM's, a child of this process; its memory is not in ru_maxrss of this one
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak, cost["cpu_s"] = peak + children.ru_maxrss / 1024, cost["cpu_s"] + children.ru_utime + children.ru_stime
    print(json.dumps(cost | {"peak_mib": round(peak), "content": None} | found))


def _build(engine: str) -> Callable[[argparse.Namespace], dict]:
    def job(options: argparse.Namespace) -> dict:
        from mtf.transitions.build import build_day

        spec = SPECS[options.width]
        built = build_day(
            options.logs, options.dt, options.out, spec=spec, expectations_dir=None, engine=engine, threads=options.threads
        )
        return {"rows": built.rows, "carried": built.carried, "content": built.md5}

    return job


def _pandas(options: argparse.Namespace) -> dict:
    from benchmarks.transitions_pandas import transitions, write

    day = options.logs / f"dt={options.dt}" / "r1"
    table = transitions(
        sorted(day.glob("requests-*.parquet")), sorted(day.glob("feedback-*.parquet")), SPECS[options.width], options.dt
    )
    write(table, options.out / "transitions.parquet")
    content = hashlib.md5((options.out / "transitions.parquet").read_bytes(), usedforsecurity=False).hexdigest()
    return {"rows": len(table), "content": content}


def _scan_sort(options: argparse.Namespace) -> dict:
    import duckdb

    day = options.logs / f"dt={options.dt}" / "r1"
    flags = "".join(f', "{b}"' for b in SPECS[options.width].behaviours if b != "watch")
    columns = READ | {"feedback": READ["feedback"] + flags}
    config = {"threads": options.threads, "memory_limit": MEMORY, "temp_directory": str(options.out)}
    rows = 0
    with duckdb.connect(config=config) as con:
        for kind, order in (("requests", "user_id, ts, request_id"), ("feedback", "request_id, position")):
            query = f"SELECT {columns[kind]} FROM read_parquet('{day}/{kind}-*.parquet') ORDER BY {order}"
            for batch in con.sql(query).to_arrow_reader(65_536):
                rows += len(batch)
    expected = sum(pq.read_metadata(f).num_rows for f in day.glob("*.parquet"))
    assert rows == expected, (rows, expected)
    return {"rows": rows}


JOBS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "build": _build("duckdb"),
    "scan_sort": _scan_sort,
    "pandas": _pandas,
    "spark": _build("spark"),
}

if __name__ == "__main__":
    main()
