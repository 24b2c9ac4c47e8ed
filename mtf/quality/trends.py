"""Parts of a day's page that look back: how figures ran over the last days, and which features have moved."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from mtf.quality.drift import Moved
from mtf.quality.verdict import Verdict

ROWS = 25
LABELS = {
    "requests": "requests",
    "share_quarantined_requests": "requests quarantined",
    "share_quarantined_feedback": "feedback quarantined",
    "share_late": "late rows",
    "mean_session_length": "requests a session",
    "mean_watch_s": "watch, s",
    "share_explored": "explored",
}


def lines(v: Verdict) -> str:
    """A small line a figure, today at its end; nothing where there is no earlier day."""
    trend: Any = v.profile.get("trend")
    if not trend or len(trend["days"]) < 2:
        return ""
    days = trend["days"]
    drawn = [_line(name, days, values) for name, values in trend["figures"].items() if values[-1] is not None]
    return f'<h2>The last {len(days)} days</h2><div class="lines">{"".join(drawn)}</div>'


def drift_table(v: Verdict) -> str:
    """The features with the most violating days first, then those that moved most."""
    title = "<h2>Drift</h2>"
    if not v.drift:
        reasons = dict.fromkeys(s.split(": ", 1)[1] for s in v.skipped if s.startswith("drift."))
        why = "; ".join(reasons) or "nothing was measured"
        return f"{title}<p>Not judged yet: {escape(why)}.</p>"
    counts: Any = v.profile["drift"]
    rows = sorted(zip(v.drift, counts, strict=True), key=lambda pair: (-pair[1], -pair[0].psi, -abs(pair[0].shift)))
    most = max(0.1, *(m.psi for m, _ in rows))
    shown = "".join(_feature(m, n, most) for m, n in rows[:ROWS])
    head = '<th>Feature</th><th>Of</th><th class="n">Mean</th><th class="n">Usually</th><th class="n">Shift, sd</th>'
    head += '<th class="n">PSI</th><th></th><th class="n">Violating days</th>'
    note = (
        f"{len(rows)} features against their reference of earlier days; shift is what lies outside the band of ordinary days. "
        "What actions move is compared under the same policy and box only."
    )
    return f'{title}<p class="muted">{note}</p><table><thead><tr>{head}</tr></thead><tbody>{shown}</tbody></table>'


def _feature(m: Moved, violating: int, most: float) -> str:
    badge = f'<span class="badge warning">{violating}</span>' if violating else "0"
    group = f' <span class="muted">{escape(m.group)}</span>' if m.group else ""
    return (
        f'<tr><td>{escape(m.name)}{group}</td><td>{m.kind}</td><td class="n">{m.mean:.4g}</td><td class="n">{m.usual:.4g}</td>'
        f'<td class="n">{m.shift:+.2f}</td><td class="n">{m.psi:.3f}</td>'
        f'<td><i class="bar" style="width:{max(1, 120 * m.psi / most):.0f}px"></i></td><td class="n">{badge}</td></tr>'
    )


def _line(name: str, days: Sequence[str], values: Sequence[float | None]) -> str:
    width, height, left = 240, 60, 6
    known = [v for v in values if v is not None]
    low, high = min(known), max(known)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5

    def at(i: int, value: float) -> tuple[float, float]:
        return left + (width - 2 * left) * i / max(len(values) - 1, 1), height - 8 - (height - 20) * (value - low) / (high - low)

    points = [(i, v, *at(i, v)) for i, v in enumerate(values) if v is not None]
    path = " ".join(f"{x:.1f},{y:.1f}" for _, _, x, y in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 if i == len(values) - 1 else 2}" class="fill">'
        f"<title>{days[i]}: {_show(name, v)}</title></circle>"
        for i, v, x, y in points
    )
    label = LABELS.get(name, name.removeprefix("rate_"))
    svg = f'<svg viewBox="0 0 {width} {height}" role="img"><polyline points="{path}" class="line"/>{dots}</svg>'
    return f"<figure><figcaption>{escape(label)} <b>{_show(name, known[-1])}</b></figcaption>{svg}</figure>"


def _show(name: str, value: float) -> str:
    if name.startswith(("share_", "rate_")):
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
