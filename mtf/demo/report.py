"""The demo's last page: a table a round and a plot of the rounds, beside the measured arms the simulated truth."""

from __future__ import annotations

import html
import re
from pathlib import Path

from mtf.demo.summary import Metric, Round, Summary
from mtf.fileio import write_atomic

HEAD = ("round", "dataset", "detectable", "gate", "canary users", "reward", "valid", "duration", "decision", "true value")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 76rem; padding: 0 1.5rem; color: #1d2733 }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100%; font-size: 13px }
td, th { padding: .45rem .6rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #1d2733; font-weight: 600 } td { border-bottom: 1px solid #d9dee5 } .quiet { color: #5c6b7a }
code { font-size: 12px; background: #f2f4f7; padding: .1em .3em; border-radius: 3px } svg { width: 100%; height: auto }
.scroll { overflow-x: auto } td { white-space: nowrap } td:first-child { font-weight: 600 } .lead { font-size: 17px }
li { margin: .6rem 0 }
"""


def write_report(summary: Summary, out: Path) -> None:
    """Write rounds.svg, report.html and table.txt into `out`."""
    plot(summary, out / "rounds.svg")
    write_atomic(out / "table.txt", table(summary).encode())
    write_atomic(out / "report.html", page(summary, (out / "rounds.svg").read_text()).encode())


def table(summary: Summary) -> str:
    """The rounds as text."""
    rows = [HEAD, *(cells(found) for found in summary.rounds)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = [
        f"round {r.round}: gate {r.gate.verdict}: {r.gate.reason}\n         canary {r.canary.decision}: {r.canary.reason}"
        for r in summary.rounds
    ]
    start = summary.truth.start
    note = (
        f"true value: session reward of the policy that serves after the round, simulated ({summary.truth.users:,} users, "
        f"seed {summary.truth.seed});\nno decision reads it. The start: {start.mean:.3f} (se {start.se:.3f})."
    )
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *reasons, "", note, ""])


def cells(found: Round) -> tuple[str, ...]:
    """One round's row."""
    gate = found.gate
    lift = "" if gate.lift is None else f" {gate.lift:+.1%} [{gate.low:+.1%}, {gate.high:+.1%}]"
    detectable = found.power.detectable_lift
    canary = found.canary
    return (
        f"{found.round} ({found.dt})",
        f"{found.dataset.revision.rsplit('/', 1)[-1]} {found.dataset.rows:,} rows",
        "-" if detectable is None else f"{detectable:.1%}",
        gate.verdict + lift,
        f"{canary.n_canary:,} / {canary.n_control:,}" if canary.metrics else "-",
        *(interval(canary.metrics.get(name)) for name in ("reward", "valid", "duration")),
        canary.decision.replace("_", " "),
        f"{found.true_value.mean:.3f} +- {1.96 * found.true_value.se:.3f}",
    )


def outcome(summary: Summary) -> str:
    """The whole demo in a sentence or two."""
    promoted = [r for r in summary.rounds if r.canary.decision == "promoted"]
    n = len(summary.rounds)
    said = f"{len(promoted)} of {n} round{'s' if n != 1 else ''} ended with a promotion."
    start, end = summary.truth.start, summary.rounds[-1].true_value if summary.rounds else summary.truth.start
    if not promoted:
        return f"{said} The policy of the start still serves; its true session reward is {start.mean:.3f}."
    return (
        f"{said} The true session reward of what serves went from {start.mean:.3f} to {end.mean:.3f} "
        f"({end.mean / start.mean - 1:+.1%})."
    )


def interval(found: Metric | None) -> str:
    """A lift with its interval."""
    return "-" if found is None else f"{found.lift:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"


def plot(summary: Summary, path: Path) -> None:
    """Left: each round's gate estimate and canary measurement with intervals, beside the candidate's true lift over the
    champion of its round. Right: the true value of what serves."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), gridspec_kw={"width_ratios": [3, 2]})
    serving = summary.truth.start
    for r in summary.rounds:
        x = r.round
        if r.gate.lift is not None and r.gate.low is not None and r.gate.high is not None:
            _bar(
                left,
                x - 0.18,
                r.gate.lift,
                r.gate.low,
                r.gate.high,
                "#4464ad",
                "o",
                "gate (offline, discounted, 96 %)",
            )
        if (reward := r.canary.metrics.get("reward")) is not None:
            _bar(left, x, reward.lift, reward.low, reward.high, "#d1603d", "s", "canary - control (always valid, 95 %)")
        truth = r.candidate_true_value.mean / serving.mean - 1
        left.plot(x + 0.18, truth, "D", color="#2a2a2a", label="truth, by simulation (no decision reads it)")
        note = f"{r.gate.verdict}\n{r.canary.decision.replace('_', ' ')}"
        left.annotate(note, (x, 0.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color="#5c6b7a")
        serving = r.true_value
    left.axhline(0, color="#9aa5b1", linewidth=0.8)
    left.set(
        title="Candidate over the champion of its round: session reward", xlabel="round", xticks=[r.round for r in summary.rounds]
    )
    left.yaxis.set_major_formatter(lambda v, _: f"{v:+.0%}")
    left.margins(x=0.25, y=0.3)
    handles, labels = left.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    left.legend(unique.values(), unique.keys(), fontsize=8, frameon=False)
    values = [summary.truth.start, *(r.true_value for r in summary.rounds)]
    right.errorbar(
        range(len(values)), [v.mean for v in values], [1.96 * v.se for v in values], fmt="D-", color="#2a2a2a", capsize=4
    )
    right.set(title="True session reward of what serves (simulated)", xlabel="after round", xticks=range(len(values)))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def page(summary: Summary, svg: str) -> str:
    """The self-contained HTML page."""
    head = "".join(f"<th>{h}</th>" for h in HEAD)
    body = "".join("<tr>" + "".join(f"<td>{_lines(c)}</td>" for c in cells(r)) + "</tr>" for r in summary.rounds)
    reasons = "".join(
        f"<li><b>Round {r.round}.</b> Gate {r.gate.verdict}: {html.escape(r.gate.reason)}<br>"
        f"Canary {r.canary.decision.replace('_', ' ')}: {html.escape(r.canary.reason)}<br>"
        f"<span class=quiet>dataset <code>{r.dataset.revision}</code> md5 <code>{r.dataset.md5}</code>, "
        f"model version {r.model_version}, policy <code>{r.policy_sha[:16]}</code> against <code>{r.baseline_sha[:16]}</code>, "
        f"traffic {r.seconds.traffic:.0f} s, chain {r.seconds.chain:.0f} s, all {r.seconds.total:.0f} s</span></li>"
        for r in summary.rounds
    )
    links = "".join(
        f'<li>{name.replace("_", " ")}: <a href="{url}">{url}</a></li>' for name, url in summary.urls.items() if name != "report"
    )
    versions = ", ".join(f"{name} {number}" for name, number in summary.versions.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>MTF demo</title>"
        f"<style>{STYLE}</style><h1>What happened</h1>"
        f"<p class=quiet>{html.escape(summary.command)} &middot; world: {summary.world['kind']}, {summary.world['name']}</p>"
        f"<p class=lead>{outcome(summary)}</p>"
        f"{svg[svg.index('<svg') :]}<h2>Rounds</h2><div class=scroll><table><tr>{head}</tr>{body}</table></div>"
        "<p class=quiet>Detectable: the smallest true lift that the gate finds four times in five with this data. "
        "Reward, valid and duration: canary against control, with always-valid 95 % intervals; the gate's are of 96 %.</p>"
        f"<h2>Why</h2><ul>{reasons}</ul><h2>Pages</h2><ul>{links}</ul>"
        "<p class=quiet>The true value is the session reward of what serves after the round, simulated with "
        f"{summary.truth.users:,} "
        f"users (seed {summary.truth.seed}); no decision reads it. Before the first round it was {summary.truth.start.mean:.3f}. "
        f"<code>mtf verify</code> recomputes every number. {versions}</p></html>"
    )


def _lines(cell: str) -> str:
    """A cell of the table in HTML, broken where it may be: before brackets, counts of rows, the second arm."""
    return re.sub(r" (?=[\[(]|[\d,]+ rows|/ )", "<br>", html.escape(cell).replace("+-", "&plusmn;"))


def _bar(axes: object, x: float, mean: float, low: float, high: float, color: str, marker: str, label: str) -> None:
    axes.errorbar(x, mean, [[mean - low], [high - mean]], fmt=marker, color=color, capsize=4, label=label)  # type: ignore[attr-defined]
