"""Start, look at and stop the platform: what `mtf up`, `mtf status` and `mtf down` do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import psutil

from mtf.errors import InputError, MtfError
from mtf.platform.environment import environment
from mtf.platform.health import healthy
from mtf.platform.ports import DEFAULTS, choose
from mtf.platform.processes import AIRFLOW, Supervisor, render, running, start_supervisor, stop_all, survivors, tail
from mtf.platform.state import Platform, Secrets, ensure_secrets, password_file, read_platform, write_platform
from mtf.rollout.document import Arms
from mtf.settings import Settings
from mtf.spec import FusionSpec

START_SECONDS = 300.0
Say = Callable[[str], None]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `mtf status`."""

    program: str
    state: str
    health: str
    pid: int
    megabytes: int
    url: str


def up(
    settings: Settings,
    *,
    spec: Path | None = None,
    arms: Arms | None = None,
    half_width: float = 0.2,
    ports: Mapping[str, int] = DEFAULTS,
    say: Say = print,
) -> Platform:
    """Start what does not run yet and wait until all of it is well; returns where everything is.

    spec: a spec.json for the surface (needed the first time; the state folder keeps it). arms, half_width: the first
    document's traffic and box, while there is no document yet (default arms: those of the controller's configuration).
    Raises InputError where the spec is missing or another one than the state folder's, MtfError with the log to read
    where a program does not get well.
    """
    surface = settings.surfaces[0]
    fusion_spec = _settle_spec(settings, surface, spec)
    secrets = ensure_secrets(settings)
    supervisor = running(settings)
    platform = read_platform(settings)
    if supervisor is None or platform is None:
        if left := survivors(settings):
            say(f"  {len(left)} processes of an earlier run are left; stopping them")
            stop_all(settings)
        platform = _place(settings, surface, secrets, dict(ports), platform)
        write_platform(settings, platform)
        conf = render(settings, platform, secrets)
        supervisor = start_supervisor(settings, conf, environment(settings, platform, secrets), secrets)
    started = time.monotonic()
    programs = supervisor.states()
    stopped = [name for name in AIRFLOW if programs[name] != "RUNNING"]
    migration = _migrate_airflow(settings, platform, secrets) if stopped else None
    first = ["mlflow", *(["s3"] if "s3" in programs else [])]
    supervisor.start(*first)
    if migration is not None:
        _finish_migration(settings, migration)
    supervisor.start(*AIRFLOW)
    _wait_well(settings, supervisor, platform, first, started, say)
    _initialise(settings, surface, fusion_spec, arms, half_width, say)
    supervisor.start("serve", "rollout")
    _wait_well(settings, supervisor, platform, [*AIRFLOW, "serve", "rollout"], started, say)
    return platform


def down(settings: Settings) -> int:
    """Stop all of it, also after supervisord was killed; returns how many processes there were."""
    return stop_all(settings)


def status(settings: Settings) -> list[Row]:
    """One row a program; empty where the platform does not run."""
    supervisor, platform = running(settings), read_platform(settings)
    if supervisor is None or platform is None:
        return []
    urls = {
        "s3": platform.s3_endpoint,
        "mlflow": platform.mlflow_url,
        "airflow-api": platform.airflow_url,
        "serve": platform.serve_url,
    }
    pids = supervisor.pids()
    rows = []
    for program, state in supervisor.states().items():
        well = healthy(program, platform) if state == "RUNNING" else False
        rows.append(
            Row(
                program=program,
                state=state.lower(),
                health="-" if well is None else "well" if well else "not well",
                pid=pids[program],
                megabytes=_megabytes(pids[program]),
                url=urls.get(program) or "",
            )
        )
    return rows


def stop_airflow(settings: Settings) -> None:
    """Stop Airflow alone; everything else goes on (the loop must not need it to serve or to decide)."""
    _supervisor(settings).stop(*AIRFLOW)


def start_airflow(settings: Settings, say: Say = print) -> None:
    """Start Airflow again and wait until it is well."""
    supervisor, platform = _supervisor(settings), read_platform(settings)
    assert platform is not None
    supervisor.start(*AIRFLOW)
    _wait_well(settings, supervisor, platform, list(AIRFLOW), time.monotonic(), say)


def _supervisor(settings: Settings) -> Supervisor:
    supervisor = running(settings)
    if supervisor is None:
        raise MtfError(f"no platform runs in {settings.state_dir}; start it with `mtf up`")
    return supervisor


