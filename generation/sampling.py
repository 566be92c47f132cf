"""From logits to the next token: temperature, top-k, top-p, and numbers that belong to a seed.

Shapes: B rows, C candidates, S steps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_sampling(temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> None:
    """Raise ValueError, naming the value, unless 0 <= temperature, 0 <= top_k, 0 < top_p <= 1,
    0 <= min_p <= 1."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or above, not {temperature}")
    if top_k < 0 or int(top_k) != top_k:
        raise ValueError(f"top_k must be 0 (all) or a whole number above, not {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be from 0 (all) to 1, not {min_p}")


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Logits (..., C) divided by `temperature` (> 0), with -inf where a candidate is left out.

    Args:
        top_k: keep the k most likely; 0 keeps all.
        top_p: of those, keep the smallest set, most likely first, whose share reaches p. The most
            likely one always stays.
    """
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        kept = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        shares = ordered.softmax(-1)
        before = shares.cumsum(-1) - shares
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    return logits


def pick(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Next tokens (B,) from logits (B, C) by one number in [0, 1) for each row.

    Inverting the cumulative distribution keeps rows apart: what one row gets does not depend on
    how many others there are. Temperature 0 takes the most likely one.
    """
    if temperature == 0:
        return logits.argmax(-1)
    shares = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
    edges = shares.cumsum(-1, dtype=torch.float64)
    # Scaled to the last edge, which rounding leaves beside 1. A target that rounds up to it would
    # land behind the last possible candidate.
    last = edges[:, -1:]
    targets = (uniforms.to(edges)[:, None] * last).minimum(last.nextafter(torch.zeros_like(last)))
    found = torch.searchsorted(edges, targets, right=True).squeeze(1)
    # Numbers that are none would be found behind all.
    return found.clamp(max=edges.shape[-1] - 1)


def uniforms_for(seeds: list[int], steps: int) -> Tensor:
    """(B, S) numbers in [0, 1), float64 on the CPU; each row by its own seed alone."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows)
