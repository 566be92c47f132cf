"""Where each family of vision encoders keeps its layers and its final norm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Family:
    """Dotted names inside the library's own model class."""

    layers: str
    """The nn.ModuleList (timm: nn.Sequential) of its layers."""
    norm: str
    """Its final norm."""
    normed: bool = True
    """Whether the library's last hidden state has gone through that norm."""
    asks: bool = False
    """Whether other picture sizes must be asked for by `interpolate_pos_encoding`."""


FAMILIES = {
    "siglip_vision_model": Family("encoder.layers", "post_layernorm", asks=True),
    "clip_vision_model": Family("encoder.layers", "post_layernorm", normed=False, asks=True),
    "internvl_vision": Family("encoder.layer", "layernorm"),
    "dinov2": Family("encoder.layer", "layernorm"),
    "dinov2_with_registers": Family("encoder.layer", "layernorm"),
    "dinov3_vit": Family("model.layer", "norm"),
    "timm_wrapper": Family("timm_model.blocks", "timm_model.norm"),
}
"""By the model_type of the vision config."""

_UNUSED = ("mask_token",)


def family_of(config: PreTrainedConfig) -> Family:
    """Raises ValueError, naming those that there are, for any other."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"encoders of type {config.model_type!r} are not supported; choose one of "
            + ", ".join(FAMILIES)
        )
    return FAMILIES[config.model_type]


def used_layers(depth: int, layer: int) -> int:
    """Layers up to and with `layer`, counted as transformers counts hidden states: 1 is the first
    layer's output, -1 the last one's.

    Raises:
        ValueError: if there is no such layer.
    """
    used = layer if layer > 0 else depth + 1 + layer
    if not 0 < used <= depth:
        raise ValueError(
            f"encoder_layer {layer} does not exist: the encoder has {depth} layers, 1 to {depth} "
            f"or -{depth} to -1"
        )
    return used


def trim(model: nn.Module, layer: int, final_norm: str | None) -> None:
    """Take away the layers above `layer` and timm's pooling; let the final norm be what
    `final_norm` says.

    Raises:
        ValueError: for a layer or a norm that the model lacks.
    """
    family = family_of(model.config)
    layers = model.get_submodule(family.layers)
    del layers[used_layers(len(layers), layer) :]
    if model.config.model_type == "timm_wrapper":
        for pooling in ("attn_pool", "fc_norm"):
            setattr(model.timm_model, pooling, None)
    norm = model.get_submodule(family.norm)
    if final_norm is None:
        final_norm = "affine" if family.normed else "none"
        if isinstance(norm, nn.Identity):
            final_norm = "none"
    parent, _, name = family.norm.rpartition(".")
    if final_norm == "affine":
        if isinstance(norm, nn.Identity):
            raise ValueError(
                f"this {type(model).__name__} has no final norm of its own; choose final_norm "
                "'plain' or 'none'"
            )
        return
    if final_norm == "plain":
        config = model.config
        if config.model_type == "timm_wrapper":
            width, eps = model.timm_model.embed_dim, getattr(norm, "eps", 1e-6)
        else:
            width, eps = config.hidden_size, config.layer_norm_eps
        other: nn.Module = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
    else:
        other = nn.Identity()
    setattr(model.get_submodule(parent), name, other)


def set_trainable(encoder: nn.Module, on: bool) -> None:
    """Like requires_grad_, but for parameters that reading a picture never touches."""
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(on and name.rpartition(".")[2] not in _UNUSED)


def timm_numbers(config: PreTrainedConfig) -> dict[str, Any]:
    """Image size, patch size, width, depth, heads, MLP width and norm eps of a timm ViT.

    Raises:
        ValueError: if it is no ViT.
    """
    return dict(_timm_numbers(config.architecture, json.dumps(config.model_args or {})))


@lru_cache(maxsize=8)
def _timm_numbers(architecture: str, arguments: str) -> tuple[tuple[str, Any], ...]:
    try:
        import timm
    except ImportError:
        raise ValueError("encoders of timm need the library timm; pip install timm") from None
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0, **json.loads(arguments))
        block = model.blocks[0]
        linears = [m for m in block.mlp.modules() if isinstance(m, nn.Linear)]
        norms = [m for m in block.modules() if isinstance(m, nn.LayerNorm)]
        return (
            ("image_size", _same(model.patch_embed.img_size)),
            ("patch_size", _same(model.patch_embed.patch_size)),
            ("width", model.embed_dim),
            ("depth", len(model.blocks)),
            ("heads", block.attn.num_heads),
            ("mlp_width", linears[0].out_features),
            ("norm_eps", norms[0].eps),
        )
    except (RuntimeError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(
            f"timm's {architecture!r} is not a ViT that can be mirrored: {error}"
        ) from None


def _same(pair: tuple[int, int]) -> int:
    if pair[0] != pair[1]:
        raise AttributeError(f"{tuple(pair)} is not square")
    return int(pair[0])
