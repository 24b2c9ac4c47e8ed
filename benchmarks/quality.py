"""How long, and in how much memory, a day of 5 million impressions is validated: rules, figures, sketch, quarantine, pages.

    python -m benchmarks.quality [--requests 840000] [--width full] [--threads 2] [--logs DIR]

The rows are those of benchmarks/transitions_rows.py; a process of its own makes them, so that they do not count here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.transitions_rows import SPECS, write_random_day
from mtf.quality import validate_day
from mtf.settings import ROOT

DT = "2026-01-01"


def main() -> None:
    """Make the day, validate it, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=840_000)
    parser.add_argument("--width", choices=sorted(SPECS), default="full")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--logs", type=Path, default=None, help="keep the made day here, and use it again")
    parser.add_argument("--make", action="store_true", help="make the day in LOGS and stop")
    arguments = parser.parse_args()
    spec = SPECS[arguments.width]
    if arguments.make:
        write_random_day(arguments.logs, DT, arguments.requests, spec, logged=0.05, seed=0)
        return
    with tempfile.TemporaryDirectory() as scratch:
        logs = arguments.logs or Path(scratch) / "logs"
        if not (logs / f"dt={DT}").exists():
            sizes = ["--requests", str(arguments.requests), "--width", arguments.width]
            subprocess.run([sys.executable, "-m", "benchmarks.quality", "--make", "--logs", str(logs), *sizes], check=True)
        begin, cpu = time.perf_counter(), sum(os.times()[:2])
        verdict = validate_day(
            logs, DT, Path(scratch) / "out", spec=spec, expectations_dir=ROOT / "expectations", threads=arguments.threads
        )
        seconds, cpu = time.perf_counter() - begin, sum(os.times()[:2]) - cpu
    result = {
        "requests": verdict.counts["requests"],
        "feedback": verdict.counts["feedback"],
        "checks": len(verdict.checks),
        "status": verdict.status,
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": arguments.threads,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))
    if verdict.reasons:
        print("\n".join(verdict.reasons))


if __name__ == "__main__":
    main()
