"""Aliases and the deployment document: people's moves become intents, the document's facts come back as aliases and tags.

The registered model's tag `generation` says up to which generation of the document the aliases were brought. Where it lags,
an alias that says what the document said in between merely was not moved yet, and is; whatever else it says a person set, and it
stays until it has become an intent. Where it does not lag, an alias that differs from the document was moved by a person.
"""

from __future__ import annotations

from typing import Any

from mtf.registry.client import connect, model_name
from mtf.registry.intents import intent_for_version
from mtf.registry.models import TAG_CHARACTERS, Version
from mtf.rollout.document import DeploymentDocument
from mtf.rollout.documents import read_generation, read_latest
from mtf.rollout.intents import Intent, is_written, new_id, read_answer, submit
from mtf.settings import Settings
from mtf.store import Store, open_store

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous_champion"


def record_change(settings: Settings, before: DeploymentDocument, after: DeploymentDocument) -> None:
    """Write a new generation on the registry: aliases as the document says, and the outcome on the versions' tags."""
    client = connect(settings)
    name = model_name(after.surface)
    change = after.history[-1]
    concerned = {ref.version for ref in (before.canary, after.canary, after.champion) if ref is not None}
    if before.champion != after.champion:
        concerned.add(before.champion.version)
    for version in sorted(concerned & _versions(client, name)):
        client.set_model_version_tag(
            name, version, "rollout", f"generation {change.generation}: {change.what}. {change.reason}"[:TAG_CHARACTERS]
        )
    _bring_aliases(client, open_store(settings=settings), after)


def reconcile(settings: Settings, surface: str) -> list[str]:
    """Turn moves of `challenger` and `champion` into intents, once each; move back what was refused.

    Returns what was done, a line each. Safe to run at any time and as often as one likes.
    """
    client = connect(settings)
    store = open_store(settings=settings)
    name = model_name(surface)
    # the registry first, then the document: a generation written in between then only looks like a lag
    model = client.get_registered_model(name)
    aliases, recorded = dict(model.aliases), int(model.tags.get("generation", 0))
    document = read_latest(store, surface)
    if document is None:
        return []
    if recorded != document.generation:
        _bring_aliases(client, store, document)
        return [f"aliases brought to generation {document.generation}"]
    _forget_answered(client, store, surface, aliases)
    done = []
    challenger, champion = aliases.get(CHALLENGER), aliases.get(CHAMPION)
    # the champion first: a rollback must not wait for what a challenger needs
    if champion is not None and champion != document.champion.version:
        done += _pursue(settings, client, store, document, CHAMPION, champion)
    elif champion is None:
        _bring_aliases(client, store, document)
        done.append(f"alias {CHAMPION} was removed; it is back")
    if challenger is not None and (document.canary is None or document.canary.version != challenger):
        done += _pursue(settings, client, store, document, CHALLENGER, challenger)
    return done


def submit_once(settings: Settings, surface: str, alias: str, version: Version, intent: Intent) -> str:
    """Submit an intent for a version and note it there; where one is noted that waits or runs, return that one's id."""
    client, store = connect(settings), open_store(settings=settings)
    noted = version.tags.get(f"intent_{alias}")
    if noted is not None:
        found, document = read_answer(store, surface, noted), read_latest(store, surface)
        runs = document is not None and document.rollout is not None and document.rollout.id == noted
        if found is None or (found.done and runs):
            # noted before it is written: by one who was killed in between
            return noted if is_written(store, surface, noted) else submit(store, surface, intent, noted)
    return _noted(client, store, surface, alias, version.version, intent)


def _noted(client: Any, store: Store, surface: str, alias: str, version: str, intent: Intent) -> str:
    """A new intent, noted on the version before it is written: killed in between, it is written later and not a second time."""
    name = new_id()
    note_intent(client, surface, alias, version, name)
    return submit(store, surface, intent, name)


def note_intent(client: Any, surface: str, alias: str, version: str, intent_id: str) -> None:
    """Remember on a version that its alias has become an intent, so that it becomes only one."""
    client.set_model_version_tag(model_name(surface), version, f"intent_{alias}", intent_id)


def _forget_answered(client: Any, store: Store, surface: str, aliases: dict[str, str]) -> None:
    """Delete notes of answered intents from versions that do not carry the alias any more: the answer is to a move of then, and
    must not be taken for one to the next."""
    name = model_name(surface)
    for version in client.search_model_versions(f"name = '{name}'"):
        for alias in (CHALLENGER, CHAMPION):
            noted = version.tags.get(f"intent_{alias}")
            moved_on = noted is not None and str(aliases.get(alias)) != str(version.version)
            if moved_on and read_answer(store, surface, noted) is not None:
                client.delete_model_version_tag(name, str(version.version), f"intent_{alias}")


