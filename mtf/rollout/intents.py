"""Intents: what people, pages and DAGs ask of the controller. An object written once, read by the controller alone.

An intent is open until the controller writes its answer beside it (`answers/<id>.json`).
"""

from __future__ import annotations

from typing import Literal

import msgspec
import uuid_utils

from mtf.errors import InputError
from mtf.rollout.document import Exploration, PolicyRef
from mtf.store import Store

Action = Literal["start", "promote", "rollback", "abort", "freeze", "unfreeze", "explore"]


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """start: begin a canary of `policy`, with `exploration` in force at its promotion.
    promote: make `policy` the champion at once (it must have passed its gate). rollback: return to the previous champion.
    abort: end the running rollout, keep the champion. freeze/unfreeze: stop and resume decisions. explore: `exploration`
    becomes the champion's box from the next generation on.

    gate_verdict, gate_baseline_sha: what the gate said of `policy`, and the hash of the champion that it was compared with;
    start and promote are refused unless it passed against today's champion. data_dt: the last day of its data.
    """

    action: Action
    policy: PolicyRef | None = None
    exploration: Exploration | None = None
    gate_verdict: str | None = None
    gate_baseline_sha: str | None = None
    data_dt: str | None = None
    by: str = ""
    reason: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an intent."""

    done: bool
    reason: str
    generation: int


def new_id() -> str:
    """An id for an intent; ids are in the order of time."""
    return str(uuid_utils.uuid7())


def submit(store: Store, surface: str, intent: Intent, name: str | None = None) -> str:
    """Write an intent; returns its id, `name` where given. Raises InputError where it lacks what its action needs."""
    if intent.action in ("start", "promote") and intent.policy is None:
        raise InputError(f"intent {intent.action}: `policy` is missing; name the bundle's hash, version and URI")
    if intent.action == "explore" and intent.exploration is None:
        raise InputError("intent explore: `exploration` is missing; give the hash and half-widths of a box")
    name = name or new_id()
    store.put_new(f"deploy/{surface}/intents/{name}.json", msgspec.json.encode(intent))
    return name


def is_written(store: Store, surface: str, name: str) -> bool:
    """Is there an intent of this id?"""
    return store.exists(f"deploy/{surface}/intents/{name}.json")


def open_intents(store: Store, surface: str) -> list[tuple[str, Intent]]:
    """(id, intent) of every intent without an answer, oldest first."""
    answered = {_name(key) for key in store.list(f"deploy/{surface}/answers/")}
    names = [_name(key) for key in store.list(f"deploy/{surface}/intents/")]
    return [(name, read(store, surface, name)) for name in names if name not in answered]


def read(store: Store, surface: str, name: str) -> Intent:
    """One intent by id."""
    return msgspec.json.decode(store.get(f"deploy/{surface}/intents/{name}.json"), type=Intent)


def answer(store: Store, surface: str, name: str, what: Answer) -> None:
    """Write the answer to an intent."""
    store.put(f"deploy/{surface}/answers/{name}.json", msgspec.json.encode(what))


def read_answer(store: Store, surface: str, name: str) -> Answer | None:
    """The answer, or None while the intent is open."""
    key = f"deploy/{surface}/answers/{name}.json"
    return msgspec.json.decode(store.get(key), type=Answer) if store.exists(key) else None


def _name(key: str) -> str:
    return key.rsplit("/", 1)[-1].removesuffix(".json")
