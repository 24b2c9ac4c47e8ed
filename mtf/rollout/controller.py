"""The rollout controller: the only writer of a surface's deployment document.

A tick reads open intents and newly committed log rows, and moves the state machine

    idle --start--> running --promote | roll back | abort--> idle          (freeze: running, but nothing is decided)

Everything that it knows is in the store and the spool: killed at any point, it goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import pyarrow as pa

from mtf.errors import InputError, MtfError
from mtf.rollout import intents
from mtf.rollout.document import Arms, Change, DeploymentDocument, Exploration, Outcome, PolicyRef, Rollout, Salts
from mtf.rollout.documents import fetch_bundle, read_latest, write_next
from mtf.rollout.intents import Answer, Intent
from mtf.rollout.start import new_salt
from mtf.rollout.statistics import Comparison, DecisionRules, decide
from mtf.rollout.users import Sample
from mtf.settings import Settings
from mtf.spec import FusionSpec
from mtf.store import open_store

HISTORY = 50
# after a look at more than LARGE_SAMPLE users, LOOK_PAUSE times as long without one: other work needs the processor too
LARGE_SAMPLE, LOOK_PAUSE = 5000, 4.0
log = logging.getLogger(__name__)


class RolloutConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """exploring: shares while nothing is compared. comparing: shares during a rollout (canary and control are equal).

    last_look_h: hours of the event clock, from the rollout's start (where it is simulated: of that day), after which it must be
    decided.
    Raises ValueError where shares are below 0, sum to more than 1, or do not fit their phase.
    """

    exploring: Arms = Arms(explore=0.9)
    comparing: Arms = Arms(explore=0.25, canary=0.375, control=0.375)
    rules: DecisionRules = DecisionRules()
    last_look_h: Annotated[float, msgspec.Meta(gt=0)] = 24.0

    def __post_init__(self) -> None:
        for name in ("exploring", "comparing"):
            shares = msgspec.structs.astuple(getattr(self, name))
            if min(shares) < 0 or sum(shares) > 1 + 1e-9:
                raise ValueError(f"{name}: shares {shares} must be 0 or more and sum to at most 1")
        if self.exploring.canary or self.exploring.control:
            raise ValueError("exploring: canary and control are 0 while nothing is compared; give them in comparing")
        if not 0 < self.comparing.canary == self.comparing.control:
            raise ValueError(
                f"comparing: canary {self.comparing.canary} and control {self.comparing.control} must be equal and more than 0: "
                "the sample ratio is tested against an equal split"
            )


def read_config(path: Path) -> RolloutConfig:
    """RolloutConfig from a JSON file; the defaults where there is none. Raises InputError naming the field."""
    if not path.exists():
        return RolloutConfig()
    try:
        return msgspec.json.decode(path.read_bytes(), type=RolloutConfig)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: {error}; docs/rollout.md has an example") from error


class CommittedRows(Protocol):
    """What the controller needs of the spool's reader."""

    def poll(self, cursor: dict[str, int]) -> tuple[list[pa.Table], list[pa.Table], dict[str, int]]: ...

    def watermark(self) -> int: ...


@dataclass
class _Running:
    """The rows of the rollout in progress; rebuilt from the spool after a restart."""

    sample: Sample
    cursor: dict[str, int]
    looked_at: int = 0
    next_look: float = 0.0


