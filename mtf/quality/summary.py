"""The day's summary page: one self-contained HTML file with inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mtf.quality import docs, trends
from mtf.quality.verdict import Check, Verdict

Z_SHOWN = 3.0
VERDICTS = {
    "pass": "Every expectation holds.",
    "warning": "Usable; something is worth a look.",
    "critical": "Nothing may be built from this day.",
}
TRANSITIONS_VERDICTS = VERDICTS | {"critical": "The dataset may not be published with these transitions."}


def render(verdict: Verdict, links: Mapping[str, str]) -> str:
    """The page. links: {label: href} to the index and to Great Expectations' pages."""
    v = verdict
    of_logs = v.subject == "logs"
    what = f"{'' if of_logs else 'transitions of '}revision {v.revision}"
    nav = " · ".join(f'<a href="{escape(href)}">{escape(label)}</a>' for label, href in links.items())
    parts = [
        f'<nav class="top">{nav}</nav>',
        f'<h1>{escape(v.surface)} · {v.dt} <span class="muted">{what}</span> '
        f'<span class="badge {v.status}">{v.status}</span></h1>',
        f'<p class="lead">{(VERDICTS if of_logs else TRANSITIONS_VERDICTS)[v.status]}</p>',
        _reasons(v),
        _cards(v) if of_logs else _transitions_cards(v),
    ]
    if v.profile:
        plots = [_hours(v.profile["hours"]), _lengths(v.profile["session_lengths"]), _positions(v.profile["positions"])]
        parts += [f'<div class="plots">{"".join(plots)}</div>', trends.lines(v), _quarantine(v), _arms(v.profile["arms"])]
        parts += [trends.drift_table(v)]
    parts += [_checks(v.checks), _skipped(v.skipped)]
    return docs.page(f"{v.surface} {v.dt}: {v.status}", "\n".join(p for p in parts if p), docs.inline_style())


def _reasons(v: Verdict) -> str:
    if not v.reasons:
        return ""
    critical = sum(c.severity == "critical" and not c.success for c in v.checks)
    items = "".join(f'<li class="{"critical" if i < critical else "warning"}">{escape(r)}</li>' for i, r in enumerate(v.reasons))
    return f'<ul class="reasons">{items}</ul>'


def _cards(v: Verdict) -> str:
    m = v.metrics
    cards = [("requests", f"{v.counts['requests']:,}"), ("feedback rows", f"{v.counts['feedback']:,}")]
    cards += [("users", _number(m.get("users"))), ("sessions", _number(m.get("sessions")))]
    cards += [("requests a session", _number(m.get("mean_session_length"), 2)), ("explored", _share(m.get("share_explored")))]
    cards += [("quarantined", f"{v.counts['quarantined_requests'] + v.counts['quarantined_feedback']:,}")]
    cards += [("late rows", f"{v.counts.get('late', 0):,}"), ("watch, s", _number(m.get("mean_watch_s"), 1))]
    cards += [(name.removeprefix("rate_"), _share(value)) for name, value in m.items() if name.startswith("rate_")]
    shown = "".join(f"<div><b>{value}</b><span>{escape(label)}</span></div>" for label, value in cards if value != "-")
    return f'<div class="cards">{shown}</div>'


def _transitions_cards(v: Verdict) -> str:
    m = v.metrics
    cards = [("transitions", f"{v.counts['transitions']:,}"), ("sessions", f"{v.counts['sessions']:,}")]
    cards += [("users", _number(m.get("users"))), ("requests a session", _number(m.get("mean_session_length"), 2))]
    cards += [("reward a request", _number(m.get("mean_reward"), 3)), ("explored", _share(m.get("share_explored")))]
    cards += [("cut inside a visit", _share(m.get("share_truncated"))), ("requests lost", _number(m.get("unaccounted_requests")))]
    shown = "".join(f"<div><b>{value}</b><span>{escape(label)}</span></div>" for label, value in cards if value != "-")
    return f'<div class="cards">{shown}</div>'


