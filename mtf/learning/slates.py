"""Slates of logged candidates, re-ranked for any action, and the few numbers that stand for a slate.

An action reaches the user only through the items that it ranks to the top. For requests that logged all candidates that
ranking can be replayed for an action that was never executed.
"""

from __future__ import annotations

import numpy as np
import torch

from mtf.errors import InputError
from mtf.features import SCORE_FLOOR
from mtf.spec import FusionSpec


def slate_features(spec: FusionSpec, action: np.ndarray, scores: torch.Tensor, count: np.ndarray) -> torch.Tensor:
    """l(s, a) float32 [m, 3 K]: mean log score, mean score and standard deviation of log score over the top items, a head.

    action [m, A] normalised; scores float32 [m, C, K]; count [m]: how many of the C are real. The ranking is that of
    `fusion.rank` (of equal scores any may win here).
    """
    top, real = top_scores(spec, action, scores, count)
    logs = torch.log(top + SCORE_FLOOR)
    weight = (real / real.sum(dim=1, keepdim=True))[..., None]
    mean_log = (logs * weight).sum(1)
    spread = (((logs - mean_log[:, None]) ** 2 * weight).sum(1)).sqrt()
    return torch.cat([mean_log, (top * weight).sum(1), spread], dim=1)


def top_scores(
    spec: FusionSpec, action: np.ndarray, scores: torch.Tensor, count: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [m, n_shown, K] of the items that the action ranks to the top, in no order; real [m, n_shown] 1 or 0."""
    low, high = torch.from_numpy(spec.raw_low.astype(np.float32)), torch.from_numpy(spec.raw_high.astype(np.float32))
    k = spec.n_objectives
    raw = low + (torch.from_numpy(action) + 1) * 0.5 * (high - low)
    fused = torch.einsum("nck,nk->nc", torch.log(scores + raw[:, None, k:]), raw[:, :k])
    shown = min(spec.n_shown, scores.shape[1])
    if (count < scores.shape[1]).any():
        padding = torch.arange(scores.shape[1]) >= torch.from_numpy(count)[:, None]
        fused = fused.masked_fill(padding, -torch.inf)
    best = fused.topk(shown, dim=1, sorted=False)
    top = torch.gather(scores, 1, best.indices[..., None].expand(-1, -1, k))
    return top, torch.isfinite(best.values).float()


def names(spec: FusionSpec) -> list[str]:
    """Names of the columns of `slate_features`."""
    return [f"{kind}:{o}" for kind in ("mean_log", "mean", "spread_log") for o in spec.objectives]


def plug_in_weights(spec: FusionSpec) -> np.ndarray:
    """float64 [K]: reward of one unit of each head's score, were the scores exact predictions of the behaviours they name.

    0 for an objective that is no behaviour of the reward.
    """
    total = {b: sum(head.weights.get(b, 0.0) for head in spec.reward_heads) for b in spec.behaviours}
    return np.array([total.get(o, 0.0) for o in spec.objectives])


def require_paid_scores(algorithm: str, spec: FusionSpec) -> None:
    """Raises InputError where no score promises any reward."""
    if not plug_in_weights(spec).any():
        raise InputError(
            f"{algorithm}: no objective ({', '.join(spec.objectives)}) is a behaviour that a reward head weighs; "
            "name objectives after the behaviours that they predict, or use another algorithm"
        )