class Controller:
    """One a surface. `on_change(before, after)` is told of every new generation (the registry's tags)."""

    def __init__(
        self,
        settings: Settings,
        surface: str,
        spec: FusionSpec,
        rows: CommittedRows,
        config: RolloutConfig,
        on_change: Callable[[DeploymentDocument, DeploymentDocument], None] | None = None,
    ) -> None:
        self.store = open_store(settings=settings)
        self.settings, self.surface, self.spec, self.rows, self.config = settings, surface, spec, rows, config
        self._on_change = on_change
        self._running: _Running | None = None

    def tick(self) -> DeploymentDocument | None:
        """One step; returns the document in force. Safe to call at any time and as often as one likes."""
        document = read_latest(self.store, self.surface)
        if document is None:
            return None
        for name, intent in intents.open_intents(self.store, self.surface):
            document = self._handle(document, name, intent)
        if document.rollout and document.rollout.phase == "running":
            document = self._look(document, document.rollout)
        return document

    # intents

    def _handle(self, document: DeploymentDocument, name: str, intent: Intent) -> DeploymentDocument:
        if (carried_out := next((change for change in document.history if change.intent == name), None)) is not None:
            # killed between the document and the answer: a rollback that is handled twice would undo itself
            self._answer(name, carried_out)
            return document
        running = document.rollout is not None and document.rollout.phase != "idle"
        if intent.action == "start" and running:
            newer = [n for n, i in intents.open_intents(self.store, self.surface) if i.action == "start" and n > name]
            if newer:
                return self._refuse(document, name, "superseded by a newer candidate before its canary began")
            return document  # queued: stays open until the running rollout ends
        try:
            match intent.action:
                case "start":
                    after = self._start(document, name, intent)
                case "promote":
                    after = self._promote_by_hand(document, intent)
                case "rollback":
                    after = self._roll_back_by_hand(document, intent)
                case "abort":
                    after = self._abort(document, intent)
                case "freeze" | "unfreeze":
                    after = self._freeze(document, intent)
                case "explore":
                    after = self._next(document, "box changed", intent.reason, exploration=intent.exploration)
        except MtfError as refusal:
            return self._refuse(document, name, str(refusal))
        change = msgspec.structs.replace(after.history[-1], intent=name)
        after = msgspec.structs.replace(after, history=(*after.history[:-1], change))
        self._write(document, after)
        self._answer(name, change)
        return after

    def _answer(self, name: str, change: Change) -> None:
        intents.answer(self.store, self.surface, name, Answer(done=True, reason=change.what, generation=change.generation))

    def _start(self, document: DeploymentDocument, name: str, intent: Intent) -> DeploymentDocument:
        candidate = self._gated(document, intent)
        if candidate.sha == document.champion.sha:
            raise MtfError("the candidate is the champion already; nothing to compare")
        return self._next(
            document,
            f"canary of version {candidate.version} started",
            intent.reason,
            canary=candidate,
            arms=self.config.comparing,
            salts=Salts(explore=document.salts.explore, rollout=new_salt(), holdback=document.salts.holdback),
            rollout=Rollout(
                id=name,
                phase="running",
                started_ts=_iso(self._clock_us()),
                statistics={"exploration": msgspec.to_builtins(intent.exploration)} if intent.exploration else {},
            ),
        )

    def _promote_by_hand(self, document: DeploymentDocument, intent: Intent) -> DeploymentDocument:
        candidate = self._gated(document, intent)
        rollout = document.rollout
        if rollout and rollout.phase != "idle" and (document.canary is None or document.canary.sha != candidate.sha):
            raise MtfError(
                f"a canary of version {document.canary.version if document.canary else '?'} is running; abort it first"
            )
        return self._promoted(document, candidate, intent.exploration, intent.reason or "promoted by hand", rollout)

    def _gated(self, document: DeploymentDocument, intent: Intent) -> PolicyRef:
        """The intent's policy, if its gate passed against today's champion and its bundle loads."""
        assert intent.policy is not None  # submit() saw to it
        if intent.gate_verdict != "pass":
            raise MtfError(f"version {intent.policy.version}: its gate says {intent.gate_verdict or 'nothing'}, not pass")
        if intent.gate_baseline_sha != document.champion.sha:
            raise MtfError(
                f"version {intent.policy.version} passed its gate against {intent.gate_baseline_sha}, "
                f"the champion is {document.champion.sha}; evaluate it again"
            )
        policy = fetch_bundle(self.store, intent.policy, self.settings.bundles_dir)
        if policy.spec is None or policy.spec.version != document.spec_version:
            found = policy.spec.version if policy.spec else "none"
            raise MtfError(
                f"version {intent.policy.version} was trained with spec {found}, the surface has {document.spec_version}"
            )
        return intent.policy

    def _roll_back_by_hand(self, document: DeploymentDocument, intent: Intent) -> DeploymentDocument:
        if document.previous is None:
            raise MtfError("there is no previous champion to return to")
        return self._next(
            document,
            f"returned to version {document.previous.version}",
            intent.reason or "rolled back by hand",
            champion=document.previous,
            previous=document.champion,
            canary=None,
            arms=self.config.exploring,
            rollout=_ended(document.rollout, "rolled_back", "the champion was rolled back by hand"),
        )

    def _abort(self, document: DeploymentDocument, intent: Intent) -> DeploymentDocument:
        if document.rollout is None or document.rollout.phase == "idle":
            raise MtfError("no rollout is running")
        return self._kept(document, document.rollout, "aborted", intent.reason or "aborted by hand", None)

    def _freeze(self, document: DeploymentDocument, intent: Intent) -> DeploymentDocument:
        wanted, opposite = ("frozen", "running") if intent.action == "freeze" else ("running", "frozen")
        if document.rollout is None or document.rollout.phase != opposite:
            raise MtfError(f"no rollout is {opposite}")
        return self._next(document, wanted, intent.reason, rollout=msgspec.structs.replace(document.rollout, phase=wanted))

    def _refuse(self, document: DeploymentDocument, name: str, reason: str) -> DeploymentDocument:
        log.warning("intent %s refused: %s", name, reason)
        intents.answer(self.store, self.surface, name, Answer(done=False, reason=reason, generation=document.generation))
        return document

    # the rollout in progress

    def _look(self, document: DeploymentDocument, rollout: Rollout) -> DeploymentDocument:
        running = self._running
        if running is None or running.sample.rollout_id != rollout.id:
            running = self._running = _Running(Sample(self.spec, rollout.id), {})
        watermark = self.rows.watermark()  # before the poll: rows of complete windows are then in
        requests, feedback, running.cursor = self.rows.poll(running.cursor)
        running.sample.add(requests, feedback)
        last_look = watermark >= self._deadline_us(rollout)
        began = time.monotonic()
        # intervals hold whenever one looks; a look reads the whole sample, so the larger it is the rarer they are
        if watermark == running.looked_at or (began < running.next_look and not last_look):
            return document
        found = running.sample.compare(self.config.rules, watermark_us=watermark)
        seconds = time.monotonic() - began
        running.looked_at = watermark
        large = found.enrolled_canary + found.enrolled_control > LARGE_SAMPLE
        running.next_look = began + seconds * (1 + LOOK_PAUSE) if large else 0.0
        decision, reason = decide(found, self.config.rules, last_look=last_look)
        self._progress(rollout, found, decision, reason)
        if decision == "wait":
            return document
        if decision == "promote":
            assert document.canary is not None  # a running rollout has one
            after = self._promoted(document, document.canary, _box(rollout), reason, rollout, found)
        else:
            after = self._kept(document, rollout, "rolled_back", reason, found)
        self._write(document, after)
        self._running = None
        return after

    def _progress(self, rollout: Rollout, found: Comparison, decision: str, reason: str) -> None:
        """The last look, for the pages; not a generation of its own."""
        look = {"rollout": rollout.id, "decision": decision, "reason": reason, "comparison": msgspec.to_builtins(found)}
        self.store.put(f"deploy/{self.surface}/progress/{rollout.id}.json", msgspec.json.encode(look))

    def _deadline_us(self, rollout: Rollout) -> int:
        """The end of the rollout's time: last_look_h from its start, and time for the last sessions to close.

        Of a simulated clock, which is told whole days, from the midnight (UTC) at or before it.
        """
        began = datetime.fromisoformat(rollout.started_ts)
        if self.settings.clock == "simulated":
            began = began.replace(hour=0, minute=0, second=0, microsecond=0)
        gap = timedelta(seconds=self.spec.session_gap_s)
        return _us(began + timedelta(hours=self.config.last_look_h) + min(gap, timedelta(hours=1)))

    # transitions of the document

    def _promoted(
        self,
        document: DeploymentDocument,
        candidate: PolicyRef,
        exploration: Exploration | None,
        reason: str,
        rollout: Rollout | None,
        found: Comparison | None = None,
    ) -> DeploymentDocument:
        return self._next(
            document,
            f"version {candidate.version} promoted",
            reason,
            champion=candidate,
            previous=document.champion,
            canary=None,
            exploration=exploration or document.exploration,
            arms=self.config.exploring,
            salts=Salts(explore=new_salt(), rollout=new_salt(), holdback=document.salts.holdback),
            rollout=_ended(rollout, "promoted", reason, found),
        )

    def _kept(
        self, document: DeploymentDocument, rollout: Rollout, outcome: Outcome, reason: str, found: Comparison | None
    ) -> DeploymentDocument:
        version = document.canary.version if document.canary else "?"
        return self._next(
            document,
            f"version {version} {outcome.replace('_', ' ')}",
            reason,
            canary=None,
            arms=self.config.exploring,
            salts=Salts(explore=new_salt(), rollout=new_salt(), holdback=document.salts.holdback),
            rollout=_ended(rollout, outcome, reason, found),
        )

    def _next(self, document: DeploymentDocument, what: str, reason: str, **changes: object) -> DeploymentDocument:
        generation, at = document.generation + 1, datetime.now(UTC).isoformat()
        change = Change(generation=generation, at=at, what=what, reason=reason)
        history = (*document.history, change)[-HISTORY:]
        return msgspec.structs.replace(document, generation=generation, at=at, history=history, **changes)

    def _write(self, before: DeploymentDocument, after: DeploymentDocument) -> None:
        write_next(self.store, after)
        log.info("generation %d: %s (%s)", after.generation, after.history[-1].what, after.history[-1].reason)
        if self._on_change is not None:
            try:
                self._on_change(before, after)
            except Exception:  # the registry may be away; the document is the truth
                log.exception("generation %d is in force, but telling the registry failed", after.generation)

    def _clock_us(self) -> int:
        if self.settings.clock == "simulated":
            return self.rows.watermark()
        return _us(datetime.now(UTC))


def _ended(rollout: Rollout | None, outcome: Outcome, reason: str, found: Comparison | None = None) -> Rollout | None:
    if rollout is None or rollout.phase == "idle":  # what an earlier one came to stays as it is
        return rollout
    statistics = rollout.statistics | ({"comparison": msgspec.to_builtins(found)} if found else {})
    return msgspec.structs.replace(rollout, phase="idle", outcome=outcome, reason=reason, statistics=statistics)


def _box(rollout: Rollout) -> Exploration | None:
    kept = rollout.statistics.get("exploration")
    return msgspec.convert(kept, Exploration) if kept else None


def _iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()


def _us(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6)
