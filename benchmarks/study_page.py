"""The study's page: what its cells say, as a figure and tables that docs/study.md reads from.

    python -m benchmarks.study page --out docs/results/study --page docs/results/study.md

writes the page and, beside it, the figure. The same cells give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.study_report import (
    FEWEST,
    MEASURES,
    PRIMARY,
    PRIMARY_BOX,
    PRIMARY_DAYS,
    PRIMARY_USERS,
    PRIMARY_WORLD,
    Cell,
    Difference,
    by_round,
    holm,
    in_common,
    over_seeds,
    p_value,
    paired,
    primary,
    render,
)
from mtf.fileio import write_atomic

WORLDS = ("personalised", "global_only", "default", "fitted", "null")
FAR = WORLDS[1:4]
"""Where production starts far from its optimum."""
USERS, DAYS, BOX = PRIMARY_USERS, PRIMARY_DAYS, PRIMARY_BOX
SMALL_USERS = 2_000
KINDS = {"D3": "three rounds (D3)", "D2": "one box (D2)", "D1": "Gaussian noise (D1)"}
DRAWN = {  # learner: (its name in the figure, its colour)
    "slate_replay": ("slate replay", "#2557a7"),
    "integrated_rl": ("integrated_rl", "#d1603d"),
    "linear_advantage": ("linear advantage", "#3a8f5c"),
    "naive": ("naive", "#8a5aa8"),
    "corner": ("corner rule", "#b8860b"),
    "plug_in": ("plug-in's ranking", "#7f8c8d"),
}
INK, LINE = "#1f2937", "#d7dce3"

COMMAND = "`python -m benchmarks.study page --out docs/results/study --page docs/results/study.md`"
LEGEND = """\
Two tables a world: true session reward over the start by round (mean over seeds; standard error), then the last round's policy:
its worst seed, and the worst round of any seed; shares of the headroom and, of discounted reward, of the information ceiling of
a learner without a model of the slate (if the best action depends on five features, and on all of them), MTF-GAUC, valid watches
(UVC) and time watched (UDT) over the start's in %, steps of a training and the rows of each, trainings whose critics' error on
held-out users' returns had come to rest within 1 % (of those whose cell keeps it), rounds with a warning."""
DISCOUNTED = """\
The same policies by V, what learners maximise and the gate judges: reward discounted by .9 a request, from a session's start. It
counts little of what a longer session adds. Cells do not hold what groups of judges said of it: differences are printed with the
judges' error of a single lift, which is too large for policies that are much alike."""
PAIRED = """\
Paired by seed. The same users judge all policies: the spread over seeds does not hold what other users would have said, so both
errors are printed, and p is of both together, after Holm within its family, pairs that were not run among it; "-" below five
seeds, of which it would be too small."""

OTHERS = ("linear_advantage", "corner", "plug_in", "integrated_rl", "naive")
USUAL = ("unified_rl", "batch_rl", "td3", "td3_bc", "ddpg", "cql_sac", "iql")
HELD = ("td3_bc", "batch_rl", "cql_sac", "iql")
COMPARATORS = (*USUAL, "bc", "es")
SETTINGS = (
    "lam=0",
    "beta=1",
    "eta=0.3",
    "critics=24",
    "target=subtract",
    "target=subtract:alpha=0",
    "target=subtract:continuous=True",
    "form=slate",
    "critic_hidden=64+64:actor_hidden=64",
    "continuous=True",
    "max_rms_step=1",
)
PARTS = ("curvature=False", "plug_in=False", "confirm=0", "fresh", "threshold=0:kappa=0.001", "max_rms_step=1")
QUICK_TARGETS = ("td3_bc:tau=0.05", "td3:tau=0.05", "ddpg:tau=0.05", "iql:tau=0.05", "cql_sac:tau=0.05")
"""The usual learners with targets ten times as quick, whose critics are at rest or near it at the end."""


