"""Has a feature moved away from its last weeks? Two measures a day, neither of which grows with the number of rows.

psi    the population stability index over deciles of the reference, `sum_b (p_b - q_b) ln(p_b / q_b)`, less what it is on
       average where nothing moved, (bins - 1) (1 / n + 1 / m)
shift  how far the day's mean lies beyond the band in which another such day's mean is expected (99.9 %, both sides), in
       standard deviations of the feature. The band is Student's prediction interval on the means of the reference *days*,
       `t sqrt(v (1 + 1 / D))`, v their variance: ordinary days differ by more than the sampling error of many rows

A day on which either exceeds its limit is a violation. The alarm is for a feature that is violating now and was on enough
of the last days (`expectations/drift.json`). The reference ends where these last days begin, so that a feature that has
moved is not compared with itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from mtf.errors import InputError
from mtf.quality.rules import read_suite, suite_path
from mtf.quality.sketch import KINDS, POINTS, Entry, Key

BINS = 10
CONFIDENCE = 0.999
ROUNDING = 1e-9
# of a constant that changed: its shift has no scale, and JSON no infinity
MOST = 1000.0


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """meta.violation of an expectation in drift.json: what counts as a violation, and what is compared with what.

    of_days: the last days, today among them, in which violations are counted. reference_days: at most so many usable days
    before those; at_least_days of them, of at_least_users users each, are needed.
    """

    psi: float
    shift: float
    of_days: int
    reference_days: int
    at_least_days: int
    at_least_users: int


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """How one feature stands against its reference of `days` days. mean, usual: of the day, and of the reference."""

    kind: str
    name: str
    group: str
    psi: float
    shift: float
    mean: float
    usual: float
    sd: float
    users: int
    days: int

    @property
    def key(self) -> Key:
        """As `Entry.key`."""
        return self.kind, self.name, self.group

    def violates(self, limits: Limits) -> bool:
        """Is the day a violation?"""
        return self.psi > limits.psi or abs(self.shift) > limits.shift


@dataclass(frozen=True)
class Drift:
    """moved: every feature that has a reference. counts: its violating days, 0 where today is none. limits: by kind.

    absent: {kind: why no feature of it can be judged yet}.
    """

    moved: list[Moved] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    limits: dict[str, Limits] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def read_limits(expectations_dir: Path) -> dict[str, Limits]:
    """{kind: limits} of drift.json: one rule a kind, named like its column. Raises InputError."""
    found: dict[str, Limits] = {}
    for i, expectation in enumerate(read_suite(expectations_dir, "drift")):
        where, kind = f"{suite_path(expectations_dir, 'drift')}, expectation {i}", expectation["kwargs"].get("column")
        if kind not in KINDS or kind in found or expectation["meta"]["rule"] != kind:
            raise InputError(f"{where}: column = {kind!r}; give one rule to each of {', '.join(KINDS)}, with its name")
        try:
            found[kind] = msgspec.convert(expectation["meta"].get("violation", {}), Limits)
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: meta.violation: {error}; it takes {', '.join(Limits.__struct_fields__)}") from None
    return found


def judge(
    today: Mapping[Key, Entry],
    earlier: Sequence[Mapping[Key, Entry]],
    measured: Sequence[Sequence[Moved]],
    limits: Mapping[str, Limits],
) -> Drift:
    """earlier: the sketches of the usable days before, oldest first; measured: what was found on each of them."""
    drift = Drift(limits=dict(limits))
    for kind, limit in limits.items():
        reference = reference_of(earlier, limit)
        mine = measure({key: e for key, e in today.items() if e.kind == kind}, reference, limit)
        drift.moved.extend(mine)
        drift.counts.extend(violations(m, measured, limit) for m in mine)
        if not mine:
            drift.absent[kind] = _why(kind, today, reference, limit)
    return drift


def _why(kind: str, today: Mapping[Key, Entry], reference: Sequence[Mapping[Key, Entry]], limits: Limits) -> str:
    if not any(e.kind == kind and e.n >= limits.at_least_users for e in today.values()):
        return f"fewer than {limits.at_least_users} users to measure it on"
    if len(reference) < limits.at_least_days:
        return f"needs {limits.at_least_days} usable days before the last {limits.of_days}, there are {len(reference)}"
    with_it = Counter(e.group for day in reference for e in day.values() if e.kind == kind)
    return f"no policy and box of today was served on {limits.at_least_days} of the reference days (they know {len(with_it)})"


def reference_of(earlier: Sequence[Mapping[Key, Entry]], limits: Limits) -> Sequence[Mapping[Key, Entry]]:
    """The days, of all `earlier` ones (oldest first), that today is compared with."""
    before = earlier[: max(len(earlier) - (limits.of_days - 1), 0)]
    return before[-limits.reference_days :]


def measure(today: Mapping[Key, Entry], reference: Sequence[Mapping[Key, Entry]], limits: Limits) -> list[Moved]:
    """Every feature of `today` that has a reference: enough days that have it, for enough users."""
    found = []
    for key, entry in today.items():
        days = [day[key] for day in reference if key in day and day[key].n >= limits.at_least_users]
        if entry.n < limits.at_least_users or len(days) < max(limits.at_least_days, 2):
            continue
        means = np.array([d.mean for d in days])
        sd = float(np.sqrt(np.mean([d.sd**2 for d in days]) + means.var()))
        found.append(
            Moved(
                kind=entry.kind,
                name=entry.name,
                group=entry.group,
                psi=psi(entry, days),
                shift=shift(entry, days),
                mean=entry.mean,
                usual=float(means.mean()),
                sd=sd,
                users=entry.n,
                days=len(days),
            )
        )
    return found


def violations(today: Moved, before: Sequence[Sequence[Moved]], limits: Limits) -> int:
    """Violating days among the last `of_days`; 0 where today is none. before: what the days before measured, oldest first."""
    if not today.violates(limits):
        return 0
    last = before[-(limits.of_days - 1) :] if limits.of_days > 1 else []
    return 1 + sum(any(m.key == today.key and m.violates(limits) for m in day) for day in last)


def psi(day: Entry, reference: Sequence[Entry]) -> float:
    """The index of `day` against the reference days together, less its expectation where nothing moved; not below 0."""
    weight = np.array([e.n for e in reference], float)
    points = np.concatenate([e.quantiles for e in reference])
    order = np.argsort(points, kind="stable")
    mass = np.cumsum(np.repeat(weight, POINTS)[order])
    at = np.searchsorted(mass, np.arange(1, BINS) / BINS * mass[-1])
    edges = np.unique(points[order][at])
    usual = _bins(np.average([e.share_up_to(edges) for e in reference], axis=0, weights=weight))
    now = _bins(day.share_up_to(edges))
    # a bin that is empty on both sides tells nothing, and adds nothing
    full = (usual > 0) | (now > 0)
    p, q = _smooth(now[full], day.n), _smooth(usual[full], weight.sum())
    noise = (full.sum() - 1) * (1 / day.n + 1 / weight.sum())
    return max(float(((p - q) * np.log(p / q)).sum() - noise), 0.0)


def shift(day: Entry, reference: Sequence[Entry]) -> float:
    """Standard deviations by which the day's mean lies outside the band of the reference days' means; 0 inside it."""
    from scipy.stats import t

    means = np.array([e.mean for e in reference])
    days = len(means)
    sampling = np.mean([e.sd**2 / e.n for e in reference])
    between = max(float(means.var(ddof=1)), float(sampling))
    # a day of fewer users than the others have is less exact than they are
    variance = between * (1 + 1 / days) + max(0.0, day.sd**2 / day.n - float(sampling))
    band = t.ppf(0.5 + CONFIDENCE / 2, days - 1) * np.sqrt(variance)
    sd = np.sqrt(np.mean([e.sd**2 for e in reference]) + means.var())
    off = float(day.mean - means.mean())
    beyond = abs(off) - float(band)
    # a constant has no spread, and means that differ in the last digits
    if beyond <= ROUNDING * (abs(day.mean) + sd):
        return 0.0
    size = min(beyond / float(sd), MOST) if sd > 0 else MOST
    return size if off > 0 else -size


def _bins(up_to: np.ndarray) -> np.ndarray:
    """Shares of the bins below, between and above the edges."""
    return np.clip(np.diff(up_to, prepend=0, append=1), 0, 1)


def _smooth(shares: np.ndarray, n: float) -> np.ndarray:
    """Half a row is added to each bin, so that none is empty."""
    return (shares * n + 0.5) / (n + 0.5 * len(shares))
