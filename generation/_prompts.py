"""A batch of prompts of different lengths, decoded step by step with one cache.

Shapes: B prompts, L longest prompt, T text width, N image tokens, M pictures, D encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from vqrae.mllm import UnifiedModel


class PromptBatch:
    """Left-padded prompts; padding is masked and positions count from each prompt's own start, so
    that no row depends on its neighbours.

    Args:
        prompts: ids of each prompt.
        features: (M, N, D) of the pictures in the prompts, in order, or None.
        cached: False computes everything anew at each step; only tests want that.
    """

    def __init__(
        self,
        model: UnifiedModel,
        prompts: Sequence[Sequence[int]],
        features: Tensor | None = None,
        *,
        cached: bool = True,
    ):
        self.model = model
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self.mask = mask.to(model.device)
        self.padded = longest > min(map(len, prompts))
        self.embeddings = model.embed(ids.to(model.device), features=features)
        self.cache = DynamicCache(config=model.config.text_config) if cached else None

    def last_hidden(self) -> Tensor:
        """(B, T) at the last position: what the next token is scored by."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        hidden = self.model.decode(
            self.embeddings,
            attention_mask=self.mask if self.padded else None,
            position_ids=positions[:, -self.embeddings.shape[1] :],
            cache=self.cache,
        )
        return hidden[:, -1]

    def append(self, ids: Tensor, place: int = 0) -> None:
        """Go on with one token `ids` (B,) in each row; a code's place in its picture is `place`."""
        ids = ids[:, None]
        new = self.model.embed(ids, places=torch.full_like(ids, place))
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        kept = self.embeddings if self.cache is None else self.embeddings[:, :0]
        self.embeddings = torch.cat([kept, new], 1)


@contextmanager
def evaluating(model: UnifiedModel) -> Iterator[None]:
    """No gradients and no dropout; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def join_features(features: Sequence[Tensor | None]) -> Tensor | None:
    """Features of several prompts, each (M, N, D) or None, as one (M, N, D) or None."""
    present = [each for each in features if each is not None and len(each)]
    return torch.cat(present) if present else None
