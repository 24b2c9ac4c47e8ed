"""report.html: one file, no scripts, nothing fetched; reads on screen and prints."""

from __future__ import annotations

from html import escape

from mtf.evaluation import plots
from mtf.evaluation.report import Report

CSS = """
:root { color-scheme: light; --ink: #1f2937; --quiet: #5b6675; --line: #d7dce3; --soft: #f4f6f9; }
* { box-sizing: border-box; }
body { margin: 0; background: white; color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 900px; margin: 0 auto; padding: 28px 24px 56px; }
h1 { font-size: 15px; font-weight: 600; color: var(--quiet); margin: 0 0 14px; }
h2 { font-size: 18px; margin: 38px 0 8px; }
p { margin: 6px 0; max-width: 74ch; }
.verdict { border-left: 8px solid var(--tone); background: var(--soft); padding: 16px 20px; border-radius: 4px; }
.verdict strong { display: block; font-size: 26px; color: var(--tone); line-height: 1.2; margin-bottom: 4px; }
.pass { --tone: #1a7f4b; } .fail { --tone: #b3261e; } .inconclusive { --tone: #8a5a00; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(195px, 1fr)); gap: 10px; margin: 16px 0 0; }
.tile { border: 1px solid var(--line); border-radius: 4px; padding: 10px 12px; }
.tile b { display: block; font-size: 16px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile span, .note, td.note { color: var(--quiet); font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: 13px; color: var(--quiet); font-weight: 600; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ok { color: #1a7f4b; font-weight: 600; white-space: nowrap; } .no { color: #b3261e; font-weight: 600; white-space: nowrap; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
@media print { main { padding: 0; max-width: none; } h2 { break-after: avoid; } table, svg, .verdict { break-inside: avoid; }
  .verdict, .tile { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

DROPS = {
    "not_explored": "no request explored (other arms): they say nothing about other actions",
    "other_policy": "explored around another policy than the baseline",
    "partly_explored": "only some of the requests explored",
    "fallback": "at least one request was answered by a fallback",
    "late_start": "started so late that only the short ones of their kind have closed",
}


def render(report: Report) -> str:
    """The page as HTML text."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Gate: {report.verdict}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head><body><main>',
        _head(report),
        _lift(report),
        _checks(report),
        _rows(report),
        _dimensions(report),
        _gauc(report),
        _power(report),
        _details(report),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _head(report: Report) -> str:
    tiles = [
        (_percent(report.lift.mean), "lift over the deployed policy"),
        (f"{_percent(report.lift.low)} to {_percent(report.lift.high)}", f"{1 - report.alpha:.0%} interval"),
        (f"{report.sessions:,}", f"sessions of {report.users:,} gate users"),
        (_percent(report.detectable_lift, sign=False), "true lift that is found 4 times in 5"),
    ]
    boxes = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles)
    days = f"days {report.days[0]} to {report.days[-1]}" if report.days else "days not named"
    sha = f" <code>{escape((report.baseline_sha or '')[:12])}</code>" if report.baseline_sha else ""
    return (
        "<header><h1>Off-policy evaluation</h1>"
        f'<div class="verdict {report.verdict}"><strong>{report.verdict.capitalize()}</strong>{escape(report.reason)}</div>'
        f'<div class="tiles">{boxes}</div>'
        f'<p class="note">Policy <code>{report.policy_sha[:12]}</code> against {escape(report.baseline)}{sha}, {days}; '
        f"value: discounted reward of a session, gamma {report.gamma:g}.</p></header>"
    )


def _lift(report: Report) -> str:
    if report.estimators.primary is None:
        return ""
    bend = report.estimators.primary_bend or 0.0
    return (
        "<section><h2>Lift, by estimator</h2>"
        "<p>The primary decides, the referee must agree. The others are shown for comparison: degree 2 is blind to less and far "
        "noisier, fitted Q carries the bias of its model.</p>"
        + plots.lifts(report)
        + f'<p class="note">Of the primary, {100 * bend:+.2f} percentage points come from curvature. '
        "Intervals resample users and cover no bias of a model. "
        "A lift that is reported because it is significant is on average larger than the truth.</p></section>"
    )


def _checks(report: Report) -> str:
    if not report.checks:
        return ""
    rows = [
        [
            f'<td class="{"ok" if c.holds else "no"}">{"holds" if c.holds else "broken"}</td>',
            f"<td>{escape(c.name)}</td><td>{_signs(c.value)}</td><td>{_signs(c.allowed)}</td>",
            f'<td class="note">{escape(c.meaning)}</td>',
        ]
        for c in sorted(report.checks, key=lambda check: check.holds)
    ]
    return "<section><h2>Checks</h2>" + _table(["", "check", "found", "allowed", "what it means"], rows) + "</section>"


def _rows(report: Report) -> str:
    rows = [
        [f"<td>{escape(name.replace('_', ' '))}</td>", _num(f"{count:,}"), f'<td class="note">{escape(DROPS.get(name, ""))}</td>']
        for name, count in report.drops.items()
    ]
    rows.append(["<td><b>kept</b></td>", _num(f"<b>{report.sessions:,}</b>"), '<td class="note">read by every estimator</td>'])
    cut = f"{report.cut_sessions:,} kept sessions were cut before they ended; they are valued as if they had gone on."
    return (
        "<section><h2>Sessions of gate users</h2>"
        + _table(["left out because", "sessions", ""], rows)
        + f'<p class="note">{cut}</p></section>'
    )


