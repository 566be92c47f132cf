"""Which attention a language model is trained with; it is asked and drawn with by its own.

Shapes: B rows, L row length, P sequences packed into all rows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

Attention = Literal["auto", "sdpa", "flash", "flex"]
_NAMES = {"sdpa": "sdpa", "flash": "flash_attention_2", "flex": "flex_attention"}


def attention_name(choice: Attention, model: PreTrainedModel) -> str:
    """transformers' name of `choice` for `model`, at the place and in the precision in which it is
    called now. "auto" is flash where it can be, else the model's own.

    Raises:
        ValueError: for flash or flex on a CPU (flex has no backward there), flash in fp32, or flash
            without the package flash-attn.
    """
    device = model.device.type
    half = model.dtype != torch.float32 or torch.is_autocast_enabled(device)
    flash = device == "cuda" and half and is_flash_attn_2_available()
    if choice == "auto":
        if not flash or not model._supports_flash_attn:
            return model.config._attn_implementation
        choice = "flash"
    if choice == "flash" and not flash:
        raise ValueError(
            "attention 'flash' needs a GPU, the package flash-attn and --train.precision bf16; "
            "mend that, or train with attention 'sdpa'"
        )
    if choice == "flex" and device == "cpu":
        raise ValueError("attention 'flex' cannot be trained on a CPU; use 'sdpa'")
    return _NAMES[choice]


def packed_lengths(position_ids: Tensor) -> dict[str, Any]:
    """What flash attention is told of packed rows (B, L) that are laid end to end.

    A sequence begins where a position is 0. Of position ids alone transformers finds that only in a
    single row.
    """
    starts = (position_ids.flatten() == 0).nonzero().squeeze(1)
    ends = torch.tensor([position_ids.numel()], device=starts.device)
    edges = torch.cat([starts, ends]).to(torch.int32)
    longest = int(edges.diff().max())
    return {
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": longest,
        "max_length_k": longest,
    }
