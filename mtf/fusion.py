"""Fusion: an action turns a candidate's K scores into one final score, and so into a ranking.

`score_j = prod_k (pred_jk + bias_k) ** power_k` (arXiv 2404.17589), computed as
`log score_j = sum_k power_k log(pred_jk + bias_k)`: same order, no overflow. Scores are >= 0, biases > 0.
The torch definition is the same line on tensors; tests hold the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mtf.spec import FusionSpec

if TYPE_CHECKING:
    import torch


def raw_action(spec: FusionSpec, action: np.ndarray) -> np.ndarray:
    """Normalised actions [..., A] -> raw powers and biases [..., A]."""
    low, high = spec.raw_low.astype(np.float32), spec.raw_high.astype(np.float32)
    return low + (action + 1) * 0.5 * (high - low)


def normalised_action(spec: FusionSpec, raw: np.ndarray) -> np.ndarray:
    """Raw powers and biases [..., A] -> normalised actions [..., A]; the inverse of `raw_action`."""
    return (raw - spec.raw_low) / (spec.raw_high - spec.raw_low) * 2 - 1


def log_fused(spec: FusionSpec, action: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Log final scores [n, C] of candidates with scores [n, C, K] under normalised actions [n, A]."""
    raw = raw_action(spec, np.asarray(action, np.float32))
    power, bias = raw[..., None, : spec.n_objectives], raw[..., None, spec.n_objectives :]
    return np.einsum("nck,nck->nc", np.log(scores + bias), np.broadcast_to(power, scores.shape))


def rank(spec: FusionSpec, action: np.ndarray, scores: np.ndarray, n_candidates: np.ndarray | None = None) -> np.ndarray:
    """Indices int64 [n, n_shown] of the shown candidates, best first; equal scores keep the candidates' order.

    n_candidates [n]: how many of the C columns are real (the rest is padding and never shown); None = all.
    """
    fused = log_fused(spec, action, scores)
    if n_candidates is not None:
        fused = np.where(np.arange(scores.shape[1]) < np.asarray(n_candidates)[:, None], fused, -np.inf)
    return np.argsort(-fused, axis=1, kind="stable")[:, : spec.n_shown]


def log_fused_torch(spec: FusionSpec, action: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """`log_fused` on tensors, differentiable in the action."""
    import torch

    low = torch.as_tensor(spec.raw_low, dtype=torch.float32, device=action.device)
    high = torch.as_tensor(spec.raw_high, dtype=torch.float32, device=action.device)
    raw = low + (action + 1) * 0.5 * (high - low)
    power, bias = raw[..., None, : spec.n_objectives], raw[..., None, spec.n_objectives :]
    return (power * torch.log(scores + bias)).sum(-1)
