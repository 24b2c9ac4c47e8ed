"""What the study's cells say: tables a world, and paired differences over seeds.

GAUC: MTF-GAUC by the label valid; UVC, UDT: lifts, in %, of valid watches and of time watched. of the model-free ceiling: the
lift as a share of what an idealised learner without a model of the slate could reach (`benchmarks/ceiling.py`), if the best
action depends on five features, and on all of them; slate replay has such a model and may exceed it. flat: trainings whose
held-out loss had stopped falling, of those that take steps. warned: rounds whose training gave a warning.

Headroom and the model-free ceiling come from `docs/results/worlds.json`, the figures that docs/results/worlds.md measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.ceiling import ceiling

Cell = dict[str, Any]
FEW_FEATURES = 5


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
        lines += ["", f"{_HEAD} worst end  round  headroom  of the model-free ceiling  GAUC   UVC   UDT  flat  warned"]
        lines += [f"{_label(group)} {_last(group, facts)}" for group in groups]
        for group in groups:
            lines += _mixed(f"{_name(group[0])} {group[0]['exploration']} {group[0]['users']:,}", group)
    return "\n".join(lines)


def over_seeds(lifts: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Mean lift [seeds] and its standard error, `errors` those of the single truths.

    The same users judge every seed: their error is shared and does not fall with the seeds.
    """
    spread = lifts.std(ddof=1) / np.sqrt(len(lifts)) if len(lifts) > 1 else 0.0
    return float(lifts.mean()), float(np.hypot(spread, errors.mean()))


def paired(cells: list[Cell], world: str, pairs: list[tuple[str, ...]], users: int, days: int = 3, box: float = 0.3) -> str:
    """A line a pair: mean difference of the last lifts over the seeds that both have, t-test, p-values after Holm.

    The policies of a pair are judged by the same users, so what they share cancels; the spread over seeds holds what is left.
    """
    size = (world, users, days, box)
    last = {
        (_short(c), c["seed"]): c["rounds"][-1]["lift"] for c in cells if (c["world"], c["users"], c["days"], c["box"]) == size
    }
    found = []
    for one, other in pairs:
        seeds = sorted(s for name, s in last if name == one and (other == "start" or (other, s) in last))
        away = np.array([last[one, s] - (0.0 if other == "start" else last[other, s]) for s in seeds])
        if len(away) < 2:
            raise SystemExit(f"{one} / {other}: {len(away)} seeds in common; run at least two")
        se = float(away.std(ddof=1) / np.sqrt(len(away)))
        found.append((one, other, len(away), float(away.mean()), se, float(stats.ttest_1samp(away, 0).pvalue)))
    order = np.argsort([p for *_, p in found])
    holm = np.empty(len(found))
    holm[order] = np.maximum.accumulate([min(1.0, found[i][-1] * (len(found) - rank)) for rank, i in enumerate(order)])
    lines = [f"{world}: difference of true session reward, points of the start's (SE over seeds)"]
    for (one, other, n, mean, se, _), p in zip(found, holm, strict=True):
        lines.append(f"{one:<28} - {other:<28} {n:>3} seeds {100 * mean:+7.2f} ({100 * se:.2f})   p {p:.4f} (Holm)")
    return "\n".join(lines)


def _mixed(name: str, cells: list[Cell]) -> list[str]:
    """A line where cells that are taken together were made by different code; cells that do not say count as one form."""
    forms = len({cell.get("code", "-") for cell in cells})
    return [f"{name}: cells of {forms} forms of the code"] if forms > 1 else []


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
    return " ".join(f"{100 * mean:+6.1f} ({100 * se:.1f})" for mean, se in map(over_seeds, *_lifts(group)))


def _lifts(group: list[Cell]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lifts and their standard errors, an array over seeds for each round."""
    rounds = range(len(group[0]["rounds"]))
    values, errors = ([np.array([c["rounds"][i][k] for c in group]) for i in rounds] for k in ("lift", "se"))
    return values, errors


def _last(group: list[Cell], facts: dict[str, float] | None) -> str:
    """Of the last round: the worst seed's lift, that of any round, shares of the headroom and of the ceilings, ranking,
    behaviours."""
    last = [cell["rounds"][-1] for cell in group]
    lift = float(np.mean([of["lift"] for of in last]))
    share = ceilings = "-"
    if facts and facts["headroom"] > 3 * facts["headroom_se"] > 0:
        reached = lift / facts["headroom"]
        few, all_of_them = (_ceiling(group[0], facts, n) for n in (FEW_FEATURES, int(facts["features"])))
        share, ceilings = f"{reached:.0%}", f"{reached / few:.0%} to {reached / all_of_them:.0%}"
    flat = [of["learned"]["flat"] for cell in group for of in cell["rounds"] if of["learned"]["flat"] is not None]
    warned = sum(bool(of["warnings"]) for cell in group for of in cell["rounds"])
    rounds = sum(len(cell["rounds"]) for cell in group)
    worst = min(of["lift"] for cell in group for of in cell["rounds"])
    gauc = np.mean([of["gauc"]["value"] for of in last])
    uvc, udt = (100 * float(np.mean([of["metrics"][k] for of in last])) for k in ("valid", "duration"))
    return (
        f"{100 * min(of['lift'] for of in last):+7.1f} % {100 * worst:+6.1f}  {share:>8}  {ceilings:>25}"
        f"  {gauc:.3f} {uvc:+5.1f} {udt:+5.1f}"
        f"  {f'{sum(flat)}/{len(flat)}' if flat else '-':>4}  {warned}/{rounds}"
    )


def _ceiling(cell: Cell, facts: dict[str, float], features: int) -> float:
    """What an idealised model-free learner reaches with all the sessions that the cell's last training read."""
    sessions = cell["rounds"][-1]["sessions"] if cell["pooled"] else sum(of["sessions"] for of in cell["rounds"])
    return ceiling(
        facts["headroom"],
        facts["personal"],
        sessions,
        rounds=1,
        session_reward=facts["session_reward"],
        requests=facts["requests"],
        residual_sd=facts["residual_sd"],
        half_width=cell["box"],
        dimensions=int(facts["dimensions"]),
        features=features,
    )
