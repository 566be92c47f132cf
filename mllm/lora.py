"""Low-rank adapters of the language model, on weights that may be held in four bits.

LoRA: Hu et al., 2021 (arXiv:2106.09685). QLoRA: Dettmers et al., 2023 (arXiv:2305.14314). Both by
peft and bitsandbytes; neither is in the VQRAE paper.
"""

from __future__ import annotations

import copy
import importlib

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_NAME = "default"


def add_lora(
    language_model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    four_bit: bool = False,
) -> None:
    """Adapters beside every linear layer but the head, in place; all else is frozen.

    The adapters start as nothing: the model's outputs stay what they are (but for the rounding to
    four bits). Their first factors are drawn from torch's random state.

    Args:
        rank: of the adapters' two factors.
        alpha: the adapters' product is multiplied by alpha / rank.
        dropout: share of inputs that the adapters do not see while training.
        four_bit: hold the layers' own weights as NF4, an eighth of fp32's memory.

    Raises:
        ValueError: where peft, or for four_bit bitsandbytes, is not installed.
    """
    peft = _imported("peft")
    language_model.requires_grad_(False)
    if four_bit:
        _to_four_bit(language_model)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear"
    )
    peft.inject_adapter_in_model(settings, language_model, _NAME)


def has_lora(language_model: nn.Module) -> bool:
    """Whether adapters were added and not merged yet."""
    return any(hasattr(module, "lora_A") for module in language_model.modules())


def frozen_under_lora(language_model: nn.Module) -> list[str]:
    """Prefixes of what stands under adapters in `language_model.state_dict()`: frozen, and there
    again at every start."""
    return [
        f"{name}.base_layer."
        for name, module in language_model.named_modules()
        if hasattr(module, "lora_A")
    ]


@torch.no_grad()
def merged_lora(language_model: PreTrainedModel) -> PreTrainedModel:
    """A copy without adapters, whose plain weights do what weights and adapters did together.

    Weights in four bits become what their numbers stand for, so the copy is as exact as the model
    that was trained, and as large as one never rounded.
    """
    merged = copy.deepcopy(language_model)
    for name, module in list(merged.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        base = module.get_base_layer()
        weight = _plain_weight(base)
        weight = weight + module.get_delta_weight(_NAME).to(weight)
        plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = base.bias
        merged.set_submodule(name, plain)
    return merged


def _to_four_bit(language_model: PreTrainedModel) -> None:
    """Every linear layer but the head as NF4 (bitsandbytes), computing in its former type."""
    bitsandbytes = _imported("bitsandbytes")
    head = language_model.get_output_embeddings()
    for name, module in list(language_model.named_modules()):
        if type(module) is not nn.Linear or module is head:
            continue
        four = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=module.weight.dtype,
            quant_type="nf4",
        )
        four.load_state_dict(module.state_dict())
        # Else CPUs with bf16 round the scales once more, for good, when first evaluated.
        four.support_avx512bf16_for_cpu = False
        # The move is what rounds the weights.
        language_model.set_submodule(name, four.to(module.weight.device).requires_grad_(False))


def _plain_weight(layer: nn.Linear) -> Tensor:
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.detach().clone()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, state)


def _imported(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"{package} cannot be imported ({error}); pip install 'vqrae[lora]'"
        ) from None
