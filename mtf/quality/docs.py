"""The site: Great Expectations' pages made readable offline, a summary a day, and an index of the days.

    SITE/index.html                                  the days, newest first
    SITE/days/<surface>/<dt>/r<k>/index.html         the summary of a day's logs
    SITE/days/<surface>/<dt>/transitions/index.html  the summary of the transitions built from them
    SITE/validations/<suite>/<surface>_<dt>_r<k>/... Great Expectations' page of a suite
    SITE/expectations/<suite>.html                   the suite itself

Great Expectations' templates take their looks from five content delivery networks. Here they get one local style sheet
and script, so that a page looks the same without a network, and no visit is reported to anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from html import escape
from importlib import resources
from pathlib import Path

import msgspec

from mtf.fileio import write_atomic
from mtf.quality.verdict import Subject, Verdict

# days of a surface whose pages are kept; verdicts and quarantines are kept for good
KEEP_DAYS = 30
SUITES: dict[Subject, tuple[str, ...]] = {
    "logs": ("files", "requests", "feedback", "day", "drift"),
    "transitions": ("transitions", "sessions"),
}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict in the index; pages: {suite: its page, relative to the site}."""

    subject: Subject = "logs"
    surface: str
    dt: str
    revision: int
    status: str
    reasons: list[str]
    counts: dict[str, int]
    pages: dict[str, str]


def summary_path(verdict: Verdict | Entry) -> str:
    """Where the verdict's summary lies in the site."""
    name = f"r{verdict.revision}" if verdict.subject == "logs" else verdict.subject
    return f"days/{verdict.surface}/{verdict.dt}/{name}/index.html"


def page_path(verdict: Verdict | Entry, suite: str) -> str:
    """Where Great Expectations' page of a suite lies in the site."""
    return f"validations/{suite}/{_run(verdict)}/{verdict.dt.replace('-', '')}T000000.000000Z/{verdict.surface}-{suite}.html"


def links(verdict: Verdict, docs_dir: Path, page_dir: Path) -> dict[str, str]:
    """{label: href} from a page in `page_dir` to the index, the day's other summary, and the pages of the verdict's suites."""
    found = {"All days": docs_dir / "index.html"}
    other: Subject = "transitions" if verdict.subject == "logs" else "logs"
    page = docs_dir / summary_path(msgspec.structs.replace(verdict, subject=other))
    if page.exists():
        found[f"The day's {other}"] = page
    for suite in dict.fromkeys(c.suite for c in verdict.checks):
        found[suite] = docs_dir / page_path(verdict, suite)
    return {label: os.path.relpath(path.resolve(), page_dir.resolve()) for label, path in found.items()}


def add(docs_dir: Path, built_dir: Path, verdict: Verdict, summary: str) -> None:
    """Add a verdict: its Great Expectations pages (a site just built in `built_dir`) mended, summary and index; drop old days.

    One process at a time writes the site; another one waits.
    """
    with _alone(docs_dir):
        for name in ("site.css", "site.js"):
            write_atomic(docs_dir / "static" / name, _asset(name).encode())
        _drop_pages(docs_dir, verdict)
        for found in (*built_dir.glob("validations/**/*.html"), *built_dir.glob("expectations/*.html")):
            relative = found.relative_to(built_dir)
            write_atomic(docs_dir / relative, _mended(found.read_text(), relative).encode())
        shared = {name: getattr(verdict, name) for name in Entry.__struct_fields__ if name != "pages"}
        pages = {s: href for s, href in links(verdict, docs_dir, docs_dir).items() if s in SUITES[verdict.subject]}
        folder = (docs_dir / summary_path(verdict)).parent
        write_atomic(folder / "entry.json", msgspec.json.encode(Entry(**shared, pages=pages)))
        write_atomic(folder / "index.html", summary.encode())
        _forget(docs_dir, verdict.surface)
        write_atomic(docs_dir / "index.html", _index(docs_dir).encode())


