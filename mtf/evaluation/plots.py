"""The report's two figures, as SVG text (the same report gives the same bytes)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mtf.evaluation.intervals import Estimate
from mtf.evaluation.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, VOTED, LINE = "#1f2937", "#9aa4b2", "#2557a7", "#d7dce3"
FAR = 3.0


def lifts(report: Report) -> str:
    """Every estimator's lift with its interval; the two that vote in colour."""
    found = report.estimators
    named = {
        "primary (decides)": found.primary,
        "referee (votes)": found.referee,
        "degree 2": found.degree2,
        "fitted Q": found.fqe,
        "importance box": found.importance,
    }
    rows = [(name, estimate) for name, estimate in named.items() if estimate is not None]
    voted = [e for name, e in rows if "(" in name]
    reach = max((max(abs(e.low), abs(e.high)) for e in voted), default=0.01) * 100
    figure, axes = _figure(0.55 + 0.42 * len(rows))
    axes.axvline(0, color=INK, linewidth=1)
    for place, (name, estimate) in enumerate(reversed(rows)):
        _interval(axes, place, estimate, VOTED if "(" in name else QUIET)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    # an estimator with a hopeless interval must not squeeze the others
    width = min(max((max(abs(e.low), abs(e.high)) for _, e in rows), default=0.01) * 100, FAR * reach) or 1.0
    axes.set_xlim(-1.08 * width, 1.08 * width)
    axes.set_xlabel(f"lift over the deployed policy, % (bars: {1 - report.alpha:.0%} intervals)")
    return _svg(figure)


def dimensions(report: Report) -> str:
    """Where deployed policy and target lie in the box, dimension by dimension."""
    rows = report.dimensions
    figure, axes = _figure(0.7 + 0.3 * len(rows))
    axes.axvline(0, color=LINE, linewidth=1, zorder=0)
    for place, dimension in enumerate(reversed(rows)):
        axes.plot([-1, 1], [place, place], color=LINE, linewidth=7, solid_capstyle="butt", zorder=0)
        spread = max(dimension.y_rms**2 - dimension.y_mean**2, 0) ** 0.5
        axes.plot([dimension.y_mean - spread, dimension.y_mean + spread], [place, place], color=VOTED, linewidth=2)
        axes.plot(dimension.y0_mean, place, "o", color="white", markeredgecolor=INK, markersize=5)
        axes.plot(dimension.y_mean, place, "o", color=VOTED, markersize=5)
    axes.set_yticks(range(len(rows)), [dimension.name for dimension in reversed(rows)])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(-1.05, 1.05)
    axes.set_xlabel("position in the explored box (open: deployed, filled: new policy, bar: one sd over states)")
    return _svg(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "mtf"
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(7.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.xaxis.label.set_fontsize(9)
    return figure, axes


def _interval(axes: Axes, place: int, estimate: Estimate, colour: str) -> None:
    low, mean, high = 100 * estimate.low, 100 * estimate.mean, 100 * estimate.high
    axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
    axes.plot(mean, place, "o", color=colour, markersize=7, markeredgecolor="white")
    axes.annotate(f"{mean:+.2f} %", (mean, place), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8, color=INK)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    return text[text.index("<svg") :]
