"""Which codes were used lately: the first sign of a collapsing codebook."""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor


class UsageWindow:
    """Counts of each code over the last `batches` global batches, summed over ranks."""

    def __init__(self, codebook_size: int, batches: int):
        self.codebook_size = codebook_size
        self.recent: deque[Tensor] = deque(maxlen=batches)

    def add(self, codes: Tensor) -> None:
        counts = torch.bincount(codes.flatten(), minlength=self.codebook_size)
        if dist.is_initialized():
            dist.all_reduce(counts)
        self.recent.append(counts.cpu())

    @property
    def full(self) -> bool:
        return len(self.recent) == self.recent.maxlen

    def counts(self) -> Tensor:
        """(K,) int64."""
        return torch.stack(tuple(self.recent)).sum(0)

    def logs(self) -> dict[str, float]:
        """Share of codes used and perplexity exp(entropy), both over the window."""
        counts = self.counts()
        shares = counts[counts > 0] / counts.sum()
        perplexity = torch.exp(-(shares * shares.log()).sum())
        return {"usage": len(shares) / self.codebook_size, "perplexity": float(perplexity)}

    def state(self) -> list[Tensor]:
        return list(self.recent)

    def load(self, state: list[Tensor]) -> None:
        self.recent.clear()
        self.recent.extend(state)
