"""`mtf demo`: several rounds of explore -> chain -> canary in real Airflow, on simulated traffic.

The demo plays users, ends each simulated day by triggering `seal_day` as a person would, and watches. What is trained, judged
and served is the platform's business.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform as machine_facts
import shutil
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path

import msgspec

from mtf.demo.airflow import DONE, Airflow, Run
from mtf.demo.summary import (
    Canary,
    Dataset,
    Gate,
    Metric,
    PowerOf,
    Round,
    Seconds,
    Summary,
    TrueValue,
    Truth,
    write_summary,
)
from mtf.errors import MtfError
from mtf.fileio import write_atomic
from mtf.logs.days import list_days
from mtf.logs.spool import SpoolReader
from mtf.pipeline import code_version
from mtf.registry import Version, find_version, registered_policy
from mtf.registry.client import registry_page
from mtf.rollout.controller import RolloutConfig
from mtf.rollout.document import Arms, DeploymentDocument
from mtf.rollout.documents import read_latest
from mtf.rollout.statistics import DecisionRules
from mtf.settings import Settings
from mtf.spec import FusionSpec
from mtf.store import open_store
from mtf.world.truth import DAY, true_value
from mtf.world.world import World

SURFACE = "feed"
CHAIN = ("validate_logs", "build_transitions", "train_policy", "evaluate_policy", "refresh_exploration", "deploy_canary")
CHAIN_TIMEOUT_S = 1200.0
DECISION_TIMEOUT_S = 300.0  # after the controller's last look
Say = Callable[[str], None]


class DemoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes; chosen by the power analysis so that the first round's improvement is usually detectable.

    explore_users, canary_users: users a day (one session each). half_width: of the first box. algorithm: the learner.
    truth_users: users of the simulations behind true_value; they are other users than the traffic's (another seed).
    """

    explore_users: int = 36_000
    canary_users: int = 40_000
    half_width: float = 0.3
    algorithm: str = "slate_replay"
    exploring: Arms = Arms(explore=0.9)
    comparing: Arms = Arms(explore=0.25, canary=0.375, control=0.375)
    first_day: str = "2026-03-02"
    seed: int = 7
    truth_users: int = 20_000
    truth_seed: int = 90_210


def demo(
    settings: Settings, *, rounds: int, world: Path | None = None, config: DemoConfig | None = None, say: Say = print
) -> Summary:
    """Run the demo in the state folder of `settings`; returns the summary that it also wrote to <state>/demo/summary.json.

    world: a folder of `mtf world make` or `mtf world fit`; default the parametric preset. Raises MtfError naming the log to
    read where something failed; a refused, inconclusive or rolled-back round is a result.
    """
    from mtf.platform.run import up

    config = config or DemoConfig()
    settings = settings.model_copy(update={"clock": "simulated"})
    out = settings.state_dir / "demo"
    if (out / "summary.json").exists():
        raise MtfError(f"{out} holds the results of an earlier demo; `make clean` first, or set MTF_STATE_DIR to another folder")
    began = time.monotonic()
    say("The world")
    played = World.load(world) if world is not None else World.make("default")
    config = _fit_to(played, config, say)
    written = _configuration(config)
    _require_new(settings, played, written)
    folder = _settle_world(out, world, played, say)
    for path, content in written.items():
        write_atomic(settings.state_dir / path, content)
    say("The platform")
    up(settings, spec=folder / "spec.json", arms=config.exploring, half_width=config.half_width, say=say)
    settings = Settings(state_dir=settings.state_dir, clock="simulated")
    show = _Show(settings, say)
    show.addresses()
    player = _Player(settings, played, config, say, began)
    done: list[Round] = []
    for number in range(1, rounds + 1):
        done.append(player.round(number, rounds))
        say(show.line(done[-1]))
    player.finish()
    summary = Summary(
        rounds=done,
        urls=show.urls(),
        world=_describe_world(folder, played),
        truth=player.truth,
        configuration=msgspec.to_builtins(config),
        code=code_version(),
        versions={p: version(p) for p in ("mtf", "apache-airflow", "torch", "dvc", "great-expectations", "mlflow", "duckdb")},
        machine={"cores": os.cpu_count(), "system": machine_facts.system(), "machine": machine_facts.machine()},
        command=" ".join(["mtf", *sys.argv[1:]]),
        exit=0,
    )
    write_summary(out / "summary.json", summary)
    from mtf.demo.report import write_report

    write_report(summary, out)
    return summary