def _pursue(settings: Settings, client: Any, store: Store, document: DeploymentDocument, alias: str, version: str) -> list[str]:
    """One alias that differs from the document: an intent if there is none, a wait while it is open, else a clean-up."""
    surface, name = document.surface, model_name(document.surface)
    noted = client.get_model_version(name, version).tags.get(f"intent_{alias}")
    answer = read_answer(store, surface, noted) if noted is not None else None
    if noted is not None and answer is None:
        if not is_written(store, surface, noted):
            submit(store, surface, _intent(settings, document, alias, version), noted)
        return []
    if answer is not None and answer.generation > document.generation:
        return []  # carried out since the document was read
    if answer is None or answer.done:
        # none yet, or one that is history: the document has gone on since, and somebody moved the alias here again
        intent_id = _noted(client, store, surface, alias, version, _intent(settings, document, alias, version))
        return [f"alias {alias} -> version {version} became intent {intent_id}"]
    client.delete_model_version_tag(name, version, f"intent_{alias}")
    client.set_model_version_tag(name, version, "rollout", f"refused: {answer.reason}"[:TAG_CHARACTERS])
    if alias == CHAMPION:
        client.set_registered_model_alias(name, CHAMPION, document.champion.version)
    elif document.canary is None:
        client.delete_registered_model_alias(name, CHALLENGER)
    else:
        client.set_registered_model_alias(name, CHALLENGER, document.canary.version)
    return [f"alias {alias} -> version {version} refused and moved back: {answer.reason}"]


def _intent(settings: Settings, document: DeploymentDocument, alias: str, version: str) -> Intent:
    reason = f"alias {alias} was set on version {version}"
    if alias == CHALLENGER:
        return intent_for_version(settings, document.surface, version, action="start", by="registry", reason=reason)
    if document.previous is not None and document.previous.version == version:
        return Intent(action="rollback", by="registry", reason=reason)
    return intent_for_version(settings, document.surface, version, action="promote", by="registry", reason=reason)


def _bring_aliases(client: Any, store: Store, document: DeploymentDocument) -> None:
    """Make the aliases say what the document says, but for those that a person has set; then note its generation."""
    name = model_name(document.surface)
    model = client.get_registered_model(name)
    aliases, known = dict(model.aliases), _versions(client, name)
    recorded = int(model.tags.get("generation", 0))
    first_time = not 0 < recorded <= document.generation
    since = [read_generation(store, document.surface, g) for g in range(recorded, document.generation)] if not first_time else []
    said = {
        CHAMPION: {d.champion.version for d in since},
        CHALLENGER: {d.canary.version for d in since if d.canary is not None},
    }
    facts = {CHAMPION: document.champion, PREVIOUS: document.previous}
    if document.canary is not None and document.rollout is not None:  # a queued challenger keeps its alias
        facts[CHALLENGER] = document.canary
        if document.canary.version in known:
            note_intent(client, document.surface, CHALLENGER, document.canary.version, document.rollout.id)
    elif CHALLENGER in aliases and (
        str(aliases[CHALLENGER]) in said[CHALLENGER] or _is_over(client, name, aliases[CHALLENGER], document)
    ):
        client.delete_registered_model_alias(name, CHALLENGER)
        client.delete_model_version_tag(name, str(aliases[CHALLENGER]), f"intent_{CHALLENGER}")
    for alias, ref in facts.items():
        now = aliases.get(alias)
        lags = now is None or first_time or alias == PREVIOUS or str(now) in said[alias]
        if ref is not None and ref.version in known and now != ref.version and lags:
            client.set_registered_model_alias(name, alias, ref.version)
    client.set_registered_model_tag(name, "generation", str(document.generation))


def _is_over(client: Any, name: str, version: str, document: DeploymentDocument) -> bool:
    """Has the challenger's own rollout ended? One without an intent was just set by a person."""
    intent_id = client.get_model_version(name, version).tags.get(f"intent_{CHALLENGER}")
    rollout = document.rollout
    return rollout is not None and rollout.id == intent_id and rollout.outcome is not None


def _versions(client: Any, name: str) -> set[str]:
    return {str(found.version) for found in client.search_model_versions(f"name = '{name}'")}