def families() -> list[tuple[str, tuple[str, ...], list[tuple[str, str]]]]:
    """What is asked beside the primary family: (question, worlds, pairs); Holm within each."""
    every = WORLDS[:-1]
    found = [
        (f"the default against all, {title}", every, _default_against((*OTHERS, *COMPARATORS), kind))
        for kind, title in KINDS.items()
    ]
    for world in ((name,) for name in every):
        found += [
            (f"the default against others, {title}", world, _default_against(OTHERS, kind)) for kind, title in KINDS.items()
        ]
        moves = (("D3", "D2"), ("D2", "D1"))
        learners = ("slate_replay", "integrated_rl", "naive")
        found += [
            *(
                (f"the default against the usual learners, {title}", world, _default_against(COMPARATORS, kind))
                for kind, title in KINDS.items()
            ),
            ("rounds, boxes and noise", world, [(f"{of}@{one}", f"{of}@{other}") for of in learners for one, other in moves]),
            *(
                (f"the ensemble against {title}", world, [(f"integrated_rl@{kind}", f"{of}@{kind}") for kind in KINDS])
                for of, title in (("naive", "its naive form"), ("linear_advantage", "the linear advantage"))
            ),
        ]
    found.append(("UnifiedRL against IntegratedRL", every, [(f"unified_rl@{kind}", f"integrated_rl@{kind}") for kind in KINDS]))
    ensemble = [(f"integrated_rl:{setting}@D2", "integrated_rl@D2") for setting in SETTINGS]
    replay = [(f"slate_replay:{part}@D3", "slate_replay@D3") for part in PARTS]
    quick = [(f"{of}@D2", f"{of.split(':')[0]}@D2") for of in QUICK_TARGETS]
    starts = [(f"{learner}@D3", "start") for learner in ("slate_replay", *OTHERS)]
    still = [(f"{learner}@D3", "start") for learner in ("slate_replay", *OTHERS, *COMPARATORS)]
    plug_in = _default_against(("plug_in",), "D3")
    return [
        *found,
        ("the default against the plug-in's ranking", ("fitted_elasticity_0",), plug_in),
        ("the default against the plug-in's ranking", ("fitted_elasticity_2",), plug_in),
        ("the default against quick targets", ("personalised",), _default_against(QUICK_TARGETS, "D2")),
        ("quick targets against slow ones", ("personalised",), quick),
        ("what the ensemble's settings are worth", ("personalised",), ensemble),
        ("what slate replay's parts are worth", ("personalised",), replay),
        ("against the start", ("personalised",), starts),
        ("against the start", ("null",), still),
    ]


class Hypothesis(NamedTuple):
    """Of docs/study.md: each pair in each world, Holm over all of them; by cells of `users` a day and so many days."""

    title: str
    worlds: tuple[str, ...]
    pairs: list[tuple[str, str]]
    users: int = USERS
    days: int = DAYS


def hypotheses() -> list[Hypothesis]:
    """H14 to H20, H22; and what learners that are held to logged actions add to `bc`, which walks to the middle of a cut box."""
    rounds = [(f"{of}@D3", f"{of}@D2") for of in USUAL]
    free = "naive:max_rms_step=1@D3"
    small = [(f"slate_replay:{part}@D3", "slate_replay@D3") for part in ("confirm=0", "plug_in=False")]
    started = [("slate_replay@D3", "start")]
    held = {kind: [(f"{of}@{kind}", f"bc@{kind}") for of in HELD] for kind in KINDS}
    return [
        Hypothesis("H14: the default against the usual learners, in rounds", WORLDS[:-1], _default_against(USUAL, "D3")),
        Hypothesis("H15: rounds against one box, the usual learners", FAR, rounds),
        Hypothesis("H16: naive without the step's limit", ("personalised",), [(free, "naive@D3"), (free, "start")]),
        Hypothesis("H17: what parts are worth where data are few (2,000 users a day)", ("personalised",), small, SMALL_USERS),
        Hypothesis("H17 in null", ("null",), small, SMALL_USERS),
        Hypothesis(
            "H18: the default without the step's limit",
            ("global_only",),
            [("slate_replay:max_rms_step=1@D3", "slate_replay@D3")],
        ),
        *(
            Hypothesis(f"H19: small days elsewhere ({users:,} users a day)", FAR, started, users)
            for users in (SMALL_USERS, 3 * SMALL_USERS)
        ),
        Hypothesis("H20: five rounds", ("global_only",), _default_against(("linear_advantage", "unified_rl"), "D3"), days=5),
        Hypothesis(
            "H22: the default against the usual learners, from Gaussian noise", ("default",), _default_against(USUAL, "D1")
        ),
        *(Hypothesis(f"What is learned beyond standing still, {KINDS[kind]}", WORLDS[:-1], of) for kind, of in held.items()),
    ]


def page(cells: list[Cell], worlds: dict[str, dict[str, float]], figure: str) -> str:
    """The page, in Markdown. worlds: docs/results/worlds.json; figure: the file that it shows."""
    parts = [
        "# The study's tables",
        f"{COMMAND} wrote this page from the {len(cells)} cells in [study/](study/). "
        "[docs/study.md](../study.md) says what they mean, and where and when they were run.",
        f"![true session reward over the start, by round and world]({figure})",
        overview(cells),
        "## By discounted reward",
        DISCOUNTED,
        overview(cells, "discounted"),
        *discounted(cells),
        "## Everything, by world",
        LEGEND,
        _printed(render(cells, worlds).strip()),
        "## Paired differences",
        PAIRED,
        "### The five that were committed to",
        _printed(primary(cells)) if len(_run(cells, (PRIMARY_WORLD,), PRIMARY)) == len(PRIMARY) else "Some of them were not run.",
    ]
    for of in hypotheses():
        parts += _section(cells, of.title, of.worlds, of.pairs, apart=True, users=of.users, days=of.days)
    for question, worlds_of, pairs in families():
        parts += _section(cells, f"{', '.join(worlds_of)}: {question}", worlds_of, pairs)
    parts += moves(cells)
    return "\n\n".join(parts) + "\n"