def _settle_spec(settings: Settings, surface: str, given: Path | None) -> FusionSpec:
    kept = settings.state_dir / "surfaces" / surface / "spec.json"
    if given is None:
        if not kept.exists():
            raise InputError("spec: none yet for this state folder; give --spec FILE, or --world DIR of `mtf world make`")
        return FusionSpec.read(kept)
    spec = FusionSpec.read(given)
    if kept.exists() and FusionSpec.read(kept).version != spec.version:
        raise InputError(
            f"spec: {given} has version {spec.version}, the state folder {settings.state_dir} was started with "
            f"{FusionSpec.read(kept).version}; use another MTF_STATE_DIR, or `mtf down && mtf clean` first"
        )
    spec.write(kept)
    return spec


def _place(settings: Settings, surface: str, secrets: Secrets, wanted: dict[str, int], before: Platform | None) -> Platform:
    """Choose ports (the last run's first, so that addresses stay) and the store: SeaweedFS where its wheel exists."""
    chosen = choose(wanted | (before.ports if before else {}))
    store_dir = settings.state_dir / "store"
    urls = {name: f"http://127.0.0.1:{chosen[name]}" for name in ("airflow", "mlflow", "serve", "s3")}
    with_s3 = before.s3_endpoint is not None if before else _has_weed()
    return Platform(
        ports=chosen,
        surface=surface,
        clock=settings.clock,
        store_url="s3://mtf/store" if with_s3 else store_dir.as_uri(),
        artifacts_url="s3://mtf/mlflow" if with_s3 else (settings.state_dir / "mlflow" / "artifacts").as_uri(),
        mlflow_url=urls["mlflow"],
        airflow_url=urls["airflow"],
        serve_url=urls["serve"],
        airflow_password_file=str(password_file(settings)),
        s3_endpoint=urls["s3"] if with_s3 else None,
        s3_access_key=secrets.s3_access_key if with_s3 else None,
        s3_secret_key=secrets.s3_secret_key if with_s3 else None,
    )


def _has_weed() -> bool:
    return shutil.which("weed", path=str(Path(sys.executable).parent)) is not None


def _migrate_airflow(settings: Settings, platform: Platform, secrets: Secrets) -> subprocess.Popen[bytes]:
    log = (settings.state_dir / "log" / "airflow-migrate.log").open("wb")
    command = [str(Path(sys.executable).parent / "airflow"), "db", "migrate"]
    return subprocess.Popen(command, env=environment(settings, platform, secrets), stdout=log, stderr=log)


def _finish_migration(settings: Settings, migration: subprocess.Popen[bytes]) -> None:
    if migration.wait(timeout=START_SECONDS) != 0:
        log = settings.state_dir / "log" / "airflow-migrate.log"
        raise MtfError(f"airflow db migrate failed: {tail(log)}; see {log}")


def _initialise(settings: Settings, surface: str, spec: FusionSpec, arms: Arms | None, half_width: float, say: Say) -> None:
    """Register the bootstrap policy and write generation 1, where there is no document yet."""
    from mtf.registry.models import register_bootstrap
    from mtf.rollout.controller import RolloutConfig
    from mtf.rollout.documents import read_latest
    from mtf.rollout.start import initialise
    from mtf.store import open_store

    now = Settings(
        **{name: getattr(settings, name) for name in ("state_dir", "surfaces", "clock", "expectations_dir", "threads")}
    )
    if read_latest(open_store(settings=now), surface) is not None:
        return
    begun = time.monotonic()
    version = register_bootstrap(now, surface, spec)
    initialise(now, surface, spec, arms or RolloutConfig().exploring, half_width, version)
    say(f"  {'first document':<22} written after {time.monotonic() - begun:5.1f} s   bootstrap policy = version {version}")


def _wait_well(
    settings: Settings, supervisor: Supervisor, platform: Platform, programs: list[str], started: float, say: Say
) -> None:
    """Wait until each program is well, a line each as it happens. Raises MtfError naming the log of one that is not."""
    waiting = list(programs)
    deadline = time.monotonic() + START_SECONDS
    while waiting:
        states, pids = supervisor.states(), supervisor.pids()
        for program in list(waiting):
            log = settings.state_dir / "log" / f"{program}.log"
            if states[program] == "FATAL" or time.monotonic() > deadline:
                raise MtfError(f"{program} is {states[program].lower()}, not well: {tail(log)}; see {log}")
            since = _started(pids[program])
            if states[program] == "RUNNING" and healthy(program, platform, since) is not False:
                waiting.remove(program)
                say(f"  {program:<22} well after    {time.monotonic() - started:5.1f} s")
        time.sleep(0.2)


def _started(pid: int) -> float:
    """Unix time at which a process began; 0 where there is none."""
    try:
        return psutil.Process(pid).create_time() if pid else 0.0
    except psutil.Error:
        return 0.0


def _megabytes(pid: int) -> int:
    """Proportional set size of a process and its children (memory that they share counts once)."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []
        return sum(process.memory_full_info().pss for process in family) >> 20
    except psutil.Error:
        return 0
