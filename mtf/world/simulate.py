"""A day of simulated users served in-process by the engine that the server runs: clean logs, no network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from mtf.contracts import feedback_schema
from mtf.errors import InputError
from mtf.fileio import write_atomic
from mtf.logs.days import Manifest, write_day
from mtf.policy import Policy, bootstrap_policy
from mtf.rollout.document import Arms, DeploymentDocument, Exploration, PolicyRef, Salts
from mtf.serving.engine import Engine, RankBatch
from mtf.world import draws
from mtf.world.rows import feedback_rows
from mtf.world.world import World, day_number

EXPLORE_SHARE = 0.9
WIDTH = 4096


def simulate(
    world: World, policy: Policy, users: int, dt: str, seed: int, box: float = 0.0, *, progress: bool = False
) -> tuple[pa.Table, pa.Table]:
    """The day's (requests, feedback) in the contract's form: one session each of `users` users, served by `policy`.

    box: half-width of the exploration box around the policy, for nine users in ten; 0 = nobody explores.
    The same arguments give the same tables. Raises InputError.
    """
    if not 0 <= box <= 1:
        raise InputError(f"box: half-width {box}; keep it between 0 (no exploration) and 1")
    if policy.spec is not None and policy.spec.version != world.spec.version:
        raise InputError(
            f"policy: made for spec {policy.spec.version}, this world's is {world.spec.version}; simulate it in its own world"
        )
    document, policies = deployment(world, policy, box, dt)
    engine = Engine(world.spec, document, policies)
    return run(world, engine, users, dt, seed, progress=progress)


def run(world: World, engine: Engine, users: int, dt: str, seed: int, *, progress: bool = False) -> tuple[pa.Table, pa.Table]:
    """`simulate` for an engine that the caller made, with any document: canaries, several arms."""
    rng = np.random.default_rng(int(draws.keys(seed, day_number(dt), 3)[0]))
    cohort = world.cohort(world.sample_users(users, dt, seed), dt=dt, seed=seed, width=WIDTH)
    requests, feedback = [], []
    with tqdm(total=users, unit="session", desc=f"simulate {dt}", disable=not progress) as bar:
        while cohort.active:
            seen = cohort.observe()
            batch = RankBatch(seen.user_ids, seen.ts_us, seen.given, seen.item_ids, seen.scores)
            decided = engine.decide(batch, rng, received_us=seen.ts_us)
            requests.append(decided.rows)
            response = cohort.respond(seen, decided.shown)
            feedback.append(feedback_rows(world.spec, pa.array(decided.request_ids), response))
            bar.update(cohort.ended - bar.n)
    rows = pa.concat_tables(feedback)
    rows = rows.append_column("received_at", pc.add(rows.column("ts"), pa.scalar(1_000_000, pa.duration("us"))))
    return pa.concat_tables(requests), rows.select(feedback_schema(world.spec.behaviours).names)


def simulate_day(
    world: World, policy: Policy, users: int, dt: str, seed: int, box: float, logs_dir: Path, *, progress: bool = False
) -> Manifest:
    """Simulate and write the day, sealed, into the logs folder `logs_dir`, with the bundle-independent spec beside it."""
    requests, feedback = simulate(world, policy, users, dt, seed, box, progress=progress)
    manifest = write_day(logs_dir, dt, requests, feedback, world.spec, surface=world.spec.surface)
    if not (Path(logs_dir) / "spec.json").exists():
        write_atomic(Path(logs_dir) / "spec.json", world.spec.to_json())
    return manifest


def deployment(world: World, policy: Policy, box: float, dt: str) -> tuple[DeploymentDocument, dict[str, Policy]]:
    """The document that serves `policy` to everybody, nine in ten with the box around it, and its policies by hash."""
    start = bootstrap_policy(world.spec)
    version = "bootstrap" if policy.sha == start.sha else policy.sha[:12]
    half_width = (float(box),) * world.spec.action_width
    exploration = Exploration(sha=hashlib.sha256(msgspec.json.encode(half_width)).hexdigest(), half_width=half_width)
    document = DeploymentDocument(
        surface=world.spec.surface,
        generation=1,
        at=f"{dt}T00:00:00+00:00",
        spec_version=world.spec.version,
        champion=PolicyRef(sha=policy.sha, version=version, uri=f"simulated:{version}"),
        bootstrap=PolicyRef(sha=start.sha, version="bootstrap", uri="simulated:bootstrap"),
        exploration=exploration if box > 0 else None,
        arms=Arms(explore=EXPLORE_SHARE if box > 0 else 0.0),
        salts=Salts(explore="simulated-explore", rollout="simulated-rollout", holdback="simulated-holdback"),
    )
    return document, {policy.sha: policy, start.sha: start}
