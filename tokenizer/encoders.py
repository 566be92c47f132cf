"""The vision foundation model (VFM) behind one small interface: geometry, building, loading.

Shapes: B batch, N image tokens, D encoder width, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from vqrae.tokenizer._loading import check_loaded, check_place, quiet_transformers


@dataclass(frozen=True)
class EncoderGeometry:
    """What the decoder and the LLM must know of an encoder; read from its config."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    norm_eps: float

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


def _side(value: int | list[int] | tuple[int, ...], name: str) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"the encoder's {name} {tuple(value)} is not square; give a square one")
    return int(value[0])


def vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The vision part of a config: itself, or the tower inside a dual-encoder checkpoint."""
    return getattr(config, "vision_config", config)


def encoder_geometry(config: PreTrainedConfig) -> EncoderGeometry:
    """Read the geometry of a ViT from its transformers config.

    Raises:
        ValueError: if the config does not describe a plain ViT on square pictures.
    """
    config = vision_config(config)
    try:
        width = config.hidden_size
        geometry = EncoderGeometry(
            image_size=_side(config.image_size, "image_size"),
            patch_size=_side(config.patch_size, "patch_size"),
            width=width,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            mlp_width=getattr(config, "intermediate_size", None)
            or int(width * getattr(config, "mlp_ratio", 4)),
            norm_eps=config.layer_norm_eps,
        )
    except AttributeError as error:
        raise ValueError(
            f"the encoder config {type(config).__name__} is not a ViT that can be mirrored: {error}"
        ) from None
    if geometry.image_size % geometry.patch_size:
        raise ValueError(
            f"the encoder's image_size {geometry.image_size} is not a multiple of its patch_size "
            f"{geometry.patch_size}"
        )
    return geometry


def _without_pooling_head(config: PreTrainedConfig) -> PreTrainedConfig:
    """Patch features need no pooling head; unused parameters would only trouble the optimizer."""
    config = copy.deepcopy(vision_config(config))
    for flag in ("vision_use_head", "add_pooling_layer"):
        if hasattr(config, flag):
            setattr(config, flag, False)
    return config


def load_vfm(path: str | Path) -> PreTrainedModel:
    """Load the vision tower of a VFM: a hub name in the local cache, or a folder.

    The same call opens `google/siglip2-so400m-patch16-256` and the built-in model of the scenes
    world. A dual encoder (SigLIP, CLIP) gives its vision tower.

    Raises:
        ValueError: if nothing loadable is there, or weights of the tower are missing.
    """
    check_place(path, "the encoder")
    try:
        config = _without_pooling_head(AutoConfig.from_pretrained(path))
        with quiet_transformers():
            model, info = AutoModel.from_pretrained(path, config=config, output_loading_info=True)
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot load the encoder {str(path)!r}: {reason} "
            "Give a folder written by save_pretrained, or download the model first."
        ) from None
    check_loaded(path, info, "the encoder")
    encoder_geometry(model.config)
    return model


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder with random weights, as from_pretrained needs before it fills them in."""
    return AutoModel.from_config(_without_pooling_head(config))


def patch_features(encoder: nn.Module, pixels: Tensor, num_tokens: int) -> Tensor:
    """(B, 3, H, W) normalised pixels -> (B, N, D) patch features after the encoder's final norm.

    CLS and register tokens, where the encoder has them, come first and are dropped.
    """
    features = encoder(pixel_values=pixels).last_hidden_state
    return features[:, -num_tokens:]


def pixel_statistics(path: str | Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that a VFM expects; SigLIP's 0.5 where none is stored."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(path)
        return list(processor.image_mean), list(processor.image_std)
    except (OSError, ValueError, AttributeError):
        return [0.5] * 3, [0.5] * 3


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) pixels in [0, 1] -> the same with the encoder's mean and deviation."""
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