def discounted(cells: list[Cell]) -> list[str]:
    """The default against all others in each world, by discounted reward; Holm over all of a kind of exploration."""
    parts = []
    for kind, title in KINDS.items():
        question = f"By discounted reward: the default against all, {title}"
        pairs = _default_against((*OTHERS, *COMPARATORS), kind)
        parts += _section(cells, question, WORLDS[:-1], pairs, apart=True, measure="discounted")
    return parts


def moves(cells: list[Cell]) -> list[str]:
    """H21: how far a training moves the policy in rounds of `null`, where nothing is to be found, of learners that share two
    seeds with the default, or more; [] where it was not played. p: Student's t of differences to it, paired by seed, Holm over
    the usual learners."""
    of = [c for c in _usual(cells) if (c["world"], c["exploration"]) == ("null", "D3") and ":" not in c["learner"]]
    moved = {name: {c["seed"]: _moves(c) for c in of if c["learner"] == name} for name in {c["learner"] for c in of}}
    default = moved.get("slate_replay", {})
    moved = {name: mine for name, mine in moved.items() if len(mine.keys() & default.keys()) > 1}
    if not moved:
        return []
    more = {name: _over_seeds([mine[s][-1] - default[s][-1] for s in mine if s in default]) for name, mine in moved.items()}
    told = [name for name in USUAL if name in more and more[name].n >= FEWEST]
    p = dict(zip(USUAL, holm([p_value([more[name]]) if name in told else 1.0 for name in USUAL]), strict=True))
    rows = []
    for name, mine in sorted(moved.items(), key=lambda item: np.mean([of[-1] for of in item[1].values()])):
        end, longest = _over_seeds([of[-1] for of in mine.values()]), max(max(of) for of in mine.values())
        beyond = "" if name == "slate_replay" else f"{more[name].mean:+.3f} +- {more[name].seeds:.3f}"
        said = f"{p[name]:.4f}" if name in told else ""
        rows.append(f"| `{name}` | {end.n} | {end.mean:.3f} +- {end.seeds:.3f} | {longest:.3f} | {beyond} | {said} |")
    head = "| learner | seeds | the last training's move | the longest of any round and seed | more than slate replay's | p |"
    return [
        "### H21: how far noise moves a policy, null, three rounds (D3)",
        "Mean absolute move of a training over states and dimensions, in half-widths of the box; errors over seeds; p after Holm "
        f"over the {len(USUAL)} usual learners.",
        "\n".join([head, "|---" * 6 + "|", *rows]),
    ]


def overview(cells: list[Cell], measure: str = "lift") -> str:
    """A table a kind of exploration: learner by world, the last round's lift in %, its error, how many seeds."""
    parts = [
        f"True {MEASURES[measure][1]} over the start, %, of the last policy from {DAYS} days of {USERS:,} users (half of whom "
        "train), half-width .3: mean +- standard error (seeds and judging users together), in brackets the worst seed and how "
        "many seeds."
    ]
    for kind, title in KINDS.items():
        of = [c for c in _usual(cells) if c["exploration"] == kind and ":" not in c["learner"] and c["world"] in WORLDS]
        if not of:
            continue
        names = sorted({c["learner"] for c in of})
        worth = {name: _over_worlds([c for c in of if c["learner"] == name], measure) for name in names}
        learners = sorted(names, key=lambda name: -worth[name])
        rows = [
            f"| `{name}` | "
            + " | ".join(_entry([c for c in of if (c["learner"], c["world"]) == (name, w)], measure) for w in WORLDS)
            + " |"
            for name in learners
        ]
        head = "| learner | " + " | ".join(f"`{w}`" for w in WORLDS) + " |"
        parts += [f"### {title[0].upper()}{title[1:]}", "\n".join([head, "|---" * (len(WORLDS) + 1) + "|", *rows])]
    return "\n\n".join(parts)