def _quarantine(v: Verdict) -> str:
    rows = [(table, rule, n) for table, found in v.quarantined.items() for rule, n in found.items()]
    if not rows:
        return "<h2>Quarantine</h2><p>No row was set aside.</p>"
    reasons = {(c.suite, c.rule): c.reason for c in v.checks}
    most = max(n for _, _, n in rows)
    lines = "".join(
        f'<tr><td>{table}</td><td>{escape(reasons.get((table, rule), rule))}</td><td class="n">{n:,}</td>'
        f'<td><i class="bar" style="width:{max(2, 160 * n / most):.0f}px"></i></td></tr>'
        for table, rule, n in sorted(rows, key=lambda r: -r[2])
    )
    return (
        "<h2>Quarantine</h2><p>Rows set aside, by reason; a row may have several.</p>"
        f'<table><thead><tr><th>Table</th><th>Reason</th><th class="n">Rows</th><th></th></tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


def _arms(arms: Any) -> str:
    if not arms:
        return ""
    total = sum(a["requests"] for a in arms)
    lines = "".join(
        f'<tr><td>{escape(a["arm"])}</td><td class="n">{a["requests"]:,}</td><td class="n">{_share(a["requests"] / total)}</td>'
        f'<td class="n">{_share(a["unanswered"] / a["requests"])}</td></tr>'
        for a in arms
    )
    head = '<th>Arm</th><th class="n">Requests</th><th class="n">Share</th><th class="n">Without impression</th>'
    return f"<h2>Arms</h2><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _checks(checks: Sequence[Check]) -> str:
    def line(c: Check) -> str:
        status = "pass" if c.success else c.severity
        if c.level == "row":
            found = f"{c.bad:,} bad of {c.of:,}"
        else:
            found = "-" if c.observed is None else _figure_of(c.observed)
        return (
            f'<tr><td><span class="badge {status}">{"pass" if c.success else c.severity}</span></td><td>{c.suite}.{c.rule}</td>'
            f'<td>{escape(c.limit)}</td><td class="n">{found}</td><td class="why">{escape(c.reason)}</td></tr>'
        )

    ordered = sorted(checks, key=lambda c: (c.success, c.severity != "critical"))
    head = '<th>Verdict</th><th>Expectation</th><th>Limit</th><th class="n">Found</th><th>A failure means</th>'
    return f"<h2>Expectations</h2><table><thead><tr>{head}</tr></thead><tbody>{''.join(line(c) for c in ordered)}</tbody></table>"


def _skipped(skipped: Sequence[str]) -> str:
    if not skipped:
        return ""
    by_reason: dict[str, list[str]] = {}
    for line in skipped:
        rule, reason = line.split(": ", 1)
        by_reason.setdefault(reason, []).append(rule)
    items = "".join(f"<li>{escape(reason)}: {escape(', '.join(rules))}</li>" for reason, rules in by_reason.items())
    return f"<h2>Left out</h2><ul>{items}</ul>"


def _hours(hours: Any) -> str:
    counts = {int(h): int(c) for h, c in hours}
    bars = [(str(h), counts.get(h, 0)) for h in range(24)]
    return _figure("Requests by hour (UTC)", _bars(bars, every=6))


def _lengths(lengths: Any) -> str:
    return _figure("Sessions by number of requests", _bars([(str(label), int(c)) for label, c in lengths], every=2))


def _bars(bars: Sequence[tuple[str, int]], every: int) -> str:
    width, height, left, bottom = 380, 170, 46, 22
    top = max(1, *(c for _, c in bars))
    step = (width - left) / len(bars)
    out = [_text(left - 6, 14, f"{top:,}", "end"), _text(left - 6, height - bottom, "0", "end")]
    for i, (label, count) in enumerate(bars):
        tall = (height - bottom - 10) * count / top
        x = left + i * step
        out.append(
            f'<rect x="{x + 1:.1f}" y="{height - bottom - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}" class="fill">'
            f"<title>{escape(label)}: {count:,}</title></rect>"
        )
        if i % every == 0 or label.endswith("+"):
            out.append(_text(x + step / 2, height - 6, label, "middle"))
    out.append(f'<line x1="{left}" y1="{height - bottom}" x2="{width}" y2="{height - bottom}" class="axis"/>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(out)}</svg>'


def _positions(positions: Any) -> str:
    title = "Mean position x of explored actions"
    if not positions:
        return _figure(title, "<p class='muted'>Nothing was explored.</p>")
    left, right, row = 110, 64, 20
    width, height = 420, row * len(positions) + 26
    errors = [(p["mean"] / p["mean_z"] if p["mean_z"] else 0.0) for p in positions]
    reach = max(*(abs(p["mean"]) for p in positions), *(Z_SHOWN * abs(e) for e in errors), 1e-9) * 1.15

    def at(x: float) -> float:
        return left + (width - left - right) * (x / reach + 1) / 2

    out = []
    for i, (p, error) in enumerate(zip(positions, errors, strict=True)):
        y = row * i + row / 2 + 2
        band = Z_SHOWN * abs(error)
        out.append(_text(left - 8, y + 4, p["dimension"], "end"))
        out.append(f'<rect x="{at(-band):.1f}" y="{y - 6}" width="{at(band) - at(-band):.1f}" height="12" class="band"/>')
        out.append(
            f'<circle cx="{at(p["mean"]):.1f}" cy="{y}" r="4" class="{"off" if abs(p["mean_z"]) > Z_SHOWN else "fill"}">'
            f"<title>mean {p['mean']:.5f}, mean of squares {p['square']:.5f} (uniform: 0.33333)</title></circle>"
        )
        out.append(_text(width - right + 8, y + 4, f"z {p['mean_z']:+.1f}", "start"))
    base = row * len(positions) + 4
    out.append(f'<line x1="{at(0):.1f}" y1="2" x2="{at(0):.1f}" y2="{base}" class="axis"/>')
    out += [_text(at(s * reach), height - 6, f"{s * reach:+.3f}" if s else "0", "middle") for s in (-1, 0, 1)]
    svg = f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(out)}</svg>'
    note = f"0 where the logged propensities are right; the bands are ±{Z_SHOWN:g} standard errors."
    return _figure(title, f'{svg}<p class="muted">{note}</p>')


def _figure(title: str, content: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{content}</figure>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure_of(observed: float) -> str:
    return f"{observed:,.0f}" if observed.is_integer() else f"{observed:,.4g}"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if value and value < 0.1 else f"{100 * value:.1f} %"
