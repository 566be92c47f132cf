"""Attention of one new position: the heads of a group share keys and values that are not copied.

Shapes: B rows, H heads, G heads that share a key-value head, R positions, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

_NAME = "vqrae_step"


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


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def one_position(model: PreTrainedModel) -> Iterator[None]:
    """Within it a step of one position, with a mask, is attended by `_attend`, if otherwise by
    "sdpa": what other attentions do besides, such as soft-capping, is theirs."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