class _Show:
    """What the user is told: addresses, a line a round."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self.settings, self.say = settings, say

    def urls(self) -> dict[str, str]:
        """The pages."""
        s = self.settings
        return {
            "airflow": f"{s.airflow_url}",
            "mlflow": registry_page(f"{s.mlflow_url}", SURFACE),
            "data_docs": (s.docs_dir / "index.html").as_uri(),
            "report": (s.state_dir / "demo" / "report.html").as_uri(),
            "fusion_server": f"{s.serve_url}/v1/document",
        }

    def addresses(self) -> None:
        """Print the pages, and how to log in."""
        assert self.settings.airflow_password_file is not None
        password = json.loads(self.settings.airflow_password_file.read_text())["admin"]
        for name, url in self.urls().items():
            login = f"   (user admin, password {password})" if name == "airflow" else ""
            self.say(f"  {name.replace('_', ' '):<14} {url}{login}")

    def line(self, done: Round) -> str:
        """A round in one line."""
        lift = "no estimate" if done.gate.lift is None else f"{done.gate.lift:+.1%} [{done.gate.low:+.1%}, {done.gate.high:+.1%}]"
        return (
            f"  round {done.round}: gate {done.gate.verdict} ({lift}); canary {done.canary.decision}; "
            f"true value of what now serves {done.true_value.mean:.3f} (se {done.true_value.se:.3f})"
        )


class _Player:
    """Plays rounds; keeps the calendar."""

    def __init__(self, settings: Settings, world: World, config: DemoConfig, say: Say, began: float) -> None:
        assert settings.airflow_url is not None
        assert settings.airflow_password_file is not None
        self.settings, self.world, self.config, self.say, self.began = settings, world, config, say, began
        self.store = open_store(settings=settings)
        self.airflow = Airflow(settings.airflow_url, settings.airflow_password_file)
        self.airflow.wait_parsed([self._dag(d) for d in ("seal_day", *CHAIN)])
        self.day = date.fromisoformat(config.first_day)
        self.unsealed: str | None = None
        self.values: dict[str, TrueValue] = {}
        document = self._document()
        start = self._true_value(document.champion.sha)
        self.truth = Truth(users=config.truth_users, seed=config.truth_seed, dt=DAY, start=start)

    def round(self, number: int, rounds: int) -> Round:
        """An explore day, the chain, and a canary day where the gate passed."""
        began = time.monotonic()
        before = self._document()
        dt = self._next_day()
        self._say(f"Round {number} of {rounds}: {dt}, exploring around version {before.champion.version}")
        traffic = self._play(dt, self.config.explore_users)
        chain_began = time.monotonic()
        version_ = self._chain(dt)
        chain = time.monotonic() - chain_began
        found = self._version(version_)
        tags = found.tags
        canary, extra = Canary(decision="none", reason=f"the gate says {tags['verdict']}"), 0.0
        document = self._document()
        if document.rollout is not None and document.rollout.id != (before.rollout.id if before.rollout else None):
            canary, extra = self._canary(document)
        elif tags["verdict"] == "pass":
            raise MtfError(
                f"version {version_} passed, but no canary began; see <state>/log/rollout.log and `mtf rollout status`"
            )
        serving = self._document().champion.sha
        return Round(
            round=number,
            dt=dt,
            dataset=Dataset(md5=tags["dataset_md5"], rows=int(tags["dataset_rows"]), revision=tags["dataset_revision"]),
            power=PowerOf(detectable_lift=self._detectable(found.run_id)),
            model_version=version_,
            policy_sha=found.policy_sha,
            run_id=found.run_id,
            baseline_sha=tags["verdict_baseline"],
            gate=Gate(
                verdict=tags["verdict"],
                reason=tags["verdict_reason"],
                lift=_number(tags["lift"]),
                low=_number(tags["lift_low"]),
                high=_number(tags["lift_high"]),
            ),
            canary=canary,
            serving_sha=serving,
            true_value=self._true_value(serving),
            candidate_true_value=self._true_value(found.policy_sha),
            seconds=Seconds(traffic=round(traffic + extra, 1), chain=round(chain, 1), total=round(time.monotonic() - began, 1)),
        )

    def finish(self) -> None:
        """Seal the last canary day too, so that every row of the summary can be recomputed from sealed days."""
        if self.unsealed is not None:
            self._seal(self.unsealed, through=("validate_logs", "build_transitions"))
            self.unsealed = None

    def _canary(self, started: DeploymentDocument) -> tuple[Canary, float]:
        assert started.rollout is not None
        assert started.canary is not None
        dt = self._next_day()
        share = f"{started.arms.canary:.0%} canary, {started.arms.control:.0%} control, {started.arms.explore:.0%} explore"
        self._say(f"  {dt}: canary of version {started.canary.version} ({share})")
        seconds = self._play(dt, self.config.canary_users)
        self.unsealed = dt
        progress = f"deploy/{SURFACE}/progress/{started.rollout.id}.json"
        looked, deadline = b"", time.monotonic() + DECISION_TIMEOUT_S
        while True:
            rollout = self._document().rollout
            if self.store.exists(progress) and (look := self.store.get(progress)) != looked:
                looked, deadline = look, time.monotonic() + DECISION_TIMEOUT_S  # it is at work
            if rollout is not None and rollout.id == started.rollout.id and rollout.outcome is not None:
                break
            if time.monotonic() > deadline:
                raise MtfError(f"rollout {started.rollout.id} is undecided after its day; see <state>/log/rollout.log")
            time.sleep(0.5)
        comparison = rollout.statistics.get("comparison") or {}
        assert isinstance(comparison, dict)
        self._say(f"  decision: {rollout.outcome}. {rollout.reason}")
        canary = Canary(
            decision=str(rollout.outcome),
            reason=rollout.reason,
            n_canary=int(comparison.get("n_canary", 0)),
            n_control=int(comparison.get("n_control", 0)),
            metrics=msgspec.convert(comparison.get("metrics", {}), dict[str, Metric]),
            rollout_id=rollout.id,
            dt=dt,
        )
        return canary, seconds

    def _play(self, dt: str, users: int) -> float:
        from mtf.world.traffic import play_day

        began = time.monotonic()
        assert self.settings.serve_url is not None
        stats = play_day(self.world, self.settings.serve_url, users=users, dt=dt, seed=self.config.seed, progress=True)
        seconds = time.monotonic() - began
        self._say(
            f"  traffic: {stats.requests:,} requests of {users:,} users in {seconds:.0f} s ({stats.requests / seconds:,.0f}/s)"
        )
        return seconds

    def _chain(self, dt: str) -> str:
        """Seal the day(s), follow the chain to its end; returns the model version that it made."""
        if self.unsealed is not None:
            # the canary day first: it ends before this one; its explorers alone are too few for a training of their own
            self._seal(self.unsealed, through=("validate_logs", "build_transitions", "train_policy"))
            self.unsealed = None
        known = self.airflow.known([self._dag(d) for d in CHAIN])
        versions = self._versions()
        self._seal(dt, through=("validate_logs", "build_transitions"))
        for name in ("train_policy", "evaluate_policy", "refresh_exploration"):
            run = self._follow(name, known[self._dag(name)])
            if name == "train_policy" and "skipped" in run.tasks.values():
                raise MtfError(
                    f"train_policy skipped {dt}: see its log at {self.airflow.url}/dags/{run.dag_id}/runs/{run.run_id}"
                )
        self._await_deploy(known[self._dag("deploy_canary")])
        made = sorted(self._versions() - versions, key=int)
        if len(made) != 1:
            raise MtfError(f"the chain of {dt} made {len(made)} model versions instead of one; see {self.airflow.url}")
        return made[0]

    def _seal(self, dt: str, through: tuple[str, ...]) -> None:
        """Trigger seal_day for a day and follow the given DAGs, each to its end."""
        known = self.airflow.known([self._dag(d) for d in through])
        dag = self._dag("seal_day")
        self._follow_run(dag, self.airflow.trigger(dag, {"dt": dt}))
        for name in through:
            self._follow(name, known[self._dag(name)])

    def _follow(self, name: str, known: set[str]) -> Run:
        """Wait for a new run of a DAG, and for its end."""
        dag = self._dag(name)
        deadline = time.monotonic() + CHAIN_TIMEOUT_S
        while time.monotonic() < deadline:
            fresh = [run for run in self.airflow.runs(dag) if run.run_id not in known]
            if fresh:
                return self._follow_run(dag, fresh[0].run_id)
            time.sleep(1)
        raise MtfError(f"{dag} did not start; see {self.airflow.url}/dags/{dag}")

    def _follow_run(self, dag: str, run_id: str) -> Run:
        began = time.monotonic()
        while True:
            run = self.airflow.run(dag, run_id)
            if run.state in DONE:
                break
            if time.monotonic() - began > CHAIN_TIMEOUT_S:
                raise MtfError(f"{dag} runs for over {CHAIN_TIMEOUT_S:.0f} s; see {self.airflow.url}/dags/{dag}/runs/{run_id}")
            time.sleep(1)
        if run.state == "failed":
            raise MtfError(
                f"{dag} failed in task {run.failed_task}; read {self.airflow.url}/dags/{dag}/runs/{run_id}, "
                f"or the files under {self.settings.state_dir}/airflow/logs/dag_id={dag}/run_id={run_id}"
            )
        self._say(f"  {dag.removesuffix('__' + SURFACE):<20} {run.state} after {time.monotonic() - began:.0f} s")
        return run

    def _await_deploy(self, known: set[str]) -> None:
        """deploy_canary ends at once where the gate did not pass; otherwise it waits for the canary that we have yet to play."""
        dag = self._dag("deploy_canary")
        before = self._document()
        deadline = time.monotonic() + CHAIN_TIMEOUT_S
        while time.monotonic() < deadline:
            document = self._document()
            if document.rollout is not None and document.rollout.phase == "running":
                return
            fresh = [run for run in self.airflow.runs(dag) if run.run_id not in known]
            if fresh and fresh[0].state in DONE:
                if fresh[0].state == "failed" and document.generation == before.generation:
                    self._follow_run(dag, fresh[0].run_id)
                return
            time.sleep(1)
        raise MtfError(f"{dag} neither ended nor began a canary; see {self.airflow.url}/dags/{dag}")

    def _version(self, number: str) -> Version:
        return find_version(self.settings, SURFACE, number)

    def _versions(self) -> set[str]:
        from mtf.registry.client import connect, model_name

        return {str(v.version) for v in connect(self.settings).search_model_versions(f"name = '{model_name(SURFACE)}'")}

    def _detectable(self, run_id: str) -> float | None:
        from mtf.registry.client import connect

        found = connect(self.settings).get_run(run_id).data.metrics.get("power.detectable_lift")
        return None if found is None else float(found)

    def _true_value(self, sha: str) -> TrueValue:
        """By simulation, once a policy; from the bundle that the registry holds."""
        if sha not in self.values:
            policy = registered_policy(self.settings, SURFACE, sha)
            found = true_value(self.world, policy, self.config.truth_users, self.config.truth_seed, dt=DAY)
            self.values[sha] = TrueValue(mean=float(found.mean), se=float(found.se))
        return self.values[sha]

    def _document(self) -> DeploymentDocument:
        found = read_latest(self.store, SURFACE)
        assert found is not None  # `up` wrote the first one
        return found

    def _next_day(self) -> str:
        dt, self.day = self.day.isoformat(), self.day + timedelta(days=1)
        return dt

    def _dag(self, name: str) -> str:
        return f"{name}__{SURFACE}"

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        self.say(f"[{minutes:>2}:{seconds:02}] {text}")


def _require_new(settings: Settings, world: World, written: dict[str, bytes]) -> None:
    """Raises MtfError, before anything is written, where the state folder is of another feed or holds days of an earlier demo."""
    way_out = "`make down clean` first, or set MTF_STATE_DIR to another folder"
    days = sorted({*SpoolReader(settings.spool_dir(SURFACE)).days(), *list_days(settings.logs_dir(SURFACE))})
    if days:
        # a day that is played again meets the same users at the same times, and its requests join the sessions of the first
        raise MtfError(
            f"{settings.state_dir} holds traffic of {days[0]} to {days[-1]}, of a demo that was interrupted or of a feed; a demo "
            f"begins anew: {way_out}"
        )
    spec = settings.state_dir / "surfaces" / SURFACE / "spec.json"
    if spec.exists() and (version := FusionSpec.read(spec).version) != world.spec.version:
        raise MtfError(f"{spec}: version {version}, the world's spec is {world.spec.version}; {way_out}")
    for name, content in written.items():
        path = settings.state_dir / name
        if path.exists() and path.read_bytes() != content:
            raise MtfError(f"{path} is not what this demo would write; {way_out}")


def _settle_world(out: Path, given: Path | None, world: World, say: Say) -> Path:
    """The world's folder in the demo's own: a copy of the given one, or the default preset."""
    folder = out / "world"
    if given is not None:
        shutil.copytree(given, folder, dirs_exist_ok=True)
        say(f"  copied from {given}")
    else:
        world.save(folder)
        say("  parametric, preset `default` (mtf world describe explains it)")
    return folder


def _fit_to(world: World, config: DemoConfig, say: Say) -> DemoConfig:
    """At most as many users a day as the world has: each plays one session a day."""
    names = ("explore_users", "canary_users", "truth_users")
    fitted = {name: min(getattr(config, name), world.n_users) for name in names}
    if fitted["canary_users"] < config.canary_users:
        sizes = f"{fitted['explore_users']:,} explore, {fitted['canary_users']:,} on canary days"
        say(f"  this world has {world.n_users:,} users: {sizes}")
    return msgspec.structs.replace(config, **fitted)


def _describe_world(folder: Path, world: World) -> dict[str, str]:
    digest = hashlib.sha256()
    for name in ("spec.json", "world.json", "world.safetensors"):
        digest.update((folder / name).read_bytes())
    return {"kind": world.params.kind, "name": world.params.name, "folder": folder.name, "sha256": digest.hexdigest()}


def _configuration(config: DemoConfig) -> dict[str, bytes]:
    """The surface's files, as an operator would write them: the learner, the arms, when a canary is decided."""
    compared = round(config.canary_users * (config.comparing.canary + config.comparing.control))
    rules = DecisionRules(tuned_for=compared)
    rollout = RolloutConfig(exploring=config.exploring, comparing=config.comparing, rules=rules)
    pipeline = {"algorithm": config.algorithm, "seed": config.seed}
    files = {"rollout.json": rollout, "pipeline.json": pipeline}
    return {f"surfaces/{SURFACE}/{name}": msgspec.json.format(msgspec.json.encode(value)) for name, value in files.items()}


def _number(text: str) -> float | None:
    """A tag's number; None where the estimate does not exist."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
