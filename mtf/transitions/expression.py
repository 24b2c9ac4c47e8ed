"""Logs to transitions as one Ibis expression, the same on every engine.

The stages, each a function from tables to a table: `repeated` and `one_of` (one row an id) -> `impressions` (feedback that
answers a request) -> `outcomes` (one row a shown request) -> `steps` (sessions) -> `transitions`. Every sum is a sum of
integers and every order is total, so that the same rows give the same result whatever their order, the number of threads
or the engine.

Windows run over narrow columns only; the wide ones (lists, candidates) join by request_id at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ibis

from mtf.contracts import transitions_schema
from mtf.spec import FusionSpec

if TYPE_CHECKING:
    import ibis.expr.types as ir

# rewards and behaviours are added as integers in units of 1e-6
MICRO = 1_000_000
# watched longer than this is `valid` where the log has no such column (arXiv 2404.17589)
VALID_WATCH_S = 10.0

# columns whose successor's value a transition carries
FOLLOWING = ("state", "center", "lower", "upper")

Stamp = Any  # a function of a timestamp column: microseconds since 1970, int64


def repeated(table: ir.Table, keys: Sequence[str]) -> ir.Table:
    """The ids (columns `keys`) that more than one row carries, with `copies`."""
    counts = table.group_by(list(keys)).agg(copies=lambda t: t.count())
    return counts.filter(counts.copies > 1)


def one_of(several: ir.Table, keys: Sequence[str], *, latest: bool) -> ir.Table:
    """One row an id: of the latest (or first) received_at; ties fall by the rows' own content, so not by their order.

    Every row is sorted: give only those whose id has copies.
    """
    received = ibis.desc("received_at") if latest else ibis.asc("received_at")
    content = [several[c] for c in sorted(several.columns) if c != "received_at"]
    ranked = several.mutate(copy=ibis.row_number().over(ibis.window(group_by=list(keys), order_by=[received, *content])))
    return ranked.filter(ranked.copy == 0).drop("copy")


def impressions(feedback: ir.Table, requests: ir.Table) -> ir.Table:
    """Clean feedback with `known` (its request is a clean one) and `shown` (that request did show the item there)."""
    asked = requests.select(asked_id=requests.request_id, items=requests.item_ids)
    joined = feedback.left_join(asked, feedback.request_id == asked.asked_id)
    known = joined.asked_id.notnull()
    in_range = known & (joined.position >= 0) & (joined.position < joined["items"].length())
    # an engine may look the item up where it is out of range, too, and add 1 to do so
    place = ibis.least(joined.position, ibis.literal(2**31 - 2, "int32"))
    shown = in_range & (joined["items"][place] == joined.item_id)
    return joined.mutate(known=known, shown=shown.fill_null(False)).drop("asked_id", "items")


def shown(feedback: ir.Table, requests: ir.Table) -> ir.Table:
    """The impressions that were shown."""
    seen = impressions(feedback, requests)
    return seen.filter(seen.shown).drop("known", "shown")


def outcomes(shown: ir.Table, spec: FusionSpec) -> ir.Table:
    """One row a request that was shown: its impressions in shown order, and its sums in units of 1e-6.

    impressions: list [n] of int64, see `_packed`; n_shown: n; behaviour_<i>, reward_<h>: int64.
    repeated: whether an impression may be there twice; such a request is to be made again, from one row an impression.
    """
    value = {b: (shown.watch_s if b == "watch" else shown[b]).cast("float64") for b in spec.behaviours}
    paid = value | {"watch": ibis.least(value["watch"], ibis.literal(spec.watch_cap_s, "float64"))}
    heads = []
    for head in spec.reward_heads:
        terms = [paid[b] * ibis.literal(float(w), "float64") for b, w in sorted(head.weights.items())]
        heads.append(_micro(sum(terms[1:], start=terms[0])) if terms else ibis.literal(0, "int64"))
    valid = (shown.valid != 0) if "valid" in spec.behaviours else (shown.watch_s > VALID_WATCH_S)
    columns = {f"reward_{h}": head for h, head in enumerate(heads)}
    columns |= {f"behaviour_{i}": _micro(value[b]) for i, b in enumerate(spec.behaviours)}
    # distinct powers of two add up to their union; two positions 48 apart only look like one that is repeated
    power = ibis.literal(1, "int64") << (shown.position % 48).cast("int64")
    packed = _packed(shown.position, valid, sum(heads[1:], start=heads[0]))
    rows = shown.select("request_id", packed=packed, power=power, **columns)
    return rows.group_by("request_id").agg(
        n_shown=rows.count().cast("int32"),
        # a list of integers is collected and sorted several times faster than one of structs, or than an ordered aggregate
        impressions=rows.packed.collect().sort(),
        repeated=rows.power.sum() != _bit_or(rows.power),
        **{name: rows[name].sum().cast("int64") for name in columns},
    )


def steps(requests: ir.Table, spec: FusionSpec, micros: Stamp, end_us: int) -> ir.Table:
    """Shown requests as steps of sessions.

    A pause longer than the spec's gap ends a visit; where policy_sha or arm changes inside a visit, a new session starts.
    session_id, session_start, step; next_request_id: the successor in the same visit, null where terminal; truncated: the
    successor belongs to another session; open: the visit may still go on after `end_us`, the day's end.

    Two passes, and both sort by (user, time, id) only: sorting is most of the work.
    """
    gap = round(spec.session_gap_s * MICRO)
    order: dict[str, Any] = {"group_by": "user_id", "order_by": ["at", "request_id"]}
    each, so_far, all_of_user = ibis.window(**order), ibis.cumulative_window(**order), ibis.window(**order, rows=(None, None))

    narrow = requests.select("request_id", "user_id", "ts", "policy_sha", "arm", at=micros(requests.ts))
    pause = narrow.at - narrow.at.lag().over(each)
    changed = (narrow.policy_sha != narrow.policy_sha.lag().over(each)) | (narrow.arm != narrow.arm.lag().over(each))
    beside = narrow.select(
        "request_id",
        "user_id",
        "ts",
        "at",
        paused=(pause > gap).fill_null(True),
        changed=changed,
        place=ibis.row_number().over(each),
    )
    beside = beside.mutate(started_at=(beside.paused | beside.changed).ifelse(beside.place, None))
    numbered = beside.mutate(
        session_id=beside.request_id.argmax(beside.started_at).over(so_far),
        session_start=beside.ts.argmax(beside.started_at).over(so_far),
        step=(beside.place - beside.started_at.max().over(so_far)).cast("int32"),
        next_request_id=beside.request_id.lead().over(each),
        terminal=beside.paused.lead().over(each).fill_null(True),
        cut=beside.changed.lead().over(each).fill_null(False),
        # only a user's last visit can be open: after any other one comes a request of the same day
        last_visit_at=beside.paused.ifelse(beside["at"], None).max().over(all_of_user),
        last_at=beside["at"].max().over(all_of_user),
    )
    return numbered.select(
        "request_id",
        "session_id",
        "session_start",
        "step",
        next_request_id=numbered.terminal.ifelse(None, numbered.next_request_id),
        truncated=numbered.cut & ~numbered.terminal,
        # a request at exactly the end of the pause would still continue the visit, hence >=
        open=(numbered["at"] >= numbered.last_visit_at) & (numbered.last_at + gap >= end_us),
    )


def endings(closed: ir.Table, requests: ir.Table, outcomes: ir.Table) -> ir.Table:
    """What follows each of the `steps` that `closed` selects: its outcome, and next_<column> of its successor."""
    after = requests.select(after_id=requests.request_id, **{f"next_{c}": requests[c] for c in FOLLOWING})
    joined = closed.join(outcomes, "request_id")
    return joined.left_join(after, joined.next_request_id == after.after_id).drop("after_id")


def transitions(endings: ir.Table, requests: ir.Table, spec: FusionSpec, dt: str) -> ir.Table:
    """The transitions contract, sorted by (session_id, step)."""
    joined = endings.join(requests, "request_id")
    k = spec.n_objectives
    all_shown = joined.n_shown == joined["item_ids"].length()
    some_scores = joined.impressions.map(lambda i: joined.scores[_position(i) * k : (_position(i) + 1) * k]).flatten()
    computed = {
        "dt": ibis.literal(dt),
        "shown_scores": all_shown.ifelse(joined.scores, some_scores),
        "shown_valid": joined.impressions.map(lambda i: (i % 2).cast("float32")),
        "shown_reward": joined.impressions.map(lambda i: _units(_reward(i))),
        "behaviour": ibis.array([_units(joined[f"behaviour_{i}"]) for i in range(len(spec.behaviours))]),
        "reward": ibis.array([_units(joined[f"reward_{h}"]) for h in range(spec.n_heads)]),
        "terminal": joined.next_request_id.isnull(),
    }
    for column in FOLLOWING:
        width = spec.state_width if column == "state" else spec.action_width
        zeros = ibis.literal([0.0] * width, "array<float32>")
        computed[f"next_{column}"] = joined.next_request_id.isnull().ifelse(zeros, joined[f"next_{column}"])
    names = transitions_schema().names
    rows = joined.select(**{name: computed.get(name, joined[name] if name not in computed else None) for name in names})
    return rows.order_by(["session_id", "step"])


# an impression in one int64, in the order of positions: position (10 bits), reward in units of 1e-6 (52 bits), valid (1 bit)
_REWARD_BITS = 52


def _packed(position: ir.IntegerValue, valid: ir.BooleanValue, reward: ir.IntegerValue) -> ir.IntegerValue:
    half = 2 ** (_REWARD_BITS - 1)
    # an item's reward beyond 2e9 is cut here; the request's sums are not
    shifted = ibis.greatest(ibis.least(reward, half - 1), -half) + half
    return (position.cast("int64") * 2**_REWARD_BITS + shifted) * 2 + valid.cast("int64")


def _position(packed: ir.IntegerValue) -> ir.IntegerValue:
    return (packed >> (_REWARD_BITS + 1)).cast("int32")


def _reward(packed: ir.IntegerValue) -> ir.IntegerValue:
    return (packed >> 1) % 2**_REWARD_BITS - 2 ** (_REWARD_BITS - 1)


def _micro(value: ir.NumericValue) -> ir.IntegerValue:
    return (value * MICRO).round().cast("int64")


def _units(micro: ir.IntegerValue) -> ir.FloatingValue:
    return (micro.cast("float64") / MICRO).cast("float32")


@ibis.udf.agg.builtin(name="bit_or", signature=(("int64",), "int64"))
def _bit_or(values):  # type: ignore[no-untyped-def]
    """The union of the bits. Ibis knows it for some engines only, but they agree on its name."""
