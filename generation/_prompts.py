"""A batch of prompts of different lengths, decoded step by step with one cache.

Shapes: B prompts, P of them that differ, R positions there is room for, T text width, N image
tokens, M pictures, D encoder width, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from vqrae.generation._cache import roomy_cache
from vqrae.generation._step_attention import one_position
from vqrae.generation.compiled import CompiledDecoding
from vqrae.mllm import UnifiedModel


class PromptBatch:
    """Left-padded prompts; padding is masked and positions count from each prompt's own start, so
    that no row depends on its neighbours. Prompts without pictures that are alike are read once.

    Args:
        prompts: ids of each prompt.
        features: (M, N, D) of the pictures in the prompts, in order, or None.
        steps: tokens that will be appended at most.
        cached: False computes everything anew at each step; only tests want that.
        compiled: what computes the steps, where they are compiled.
    """

    def __init__(
        self,
        model: UnifiedModel,
        prompts: Sequence[Sequence[int]],
        features: Tensor | None = None,
        *,
        steps: int,
        cached: bool = True,
        compiled: CompiledDecoding | None = None,
    ):
        self.model = model
        self._compiled = compiled if cached else None
        prompts = [tuple(prompt) for prompt in prompts]
        distinct = list(dict.fromkeys(prompts)) if cached and features is None else prompts
        # (B,), which of the P each prompt is, until they are read; None where they are the same.
        self._which: Tensor | None = None
        if len(distinct) < len(prompts) or self._compiled is not None:
            places = {prompt: place for place, prompt in enumerate(distinct)}
            self._which = torch.tensor([places[prompt] for prompt in prompts], device=model.device)
        longest = max(map(len, prompts))
        ids = torch.zeros(len(distinct), longest, dtype=torch.long)
        mask = torch.zeros(len(distinct), longest, dtype=torch.long)
        for row, prompt in enumerate(distinct):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        # One mask for the whole of it: a step shows a longer part.
        room = longest + steps
        if self._compiled is not None:
            room = self._compiled.room(room)
        self._mask = torch.ones(len(distinct), room, dtype=torch.long)
        self._mask[:, :longest] = mask
        self._mask = self._mask.to(model.device)
        # (R, B): what a step takes of it is dense.
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0).T.contiguous()
        self._length = longest
        self.padded = longest > min(map(len, prompts))
        self._unread = model.embed(ids.to(model.device), features=features)
        # What a compiled step goes on with: ids and places (B,).
        self._codes: tuple[Tensor, Tensor] | None = None
        if self._compiled is not None:
            # Prompts are read with one that grows, which has no more than they need.
            self.cache = DynamicCache()
        else:
            self.cache = roomy_cache(model.config.text_config, room) if cached else None

    def code_logits(self, rows: int) -> Tensor:
        """(rows, K) fp32 for the next code of the first `rows` rows."""
        if self._codes is None:
            return self.model.code_logits(self.last_hidden()[:rows]).float()
        position = self._positions[self._length - 1]
        return self._compiled(self.model, *self._codes, self._mask, position, self.cache)[:rows]

    def last_hidden(self) -> Tensor:
        """(B, T) at the last position: what the next token is scored by."""
        new = self._unread.shape[1]
        with one_position(self.model) if new == 1 else nullcontext():
            hidden = self.model.decode(
                self._unread,
                attention_mask=self._mask[:, : self._length] if self.padded else None,
                position_ids=self._positions[self._length - new : self._length].T,
                cache=self.cache,
            )[:, -1]
        if self._which is not None:
            which, self._which = self._which, None
            self._select(which)
            hidden = hidden[which]
        return hidden

    def append(self, ids: Tensor, place: int = 0) -> None:
        """Go on with one token `ids` (B,) in each row; a code's place in its picture is `place`.
        Where steps are compiled, it is a code."""
        self._length += 1
        places = torch.full_like(ids, place)
        if self._compiled is not None:
            self._codes = ids, places
            return
        new = self.model.embed(ids[:, None], places=places[:, None])
        kept = self._unread if self.cache is None else self._unread[:, :0]
        self._unread = torch.cat([kept, new], 1)

    def keep(self, rows: int) -> None:
        """Go on with the first `rows` rows only."""
        self._select(torch.arange(rows, device=self._mask.device))

    def _select(self, rows: Tensor) -> None:
        self._mask, self._positions = self._mask[rows], self._positions[:, rows]
        self._unread = self._unread[rows]
        if self._codes is not None:
            self._codes = tuple(each[rows] for each in self._codes)
        if self._compiled is not None:
            self.cache = self._compiled.cache(self.model, self.cache, rows, self._mask.shape[1])
        elif self.cache is not None:
            self.cache.batch_select_indices(rows)


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
