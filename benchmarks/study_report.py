"""What the study's cells say: tables a world, and paired differences over seeds.

GAUC: MTF-GAUC by the label valid; UVC, UDT: lifts, in %, of valid watches and of time watched. of the model-free ceiling: the
lift of discounted reward as a share of what an idealised learner without a model of the slate could reach
(`benchmarks/ceiling.py`), if the best action depends on five features, and on all of them; slate replay has such a model and may
exceed it. steps: of a training, each of so many rows. rest: trainings whose critics' error on held-out users' returns had come to
rest, of those whose cell keeps it. warned: rounds whose training gave a warning.

Headroom and the model-free ceiling come from `docs/results/worlds.json`, the figures that docs/results/worlds.md measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.ceiling import ceiling
from mtf.errors import InputError
from mtf.learning.config import with_overrides
from mtf.learning.registry import algorithm
from mtf.learning.trainer import TrainerConfig

Cell = dict[str, Any]
FEW_FEATURES = 5
GAUSSIAN_SD = 0.2
"""Of D1."""
TRUTH_SEED = 990_001
"""Of the users who judge; cells that do not say were judged by these."""
MEASURES = {"lift": ("se", "session reward"), "discounted": ("discounted_se", "discounted reward")}
"""What a policy is judged by, as cells name it: (its standard error there, in words)."""
FEWEST = 5
"""Seeds from which a p-value is printed."""

# committed in docs/study.md before the reported seeds were run: another family, size or world is not the primary one
PRIMARY_WORLD, PRIMARY_USERS, PRIMARY_DAYS, PRIMARY_BOX = "personalised", 20_000, 3, 0.3
PRIMARY = (
    ("slate_replay@D3", "naive@D3"),
    ("slate_replay@D3", "linear_advantage@D3"),
    ("slate_replay@D3", "corner@D3"),
    ("slate_replay@D3", "slate_replay@D2"),
    ("slate_replay@D3", "plug_in@D3"),
)


def read(folder: Path) -> list[Cell]:
    """All cells of a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def render(cells: list[Cell], worlds: dict[str, dict[str, float]]) -> str:
    """Two tables a world: true lifts by round, and what the last round's policy is worth. Means over seeds."""
    lines = []
    for world in sorted({cell["world"] for cell in cells}):
        groups = _groups([cell for cell in cells if cell["world"] == world])
        facts = worlds.get(world)
        head = f"headroom {facts['headroom']:+.1%} (SE {facts['headroom_se']:.1%})" if facts else "headroom not known"
        lines += ["", f"{world}: {head}", "", f"{_HEAD} lift over the start, % (SE), by round"]
        lines += [f"{_label(group)} {_by_round(group)}" for group in groups]
        lines += [
            "",
            f"{_HEAD} worst end  round  headroom  of the model-free ceiling  GAUC   UVC   UDT           steps  rest  warned",
        ]
        lines += [f"{_label(group)} {_last(group, facts)}" for group in groups]
        lines += _mixed({f"{_name(group[0])} {group[0]['exploration']} {group[0]['users']:,}": group for group in groups})
    return "\n".join(lines)


