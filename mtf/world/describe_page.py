"""The description of a world as one page that needs nothing else: figures, plots, the check against a log, sources."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from mtf.world.describe import Figure, Played, provenance
from mtf.world.fit_check import FitCheck
from mtf.world.params import VALID_S, WorldParams
from mtf.world.presets import figure, figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, QUIET, OURS, PUBLISHED = "#1d2733", "#d9dee5", "#2557a7", "#b45309"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 64rem; padding: 0 1.5rem; color: #1d2733 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem } svg { width: 100%; height: auto }
table { border-collapse: collapse; width: 100%; font-size: 13px }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
td, th { padding: .35rem .6rem; text-align: left; vertical-align: top } td { border-bottom: 1px solid #d9dee5 }
th { border-bottom: 2px solid #1d2733 } .off { color: #a40e26; font-weight: 600 } .quiet { color: #5c6b7a }
"""
LABELS = {
    "learned": "fitted to a log",
    "borrowed": "a published figure",
    "assumed": "our choice, which no public log confirms or refutes",
}


def page(params: WorldParams, compared: Sequence[Figure], play: Played, check: FitCheck | None) -> str:
    """The page's HTML."""
    parts = [
        f"<h1>The {params.kind} world <code>{escape(params.name)}</code></h1>",
        f"<p>{len(params.user_key):,} users, {len(params.item_key):,} items. Play under production's start, and what every "
        "number rests on.</p>",
        "<h2>Play against published figures</h2>",
        _figures(compared),
        _plots(compared, play),
    ]
    if check is not None:
        parts.append(_check(check))
    for label, rows in provenance(params).items():
        parts.append(f"<h2>{label.capitalize()}: {LABELS[label]}</h2>")
        parts.append(
            _table(("name", "value or shape", "source"), [tuple(escape(c) for c in row) for row in rows]) if rows else ""
        )
    title = f"World {escape(params.name)}"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
    return f"{head}<body>{''.join(parts)}</body></html>"


def _figures(compared: Sequence[Figure]) -> str:
    rows = []
    for f in compared:
        mark = "within" if f.holds else '<span class="off">off</span>'
        rows.append((f.name, f"{f.played:.4g}", f"{f.published:.4g}", f"&plusmn;{f.tolerance:.0%}", mark, escape(f.source)))
    return _table(("figure", "played", "published", "tolerance", "", "source"), rows, numbers=(1, 2, 3))


def _check(check: FitCheck) -> str:
    days = ", ".join(map(str, check.held_out))
    ordering = [(o.head, f"{o.scores:.3f}", f"{o.twin:.3f}", f"{o.positives:,}") for o in check.ordering]
    levels = []
    for level in check.levels:
        z = (level.predicted - level.observed) / level.se if level.se > 0 else 0.0
        levels.append(
            (level.head, level.group, f"{level.observed:.4f}", f"{level.predicted:.4f}", f"{level.se:.4f}", f"{z:+.1f}")
        )
    settings = [(escape(s.name), f"{s.log:.3f}", f"{s.world:.3f}") for s in check.settings]
    together = [(t.head, f"{t.log:.5f}", f"{t.se:.5f}", f"{t.world:.5f}", f"{t.world / t.log:.2f}") for t in check.together]
    return "".join(
        (
            f"<h2>Against {check.rows:,} impressions of held-out days ({days})</h2>",
            "<p>AUC of the scores that fusion sees, and of a twin of the response model that did not see these days.</p>",
            _table(("label", "scores", "twin", "positives"), ordering, numbers=(1, 2, 3)),
            "<p>Calibration of the twin by group of users.</p>",
            _table(("label", "group", "observed", "predicted", "se", "z"), levels, numbers=(2, 3, 4, 5)),
            "<p>MTF-GAUC (label valid) of fusion weights: on the log, and on the world's draws for the same impressions; ",
            f"rank correlation {check.rank_correlation:.2f}.</p>",
            _table(("weights", "log", "world"), settings, numbers=(1, 2)),
            "<p>How much users differ: covariance of one user's outcomes on different days, over the whole log.</p>",
            _table(("outcome", "log", "se", "world", "ratio"), together, numbers=(1, 2, 3, 4)),
        )
    )


def _plots(compared: Sequence[Figure], play: Played) -> str:
    """Ratios to the published figures with their tolerances; play time; session length; users' own click rates."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 7), layout="constrained")
    ratios, watch, length, users = canvas.subplots(2, 2).flat
    _ratios(ratios, compared)
    _watch(watch, play)
    _length(length, play)
    _users(users, play)
    out = io.StringIO()
    canvas.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _ratios(axes: Axes, compared: Sequence[Figure]) -> None:
    for place, f in enumerate(reversed(compared)):
        axes.plot([1 - f.tolerance, 1 + f.tolerance], [place, place], color=QUIET, linewidth=7, solid_capstyle="butt")
        axes.plot(f.played / f.published, place, "o", color=OURS if f.holds else "#a40e26", markersize=5)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(compared)), [f.name for f in reversed(compared)], fontsize=8)
    axes.set_title("played / published (bar: tolerance)", fontsize=10, loc="left")


def _watch(axes: Axes, play: Played) -> None:
    seconds = np.sort(play.impressions[:, 0])
    at = np.linspace(0, 1, 400)[1:-1]
    axes.plot(np.maximum(np.quantile(seconds, at), 0.05), at, color=OURS, label="played")
    known = figures()["play_quantiles_s"]
    axes.plot(np.maximum(known["value"], 0.05), known["p"], "o", color=PUBLISHED, markersize=4, label="published")
    axes.axvline(VALID_S, color=QUIET, linewidth=1)
    axes.set_xscale("log")
    axes.set_title("play time, seconds: share of impressions below", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)


def _length(axes: Axes, play: Played) -> None:
    longest = int(np.quantile(play.session_length, 0.99))
    edges = np.arange(0, longest + 2, max(longest // 50, 1))
    axes.hist(np.minimum(play.session_length, longest), bins=edges.tolist(), color=OURS)
    axes.axvline(figure("requests_per_session"), color=PUBLISHED, label="published mean")
    axes.axvline(play.session_length.mean(), color=INK, linestyle=":", label="played mean")
    axes.set_title("requests a session (longest 1 % together)", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)


def _users(axes: Axes, play: Played) -> None:
    axes.hist(np.clip(play.user_click, 0, 1), bins=18, color=OURS)
    for name in ("user_click_p10", "user_click_p50", "user_click_p90"):
        axes.axvline(figure(name), color=PUBLISHED, label="published 10, 50, 90 %" if name.endswith("10") else None)
    axes.set_title("users' own click rates", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(f'<{tag} class="n">{c}</{tag}>' if i in numbers else f"<{tag}>{c}</{tag}>" for i, c in enumerate(cells))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><thead><tr>{row(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
