"""Attention of one new position: the heads of a group share keys and values that are not copied.

Shapes: B rows, H heads, G heads that share a key-value head, R positions, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from vqrae.generation._kernels import attend
from vqrae.generation.cpu_weights import laid_out_for_kernels
from vqrae.mllm import UnifiedModel

_NAME, _WITH_KERNELS = "vqrae_step", "vqrae_step_kernels"


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """As our kernel's `attend`. When compiled, the library's own copies keys and values G times."""
    grouped = (query * scaling).unflatten(1, (key.shape[1], -1))
    scores = (grouped @ key.mT).float().masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(-1).to(value.dtype) @ value).flatten(1, 2)


def _interface(attend_one: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """What transformers calls: query (B, H, 1, D), key and value (B, H / G, R, D), a mask that
    broadcasts to (B, 1, 1, R), true where it is looked at; without one all is -> (B, 1, H, D)."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **others,
    ) -> tuple[Tensor, None]:
        assert query.shape[2] == 1
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if attention_mask is None:
            attention_mask = query.new_ones(1, 1, 1, key.shape[2], dtype=torch.bool)
        mask = attention_mask[:, 0, 0].expand(len(query), -1)
        return attend_one(query[:, :, 0], key, value, mask, scaling)[:, None], None

    return attention


for _name, _attend_one in ((_NAME, _attend), (_WITH_KERNELS, attend)):
    AttentionInterface.register(_name, _interface(_attend_one))
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def one_position(model: UnifiedModel, compiled: bool = False) -> Iterator[None]:
    """Within it a step of one position is attended by our kernel in a model laid out for it, in
    another that is `compiled` by `_attend`; if otherwise by "sdpa": what other attentions do
    besides, such as soft-capping, is theirs."""
    config = model.language_model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa" and laid_out_for_kernels(model):
        config._attn_implementation = _WITH_KERNELS
    elif before == "sdpa" and compiled:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