def _dimensions(report: Report) -> str:
    if not report.dimensions:
        return ""
    rows = [
        [
            f"<td>{escape(d.name)}</td>",
            *(_num(f"{v:.3f}") for v in (d.half_width, d.y_mean, d.step_rms)),
            *(_num(f"{v:.1%}") for v in (d.at_edge, d.outside)),
        ]
        for d in report.dimensions
    ]
    head = ["dimension", "half-width", "mean position", "RMS move", "states at the edge", "states outside"]
    return (
        "<section><h2>Where the policy lies in the box</h2>"
        + plots.dimensions(report)
        + _table(head, rows, numbers=range(1, 6))
        + "</section>"
    )


def _gauc(report: Report) -> str:
    if not report.gauc:
        return ""
    rows = [
        [f"<td>{escape(n)}</td>", _num(f"{g.value:.4f}"), _num(f"{g.se:.4f}"), _num(f"{g.users:,}")]
        for n, g in report.gauc.items()
    ]
    return (
        "<section><h2>MTF-GAUC</h2><p>How well the final score orders the impressions that were shown (label: valid consumption; "
        "weight: reward + 1). Not voted: it says nothing of what would have been shown instead.</p>"
        + _table(["ranked by", "GAUC", "standard error", "users"], rows, numbers=range(1, 4))
        + "</section>"
    )


def _power(report: Report) -> str:
    found = report.power
    if found is None or found.se_half is None:
        return ""
    rows = [
        [
            "<td>half-way to the edge</td>",
            _num(_percent(found.se_half, sign=False)),
            _num(_percent(found.detectable_lift, sign=False)),
        ],
        [
            "<td>at the edge</td>",
            _num(_percent(found.se_full, sign=False)),
            _num(_percent(found.detectable_lift_full, sign=False)),
        ],
    ]
    needed = ", ".join(f"{float(lift):.0%}: {count:,}" for lift, count in found.sessions_needed.items())
    arms = [[_num(f"{a.users:,}"), _num(f"{a.detectable:.1%}"), _num(f"{a.detectable_any_time:.1%}")] for a in found.arms]
    text = (
        "<section><h2>Power</h2>"
        + _table(["a policy", "standard error", "lift found 4 times in 5"], rows, numbers=range(1, 3))
        + f'<p class="note">Sessions of gate users needed, half-way, for a lift of {needed}.</p>'
    )
    if arms and found.user_cv is not None:
        text += (
            f"<p>A canary, by the reward of a user's first closed session (coefficient of variation {found.user_cv:.2f}):</p>"
            + _table(["users an arm", "found at a fixed time", "found at any time"], arms, numbers=range(3))
        )
    return text + "</section>"


def _details(report: Report) -> str:
    rows = []
    if report.value_deployed is not None and report.value_target is not None:
        rows.append(("value of a session, deployed", f"{report.value_deployed.mean:.5g} +- {report.value_deployed.se:.2g}"))
        rows.append(("value of a session, new policy", f"{report.value_target:.5g}"))
    if report.on_policy is not None:
        p = report.on_policy
        rows.append(
            (
                "deployed policy's own sessions",
                f"mean return {p.mean:.5g} +- {p.se:.2g} in {p.sessions:,} sessions, against {p.estimated:.5g} (z {p.z:+.1f})",
            )
        )
    if report.weights is not None:
        w = report.weights
        rows.append(("mean weight", f"{w.mean:.4f} +- {w.mean_se:.4f}; 1 where propensities are right"))
        rows.append(("mean squared weight", f"{w.square:.3f}, expected {w.square_expected:.3f}"))
        rows.append(("effective share of a decision", f"{w.effective_share:.1%}"))
    if report.model is not None:
        m = report.model
        rows.append(("residual explained by actions", f"{m.explained:.3%} of its variance, held-out users"))
        rows.append(("one-step against Monte-Carlo slopes", f"chi^2 {m.slope_chi2:.1f} on {m.slope_dof} degrees of freedom"))
    if not rows:
        return ""
    body = [[f"<td>{_signs(name)}</td>", f"<td>{_signs(value)}</td>"] for name, value in rows]
    return "<section><h2>Details</h2>" + _table(["", ""], body) + "</section>"


def _table(head: list[str], rows: list[list[str]], numbers: range = range(0)) -> str:
    cells = "".join(f"<th{' class=num' if i in numbers else ''}>{escape(name)}</th>" for i, name in enumerate(head))
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def _signs(text: str) -> str:
    """Escaped, with the signs that the report's plain text has to spell out."""
    found = escape(text)
    for plain, sign in {"&lt;=": "≤", "&gt;=": "≥", "+-": "±", "^2": "²"}.items():
        found = found.replace(plain, sign)
    return found


def _num(value: str) -> str:
    return f'<td class="num">{value}</td>'


def _percent(value: float | None, sign: bool = True) -> str:
    if value is None:
        return "-"
    return f"{value:+.2%}" if sign else f"{value:.2%}"