def figure(cells: list[Cell], worlds: dict[str, dict[str, float]]) -> str:
    """SVG: a panel a world with headroom; lines: rounds (D3), squares: one box (D2) with as many sessions."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "mtf"
    mpl.rcParams["svg.fonttype"] = "none"
    drawn = [w for w in WORLDS if worlds.get(w, {}).get("headroom", 0) > 0]
    canvas = Figure(figsize=(3.1 * len(drawn) + 0.4, 3.9), layout="constrained")
    axes = canvas.subplots(1, len(drawn), squeeze=False)[0]
    for panel, world in zip(axes, drawn, strict=True):
        _panel(panel, [c for c in cells if c["world"] == world], worlds[world]["headroom"])
        panel.set_title(world, fontsize=11, color=INK)
    axes[0].set_ylabel("true session reward over the start", color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    out = io.StringIO()
    canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def write(cells: list[Cell], worlds: dict[str, dict[str, float]], path: Path) -> None:
    """The page at `path`, its figure beside it."""
    drawing = path.with_suffix(".svg")
    write_atomic(drawing, figure(cells, worlds).encode())
    write_atomic(path, page(cells, worlds, drawing.name).encode())


def _panel(panel: Any, cells: list[Cell], headroom: float) -> None:
    from matplotlib.ticker import MultipleLocator

    panel.axhline(0, color=LINE, linewidth=1)
    panel.axhline(headroom, color=INK, linewidth=1, linestyle=":")
    panel.annotate(
        "headroom found",
        (0.02, headroom),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color=INK,
    )
    for place, (learner, (name, colour)) in enumerate(DRAWN.items()):
        rounds, box = ([c for c in _usual(cells) if (c["learner"], c["exploration"]) == (learner, kind)] for kind in ("D3", "D2"))
        shift = 0.05 * (place - (len(DRAWN) - 1) / 2)
        if rounds:
            means, errors = zip(*by_round(rounds), strict=True)
            panel.errorbar(
                np.arange(DAYS + 1) + shift,
                [0, *means],
                [0, *errors],
                fmt="o-",
                color=colour,
                markersize=4,
                linewidth=1.6,
                elinewidth=1,
                label=name,
            )
        if box:
            mean, error = by_round(box)[-1]
            panel.errorbar(DAYS + 1 + 2 * shift, mean, error, fmt="s", color=colour, markersize=5, elinewidth=1)
    panel.axvline(DAYS + 0.5, color=LINE, linewidth=1)
    panel.set_xticks([*range(DAYS + 1), DAYS + 1], ["start", *map(str, range(1, DAYS + 1)), "one\nbox"])
    panel.set_xlabel("round", color=INK)
    panel.yaxis.set_major_locator(MultipleLocator(0.05))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:+.0%}" if value else "0")
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(LINE)
    panel.tick_params(colors=INK, length=0, labelsize=9)


def _end(cell: Cell, measure: str) -> float:
    return float(cell["rounds"][-1][measure])


def _moves(cell: Cell) -> list[float]:
    return [float(of["step"]["mean_abs_move"]) for of in cell["rounds"]]


def _over_seeds(values: list[float]) -> Difference:
    """Of what no users judge."""
    mean, error = over_seeds(np.array(values), np.zeros(len(values)))
    return Difference(len(values), mean, error, 0.0)


def _over_worlds(group: list[Cell], measure: str) -> float:
    """Each world counts once, however many seeds it has."""
    by_world = [[_end(c, measure) for c in group if c["world"] == world] for world in WORLDS]
    return float(np.mean([np.mean(ends) for ends in by_world if ends]))


def _entry(group: list[Cell], measure: str) -> str:
    if not group:
        return ""
    mean, error = by_round(group, measure)[-1]
    if len(group) == 1:
        return f"{100 * mean:+.1f} (one seed)"
    return f"{100 * mean:+.1f} +- {100 * error:.1f} ({100 * min(_end(c, measure) for c in group):+.1f}; {len(group)})"


def _usual(cells: list[Cell]) -> list[Cell]:
    """Those of the primary comparisons' size, box and pooling."""
    return [c for c in cells if (c["users"], c["days"], c["box"], c["pooled"]) == (USERS, DAYS, BOX, True)]


def _default_against(others: Sequence[str], kind: str) -> list[tuple[str, str]]:
    return [(f"slate_replay@{kind}", f"{other}@{kind}") for other in others]


def _section(
    cells: list[Cell],
    title: str,
    worlds: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    *,
    apart: bool = False,
    measure: str = "lift",
    users: int = USERS,
    days: int = DAYS,
) -> list[str]:
    """The pairs that were run under their title, Holm over all of them; nothing where none was."""
    if not (there := _run(cells, worlds, pairs, users, days)):
        return []
    said = paired(cells, worlds, there, users, days, BOX, "a family of its own", len(pairs), apart, measure)
    return [f"### {title}", _printed(said)]


def _run(
    cells: list[Cell], worlds: Sequence[str], pairs: Sequence[tuple[str, str]], users: int = USERS, days: int = DAYS
) -> list[tuple[str, str]]:
    """The pairs that have two seeds in common, or more, in each of the worlds."""
    return [pair for pair in pairs if all(len(in_common(cells, world, pair, users, days, BOX)) > 1 for world in worlds)]


def _printed(text: str) -> str:
    return f"```\n{text}\n```"