def page(title: str, body: str, style: str) -> str:
    """A whole HTML document; style: what goes into <head>."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>{style}</head>\n'
        f'<body class="mtf"><main>{body}</main></body></html>\n'
    )


def inline_style() -> str:
    """The style sheet inside the page: for pages that must stand alone."""
    return f"<style>{_asset('site.css')}</style>"


def _asset(name: str) -> str:
    return resources.files("mtf.quality").joinpath(name).read_text()


def _run(verdict: Verdict | Entry) -> str:
    return f"{verdict.surface}_{verdict.dt}_r{verdict.revision}"


_OUTSIDE = re.compile(
    r'<link[^>]*href="https?://[^>]*>|<script[^>]*src="https?://[^>]*>\s*</script>'
    r"|<script>\s*function showAllValidations.*?</script>|<footer>.*?</footer>",
    re.DOTALL,
)
_ICON = re.compile(r'<link rel="shortcut icon"[^>]*>')
_LOGO = re.compile(r'<img[^>]*class="NO-CACHE"[^>]*/?>', re.DOTALL)
_TITLES = re.compile(r"<title>.*?</title>", re.DOTALL)


def _mended(html: str, relative: Path) -> str:
    up = "../" * (len(relative.parts) - 1)
    suite = relative.parts[1].removesuffix(".html")
    for pattern in (_OUTSIDE, _ICON, _TITLES):
        html = pattern.sub("", html)
    html = _LOGO.sub("<strong>All days</strong>", html)
    # frames have no name of their own; the run's is in the path that the page's head shows
    html = html.replace("Data asset: None<br>", "")
    head = (
        f'<title>{escape(suite)} · data quality</title><link rel="stylesheet" href="{up}static/site.css">'
        f'<script src="{up}static/site.js"></script>'
    )
    return html.replace("</head>", head + "</head>", 1)


def _entries(docs_dir: Path) -> list[Entry]:
    found = [msgspec.json.decode(p.read_bytes(), type=Entry) for p in docs_dir.glob("days/*/*/*/entry.json")]
    return sorted(found, key=lambda e: (e.dt, e.surface, e.subject, e.revision), reverse=True)


def _forget(docs_dir: Path, surface: str) -> None:
    """Drop the pages of all but the surface's newest days."""
    mine = [e for e in _entries(docs_dir) if e.surface == surface]
    kept = sorted({e.dt for e in mine}, reverse=True)[:KEEP_DAYS]
    for entry in mine:
        if entry.dt not in kept:
            shutil.rmtree((docs_dir / summary_path(entry)).parent)
            _drop_pages(docs_dir, entry)


def _drop_pages(docs_dir: Path, verdict: Verdict | Entry) -> None:
    for suite in SUITES[verdict.subject]:
        shutil.rmtree(docs_dir / "validations" / suite / _run(verdict), ignore_errors=True)


def _index(docs_dir: Path) -> str:
    entries = _entries(docs_dir)
    built = {(e.surface, e.dt): e for e in entries if e.subject == "transitions"}
    days = [e for e in entries if e.subject == "logs"]
    rows = "".join(_line(e, built.get((e.surface, e.dt))) for e in days)
    # what was built without its logs being judged here
    judged = {(e.surface, e.dt) for e in days}
    rows += "".join(_line(None, e) for key, e in built.items() if key not in judged)
    names = [s for group in SUITES.values() for s in group if (docs_dir / "expectations" / f"{s}.html").exists()]
    suites = ", ".join(f'<a href="expectations/{s}.html">{s}</a>' for s in names)
    count = len({(e.surface, e.dt) for e in entries})
    body = f"""<h1>Data quality</h1>
<p class="lead">{count} validated day{"s" if count != 1 else ""}, the last {KEEP_DAYS} are kept. The rules: {suites}.</p>
<table class="days"><thead><tr><th>Day</th><th>Surface</th><th>Logs</th><th class="n">Requests</th><th class="n">Feedback</th>
<th class="n">Quarantined</th><th>Transitions</th><th>Why</th><th>Great Expectations</th></tr></thead>
<tbody>{rows}</tbody></table>"""
    return page("Data quality", body, '<link rel="stylesheet" href="static/site.css">')


def _line(logs: Entry | None, built: Entry | None) -> str:
    """A row of the index: the verdicts on a day's logs and on what was built of them."""
    found = [e for e in (logs, built) if e is not None]
    reasons = [r for e in found for r in e.reasons]
    more = f" <span class='muted'>and {len(reasons) - 1} more</span>" if len(reasons) > 1 else ""
    why = escape(reasons[0]) + more if reasons else ""
    pages = " ".join(f'<a href="{escape(href)}">{suite}</a>' for e in found for suite, href in e.pages.items())
    day = f"<strong>{found[0].dt}</strong>"
    cells = ["", "", "", ""]
    if logs is not None:
        day = f'<a href="{summary_path(logs)}">{day}</a> <span class="muted">r{logs.revision}</span>'
        quarantined = logs.counts["quarantined_requests"] + logs.counts["quarantined_feedback"]
        cells = [_badge(logs), f"{logs.counts['requests']:,}", f"{logs.counts['feedback']:,}", f"{quarantined:,}"]
    return (
        f"<tr><td>{day}</td><td>{escape(found[0].surface)}</td><td>{cells[0]}</td>"
        + "".join(f'<td class="n">{c}</td>' for c in cells[1:])
        + f'<td>{_badge(built) if built else ""}</td><td class="why">{why}</td><td class="suites">{pages}</td></tr>'
    )


def _badge(entry: Entry) -> str:
    return f'<a href="{summary_path(entry)}"><span class="badge {entry.status}">{entry.status}</span></a>'


@contextlib.contextmanager
def _alone(docs_dir: Path) -> Iterator[None]:
    docs_dir.mkdir(parents=True, exist_ok=True)
    with (docs_dir / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