def over_seeds(lifts: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Mean lift [seeds] and its standard error, `errors` those of the single truths; nan of a single seed.

    The same users judge every seed: their error is shared and does not fall with the seeds.
    """
    spread = lifts.std(ddof=1) / np.sqrt(len(lifts)) if len(lifts) > 1 else np.nan
    return float(lifts.mean()), float(np.hypot(spread, errors.mean()))


def by_round(group: list[Cell], measure: str = "lift") -> list[tuple[float, float]]:
    """Each round's mean lift over the seeds of `group` and its standard error."""
    return list(map(over_seeds, *_lifts(group, measure)))


def paired(
    cells: list[Cell],
    worlds: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    users: int,
    days: int = 3,
    box: float = 0.3,
    family: str = "a second family, beside the primary one",
    asked: int = 0,
    apart: bool = False,
    measure: str = "lift",
) -> str:
    """A line a pair of policies, learner@D or `start`: the mean difference of their last lifts, paired by seed, in points.

    With several worlds the mean over them of each world's difference, their errors taken as independent; a line a world
    above it; or, if `apart`, each world's difference as a comparison of its own. The p-value is two-sided, of the mean over
    the root of both variances, the seeds' and the judges', and corrected for the pairs given (Holm), or for as many
    as `asked`, those not run among them; "-" below FEWEST seeds.
    Stops where a world has fewer than two seeds of a pair, naming all that lack, and where cells were not judged alike.
    """
    used = {(world, pair): in_common(cells, world, pair, users, days, box) for pair in pairs for world in worlds}
    few = [f"{one} / {other} in {world}: {len(both)}" for (world, (one, other)), both in used.items() if len(both) < 2]
    if few:
        wanted = f"{users:,} users a day, {days} days, box {box:g}"
        raise SystemExit("\n".join([f"at {wanted}, seeds in common, of at least two; run the rest first:", *few]))
    for both in used.values():
        _require_judged_alike(both)
    compared = [(pair, [world]) for world in worlds for pair in pairs] if apart else [(pair, list(worlds)) for pair in pairs]
    found = [[_difference(used[world, pair], measure) for world in within] for pair, within in compared]
    number = max(asked, len(pairs)) * (len(worlds) if apart else 1)
    # a pair of too few seeds, or that was not run, has its place in the family all the same
    told = [p_value(parts) if min(part.n for part in parts) >= FEWEST else 1.0 for parts in found]
    corrected = holm([*told, *[1.0] * (number - len(compared))])
    lines = [
        f"{', '.join(worlds)}: difference of true {MEASURES[measure][1]}, points of the start's (SE: over seeds, of the judging "
        "users)",
        f"p of both together, after Holm over the {number} {'asked for' if asked else 'given'}: {family}",
    ]
    for ((one, other), within), parts, p in zip(compared, found, corrected[: len(compared)], strict=True):
        name = f"{one:<28} - {other:<28}"
        if len(within) > 1:
            lines += [f"{name} {world:<14} {_said(part)}" for world, part in zip(within, parts, strict=True)]
            name += f" {f'mean of {len(within)}':<14}"
        elif apart:
            name += f" {within[0]:<14}"
        said = f"{p:.4f}" if min(part.n for part in parts) >= FEWEST else "-"
        lines.append(f"{name} {_said(average(parts))}   p {said}")
    lines += _mixed({" / ".join(p): [c for world in worlds for both in used[world, p] for c in both if c] for p in pairs})
    return "\n".join(lines)


def in_common(
    cells: list[Cell], world: str, pair: tuple[str, str], users: int, days: int, box: float
) -> list[tuple[Cell, Cell | None]]:
    """Both policies' cells of each seed that both have, in order of the seeds; None for `start`, which needs none."""
    size = [c for c in cells if (c["world"], c["users"], c["days"], c["box"]) == (world, users, days, box)]
    ones, others = ({c["seed"]: c for c in size if _short(c) == name} for name in pair)
    return [(ones[seed], others.get(seed)) for seed in sorted(ones) if pair[1] == "start" or seed in others]


def primary(cells: list[Cell]) -> str:
    """The five comparisons that docs/study.md committed to before their seeds were run, Holm over them."""
    return paired(cells, [PRIMARY_WORLD], PRIMARY, PRIMARY_USERS, PRIMARY_DAYS, PRIMARY_BOX, "the primary family")


class Difference(NamedTuple):
    """Of two policies' lifts in a world, in shares of the start's reward. n: seeds that both have. seeds: standard error of
    the mean over them. judges: standard error that the users who judged it, the same for each seed, leave."""

    n: int
    mean: float
    seeds: float
    judges: float


def average(parts: Sequence[Difference]) -> Difference:
    """Of differences with independent errors; n: of all.

    Truths of the same seed have users in common: what they said of a move in `personalised` and in `global_only` correlated
    by .15, so that the mean of two such worlds has judges' errors some 7 % larger than this says.
    """
    seeds, judges = (math.hypot(*errors) / len(parts) for errors in ([p.seeds for p in parts], [p.judges for p in parts]))
    return Difference(sum(p.n for p in parts), sum(p.mean for p in parts) / len(parts), seeds, judges)


def p_value(parts: Sequence[Difference]) -> float:
    """Two-sided, of no difference in the mean of `parts`: Student's t, degrees of freedom by Welch and Satterthwaite.

    A part's seeds have n - 1; a judges' error comes from some ten thousand users: as good as known. It therefore brings
    degrees of freedom. Where both errors are alike, what is called .001 happens by chance in .0055 of pairs of two seeds, in
    .0019 of five and .0013 of ten (400,000 drawn); hence no p below FEWEST.
    """
    mean = average(parts)
    se = math.hypot(mean.seeds, mean.judges)
    if se == 0:  # a learner that never moves, against the start
        return float(mean.mean == 0)
    fourth = sum((part.seeds / len(parts)) ** 4 / (part.n - 1) for part in parts)
    return float(2 * stats.t.sf(abs(mean.mean) / se, se**4 / fourth if fourth else np.inf))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in their order."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate([min(1.0, p[i] * (len(p) - rank)) for rank, i in enumerate(order)])
    return corrected.tolist()


def _difference(both: list[tuple[Cell, Cell | None]], measure: str = "lift") -> Difference:
    """Of the last rounds' lifts. The same users judge every seed, so that the spread over seeds does not hold their error.

    Cells hold what groups of these users said of each policy and of the start (`judges`): how the difference spreads over the
    groups is its error. Of discounted reward they do not, nor do cells of before they did: there is the standard error of their
    own lift alone, and the larger of the two
    policies' means stands in. It is too large for policies that are much alike (three times for an ensemble with and without
    a setting that changed little). Measured in `personalised` with 5,000 users a truth, as a share of the paired error by
    sessions (which the spread over 12 truths bears out: 1.04 of it): for ten pairs of trained policies (slate replay D3 and D2,
    linear advantage, corner, plug-in; three truths) .97 to 1.33; for fifteen pairs of the start moved by .15 or .3, by a
    constant or with the state: 1.3 to 1.6 where both move alike, .97 to 1.12 where they have little in common, .71 to .83 where
    they move against each other: there it is too small, and the root of the sum of squares is right.
    """
    keys = measure, MEASURES[measure][0]
    lift, se = (np.array([[c["rounds"][-1][k] if c else 0.0 for c in pair] for pair in both]) for k in keys)
    away = lift[:, 0] - lift[:, 1]
    grouped = _judged(both, away) if measure == "lift" else None
    return Difference(
        n=len(away),
        mean=float(away.mean()),
        seeds=float(away.std(ddof=1) / np.sqrt(len(away))),
        judges=float(se.mean(axis=0).max()) if grouped is None else grouped,
    )


def _judged(both: list[tuple[Cell, Cell | None]], away: np.ndarray) -> float | None:
    """Standard error that the judging users leave in the mean of `away`, from their groups; None where no pair holds them.

    The same users judge every seed, so that the seeds which hold what they said speak for the others; of few seeds it is a
    little too large, for what is one seed's own is averaged less.
    """
    holds = [all("judges" in cell for cell in pair if cell) for pair in both]
    if sum(holds) < 2:
        return None
    both, away = [pair for pair, has in zip(both, holds, strict=True) if has], away[holds]
    start = np.array(both[0][0]["judges"])
    # a lift is a quotient by the start's mean: by its linear part what a group says is (one - other - away start) / start
    said = [
        np.array(one["rounds"][-1]["judges"]) - (np.array(other["rounds"][-1]["judges"]) if other else start) - of * start
        for (one, other), of in zip(both, away, strict=True)
    ]
    return float(np.mean(said, axis=0).std(ddof=1) / np.sqrt(len(start)) / start.mean())


def _require_judged_alike(both: list[tuple[Cell, Cell | None]]) -> None:
    """Stops where cells that are compared were played in different worlds of one name, or judged by different users."""
    cells = [cell for pair in both for cell in pair if cell]
    for what in ("world_sha", "truth_users", "truth_seeds"):
        said = [cell.get(what, [TRUTH_SEED] if what == "truth_seeds" else None) for cell in cells]
        found = sorted({str(value) for value in said if value is not None})
        if len(found) > 1:
            raise SystemExit(
                f"{_short(cells[0])} in {cells[0]['world']}: cells with {what} {' and '.join(found)}; compare those of one"
            )


def _said(of: Difference) -> str:
    return f"{of.n:>3} seeds {100 * of.mean:+7.2f} (seeds {100 * of.seeds:.2f}, judges {100 * of.judges:.2f})"


def _mixed(taken: dict[str, list[Cell]]) -> list[str]:
    """A line where cells that are taken together were made by different code; cells that do not say count as one form."""
    forms = {name: len({cell.get("code", "-") for cell in cells}) for name, cells in taken.items()}
    mixed = ", ".join(f"{name} ({n})" for name, n in forms.items() if n > 1)
    return [f"cells of several forms of the code (how many): {mixed}"] if mixed else []


_HEAD = f"{'learner':<32} {'data':<4} {'users':>7} {'box':>4} {'seeds':>5}"


def _groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that differ by their seed alone; the best learner of each size first."""
    keys = sorted({_key(cell) for cell in cells})
    groups = [[cell for cell in cells if _key(cell) == key] for key in keys]
    return sorted(groups, key=lambda g: (*_key(g[0])[:3], -np.mean([c["rounds"][-1]["lift"] for c in g])))


def _key(cell: Cell) -> tuple[Any, ...]:
    return cell["users"], cell["days"], cell["exploration"], cell["box"], cell["pooled"], cell["learner"]


def _short(cell: Cell) -> str:
    """learner@D3; `:fresh` where each round trained on the newest day alone."""
    return f"{cell['learner']}{'' if cell['pooled'] else ':fresh'}@{cell['exploration']}"


def _name(cell: Cell) -> str:
    return f"{cell['learner']}{'' if cell['pooled'] else ' (fresh)'}"


def _label(group: list[Cell]) -> str:
    c = group[0]
    return f"{_name(c):<32} {c['exploration']:<4} {c['users']:>7,} {c['box']:>4} {len(group):>5}"


def _by_round(group: list[Cell]) -> str:
    return " ".join(f"{100 * mean:+6.1f} ({'-' if math.isnan(se) else f'{100 * se:.1f}'})" for mean, se in by_round(group))


def _lifts(group: list[Cell], measure: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lifts and their standard errors, an array over seeds for each round."""
    rounds = range(len(group[0]["rounds"]))
    values, errors = ([np.array([c["rounds"][i][k] for c in group]) for i in rounds] for k in (measure, MEASURES[measure][0]))
    return values, errors


def _last(group: list[Cell], facts: dict[str, float] | None) -> str:
    """Of the last round: the worst seed's lift, that of any round, shares of the headroom and of the ceilings, ranking,
    behaviours."""
    last = [cell["rounds"][-1] for cell in group]
    lift = float(np.mean([of["lift"] for of in last]))
    share = ceilings = "-"
    if facts and facts["headroom"] > 3 * facts["headroom_se"] > 0:
        reached = lift / facts["headroom"]
        share = f"{reached:.0%}"
        if "headroom_discounted" in facts:  # where the ceiling's assumptions hold (docs/results/worlds.md)
            few, all_of_them = (_ceiling(group[0], facts, n) for n in (FEW_FEATURES, int(facts["features"])))
            # the ceiling is a share of what is to be had of discounted reward
            reached = float(np.mean([of["discounted"] for of in last])) / facts["headroom_discounted"]
            ceilings = f"{reached / few:.0%} to {reached / all_of_them:.0%}"
    # cells of before kept a TD error in its place, which rises with the values that it is measured against
    rest = [of["learned"]["flat"] for cell in group for of in cell["rounds"] if of.get("held_out_error")]
    warned = sum(bool(of["warnings"]) for cell in group for of in cell["rounds"])
    rounds = sum(len(cell["rounds"]) for cell in group)
    worst = min(of["lift"] for cell in group for of in cell["rounds"])
    gauc = np.mean([of["gauc"]["value"] for of in last])
    uvc, udt = (100 * float(np.mean([of["metrics"][k] for of in last])) for k in ("valid", "duration"))
    return (
        f"{100 * min(of['lift'] for of in last):+7.1f} % {100 * worst:+6.1f}  {share:>8}  {ceilings:>25}"
        f"  {gauc:.3f} {uvc:+5.1f} {udt:+5.1f}"
        f"  {steps_of(group[0]['learner']):>14}  {f'{sum(rest)}/{len(rest)}' if rest else '-':>4}  {warned}/{rounds}"
    )


def split_learner(learner: str) -> tuple[str, dict[str, str]]:
    """`name:key=value:key=value` as a name and its settings."""
    name, *settings = learner.split(":")
    return name, dict(s.replace("+", ",").split("=") for s in settings)


def steps_of(learner: str) -> str:
    """Steps of a training and rows of each, `4,000 x 1,024`, by today's defaults, which were those of all cells; `-` for what
    takes none, and for settings that are no more."""
    name, settings = split_learner(learner)
    try:
        config = with_overrides(algorithm(name).config, settings)
    except InputError:
        return "-"
    return f"{config.steps:,} x {config.batch:,}" if isinstance(config, TrainerConfig) else "-"


def _ceiling(cell: Cell, facts: dict[str, float], features: int) -> float:
    """What an idealised model-free learner reaches with all the sessions that the cell's last training read.

    Noise teaches by its spread: Gaussian noise as a box of sqrt 3 its standard deviation.
    """
    sessions = cell["rounds"][-1]["sessions"] if cell["pooled"] else sum(of["sessions"] for of in cell["rounds"])
    return ceiling(
        facts["headroom_discounted"],
        facts["personal_discounted"],
        sessions,
        rounds=1,
        value=facts["value"],
        discounted_requests=facts["discounted_requests"],
        requests=facts["requests"],
        residual_sd=facts["residual_sd"],
        half_width=math.sqrt(3) * GAUSSIAN_SD if cell["exploration"] == "D1" else cell["box"],
        dimensions=int(facts["dimensions"]),
        features=features,
    )
