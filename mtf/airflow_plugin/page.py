"""The rollout page: what is served now, to whom, how the comparison stands, and how it came to this. Plain HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import Any

from mtf.registry.client import registry_page
from mtf.rollout.document import DeploymentDocument, Exploration, PolicyRef

REFRESH_SECONDS = 10
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
a { color: #0969da } time { white-space: nowrap } .quiet { color: #57606a }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35rem .8rem .35rem 0; vertical-align: top }
th { border-bottom: 2px solid #d0d7de; font-weight: 600 } td { border-bottom: 1px solid #d8dee4 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } code { background: #eff1f3; padding: .1rem .3rem }
.bar { display: flex; height: 1.8rem; margin: .5rem 0 }
.bar span { color: #fff; padding: .2rem .5rem; overflow: hidden; white-space: nowrap }
.promoted { color: #116329 } .rolled_back, .aborted, .superseded { color: #a40e26 } .running, .frozen { color: #7d4e00 }
td svg { display: block; width: 18rem; height: 1.4rem } circle { fill: #0969da; stroke: #fff }
line { stroke: #8c959f } line.interval { stroke: #0969da; stroke-width: 5 }
"""
# Airflow shows the page in a sandboxed frame that may open no window; the page around it may
SCRIPT = """
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[target=_blank]");
  if (!link || parent === window) return;
  event.preventDefault();
  const outside = parent.document.createElement("a");
  Object.assign(outside, { href: link.href, target: "_blank", rel: "noopener" });
  outside.click();
});
"""
COLOURS = {"explore": "#6e40c9", "canary": "#9a6700", "control": "#0969da", "holdback": "#57606a", "champion": "#1a7f37"}


def rollout_page(document: DeploymentDocument, progress: bytes | None, mlflow_url: str | None) -> str:
    """The page of one generation. progress: the controller's last look at the rollout in progress (JSON)."""
    spec = f"<code>{escape(document.spec_version)}</code>"
    parts = [
        f"<p>Generation {document.generation} of {_time(document.at)} UTC, spec {spec}.</p>",
        _served(document, mlflow_url),
        _arms(document),
        _rollout(document, progress),
        _history(document),
    ]
    return _page(f"Rollout of {document.surface}", "".join(parts))


def empty_page(title: str, text: str) -> str:
    """A page that says why there is nothing to see."""
    return _page(title, f"<p>{escape(text)}</p>")


def _served(document: DeploymentDocument, mlflow_url: str | None) -> str:
    roles: list[tuple[str, PolicyRef | None]] = [
        ("champion", document.champion),
        ("canary", document.canary),
        ("previous champion", document.previous),
        ("bootstrap", document.bootstrap),
    ]
    rows = [
        (name, _version(document.surface, ref, mlflow_url), f"<code>{escape(ref.sha[:12])}</code>") for name, ref in roles if ref
    ]
    return "<h2>Policies</h2>" + _table(("role", "model version", "bundle"), rows)


def _version(surface: str, ref: PolicyRef, mlflow_url: str | None) -> str:
    text = f"version {escape(ref.version)}"
    if mlflow_url is None or not ref.version.isdigit():
        return text
    return f'<a href="{escape(registry_page(mlflow_url, surface, version=ref.version))}" target="_blank">{text}</a>'


def _arms(document: DeploymentDocument) -> str:
    shares = {name: float(getattr(document.arms, name)) for name in ("explore", "canary", "control", "holdback")}
    if document.canary is None:
        shares |= {"canary": 0.0, "control": 0.0}
    if document.exploration is None:
        shares["explore"] = 0.0
    shares["champion"] = max(0.0, 1 - sum(shares.values()))
    there = {name: share for name, share in shares.items() if share > 0}
    spans = (
        f'<span style="width:{share:.2%};background:{COLOURS[name]}" title="{name} {share:.1%}">{name}</span>'
        for name, share in there.items()
    )
    words = ", ".join(f"{name} {share:.1%}" for name, share in there.items())
    box = _box(document.exploration) if document.exploration is not None else "Nothing is explored."
    return f'<h2>Traffic</h2><div class="bar">{"".join(spans)}</div><p>{words}. {box}</p>'


def _box(exploration: Exploration) -> str:
    widths = [f"{width:.3g}" for width in exploration.half_width]
    if len(set(widths)) == 1:
        within = f"{widths[0]} in each of {len(widths)} dimensions"
    else:
        within = f"[{', '.join(widths)}]"
    return f"Explorers act around the champion's action, normalised, within &plusmn;{within}."


def _rollout(document: DeploymentDocument, progress: bytes | None) -> str:
    rollout = document.rollout
    if rollout is None:
        return "<h2>Rollout</h2><p>None yet: a version that passes its gate gets a canary.</p>"
    state = rollout.outcome or rollout.phase
    candidate = f", version {escape(document.canary.version)}" if document.canary else ""
    found: Any = rollout.statistics.get("comparison")
    reason = rollout.reason
    if rollout.outcome is None and progress is not None:
        look = json.loads(progress)
        found, reason = look["comparison"], look["reason"]
    text = f'<p><strong class="{state}">{state.replace("_", " ").capitalize()}</strong>{candidate}: {escape(reason)}</p>'
    started = f"Rollout <code>{escape(rollout.id)}</code>, began {_time(rollout.started_ts)} of the event clock (UTC)"
    seen = f", last looked at {_time(_iso(found['watermark_us']))}" if found else ""
    return f'<h2>Rollout</h2>{text}{_comparison(found)}<p class="quiet">{started}{seen}.</p>'


def _comparison(found: Any) -> str:
    """found: a Comparison as it comes out of JSON, or None; an interval without a bound has null there."""
    if not found:
        return "<p>No users compared yet.</p>"
    users = f"<p>{found['n_canary']:,} users in the canary, {found['n_control']:,} in control.</p>"
    metrics: dict[str, dict[str, float | None]] = found["metrics"]
    if not metrics:
        return users
    reach = max((abs(v) for metric in metrics.values() for v in metric.values() if v is not None), default=0.0)
    rows = [
        (
            escape(name),
            *("-" if metric[part] is None else f"{metric[part]:+.2%}" for part in ("lift", "low", "high")),
            _interval(metric, reach),
        )
        for name, metric in metrics.items()
    ]
    return users + _table(("canary against control", "lift", "95 % from", "to", ""), rows, numbers=True)


def _interval(metric: dict[str, float | None], reach: float) -> str:
    """The interval on an axis from -reach to +reach around 0."""
    low, mean, high = (100 * (metric[part] or 0.0) / (reach or 1.0) for part in ("low", "lift", "high"))
    bar = f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="0" y2="0"/><circle cx="{mean:.1f}" cy="0" r="4"/>'
    if metric["low"] is None or metric["high"] is None:
        bar = ""
    return f'<svg viewBox="-105 -8 210 16" role="img"><line x1="0" x2="0" y1="-8" y2="8"/>{bar}</svg>'


def _history(document: DeploymentDocument) -> str:
    rows = [
        (str(change.generation), _time(change.at), escape(change.what), escape(change.reason))
        for change in reversed(document.history)
    ]
    return "<h2>History</h2>" + _table(("generation", "when (UTC)", "what", "why"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: bool = False) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return "".join(f"<{tag}{' class=n' if numbers and i else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()


def _time(iso: str) -> str:
    return f"<time>{escape(iso[:19].replace('T', ' '))}</time>"


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}"><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}<script>{SCRIPT}</script></body></html>"
    )
