"""Attention of one new position: the heads of a group share keys and values that are not copied.

Shapes: B rows, H heads, G heads that share a key-value head, R positions, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from vqrae.generation._kernels import attend
from vqrae.generation.cpu_weights import laid_out_for_kernels
from vqrae.mllm import UnifiedModel

_NAME, _WITH_KERNELS = "vqrae_step", "vqrae_step_kernels"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others,
) -> tuple[Tensor, None]:
    """query (B, H, 1, D), key and value (B, H / G, R, D), a mask that broadcasts to (B, 1, 1, R),
    true where it is looked at -> (B, 1, H, D). When compiled, the library's own copies keys and
    values G times."""
    assert query.shape[2] == 1 and attention_mask is not None
    groups = query.shape[1] // key.shape[1]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = query.unflatten(1, (key.shape[1], groups)).squeeze(3) @ key.mT
    scores = scores.float().masked_fill(~attention_mask, -torch.inf)
    looked = scores.softmax(-1).to(value.dtype) @ value
    return looked.flatten(1, 2)[:, None], None


def _attend_with_kernels(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others,
) -> tuple[Tensor, None]:
    """The same by our kernel; without a mask all is looked at."""
    assert query.shape[2] == 1
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None:
        attention_mask = query.new_ones(1, 1, 1, key.shape[2], dtype=torch.bool)
    mask = attention_mask[:, 0, 0].expand(len(query), -1)
    return attend(query[:, :, 0], key, value, mask, scaling)[:, None], None


for _name, _function in ((_NAME, _attend), (_WITH_KERNELS, _attend_with_kernels)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def one_position(model: UnifiedModel, compiled: bool = False) -> Iterator[None]:
    """Within it a step of one position is attended by our kernel in a model laid out for them, in
    another that is `compiled` by `_attend`, which wants a mask; if otherwise by "sdpa": what other
    attentions do besides, such as soft-capping, is theirs."""
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
