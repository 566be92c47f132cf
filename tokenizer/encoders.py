"""The vision foundation model (VFM) behind one small interface: geometry, building, loading.

SigLIP and SigLIP2 (of fixed resolution), CLIP, InternViT, DINOv2, DINOv3 and any ViT of timm.

Shapes: B batch, N image tokens, D encoder width, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from vqrae.tokenizer._encoder_families import family_of, timm_numbers, trim, used_layers
from vqrae.tokenizer._loading import check_loaded, check_place, loading, quiet_transformers


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


def encoder_geometry(
    config: PreTrainedConfig, *, layer: int = -1, image_size: int | None = None
) -> EncoderGeometry:
    """Read the geometry of a ViT from its transformers config.

    Args:
        layer: whose output is read; `depth` counts up to it.
        image_size: of the pictures, if another than the encoder was made for.

    Raises:
        ValueError: if the config does not describe a plain ViT on square pictures of a supported
            family, or there is no such layer.
    """
    config = vision_config(config)
    family_of(config)
    numbers = timm_numbers(config) if config.model_type == "timm_wrapper" else _numbers(config)
    geometry = EncoderGeometry(**numbers)
    geometry = replace(
        geometry,
        depth=used_layers(geometry.depth, layer),
        image_size=image_size or geometry.image_size,
    )
    if geometry.image_size % geometry.patch_size:
        raise ValueError(
            f"the encoder's image_size {geometry.image_size} is not a multiple of its patch_size "
            f"{geometry.patch_size}; choose an image_size that is"
        )
    return geometry


def _numbers(config: PreTrainedConfig) -> dict:
    try:
        width = config.hidden_size
        return {
            "image_size": _side(config.image_size, "image_size"),
            "patch_size": _side(config.patch_size, "patch_size"),
            "width": width,
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "mlp_width": getattr(config, "intermediate_size", None)
            or int(width * getattr(config, "mlp_ratio", 4)),
            "norm_eps": config.layer_norm_eps,
        }
    except AttributeError as error:
        raise ValueError(
            f"the encoder config {type(config).__name__} is not a ViT that can be mirrored: {error}"
        ) from None


def _prepared(config: PreTrainedConfig) -> PreTrainedConfig:
    """Patch features need no pooling head; unused parameters would only trouble the optimizer."""
    config = copy.deepcopy(vision_config(config))
    for flag in ("vision_use_head", "add_pooling_layer"):
        if hasattr(config, flag):
            setattr(config, flag, False)
    if config.model_type == "timm_wrapper":
        config.do_pooling = False
        # Pictures of other sizes, by interpolated positions.
        config.model_args = {**(config.model_args or {}), "dynamic_img_size": True}
    return config


def load_vfm_config(path: str | Path) -> PreTrainedConfig:
    """The config alone of what `load_vfm` would load.

    Raises:
        ValueError: if there is none.
    """
    check_place(path, "the encoder")
    with loading(path, "the encoder"):
        return vision_config(AutoConfig.from_pretrained(path))


def load_vfm(
    path: str | Path, *, layer: int = -1, final_norm: str | None = None
) -> PreTrainedModel:
    """Load the vision tower of a VFM: a hub name in the local cache, or a folder.

    The same call opens `google/siglip2-so400m-patch16-256` and the built-in model of the scenes
    world. A dual encoder (SigLIP, CLIP) or an InternVL model gives its vision tower.

    Args:
        layer, final_norm: see VQRAEConfig's encoder_layer and final_norm.

    Raises:
        ValueError: if nothing loadable is there, or weights of the tower are missing.
    """
    config = load_vfm_config(path)
    encoder_geometry(config, layer=layer)
    with loading(path, "the encoder"), quiet_transformers():
        model, info = AutoModel.from_pretrained(
            path,
            config=_prepared(config),
            output_loading_info=True,
            # InternVL keeps its tower under names that its vision model does not know.
            key_mapping={r"^(model\.)?vision_tower\.": ""},
        )
    check_loaded(path, info, "the encoder")
    trim(model, layer, final_norm)
    return model


def build_encoder(
    config: PreTrainedConfig, *, layer: int = -1, final_norm: str | None = None
) -> PreTrainedModel:
    """The encoder with random weights, as from_pretrained needs before it fills them in."""
    model = AutoModel.from_config(_prepared(config))
    trim(model, layer, final_norm)
    return model


def patch_features(encoder: nn.Module, pixels: Tensor, num_tokens: int) -> Tensor:
    """(B, 3, H, W) normalised pixels -> (B, N, D) patch features after the encoder's final norm.

    CLS and register tokens, where the encoder has them, come first and are dropped. Positions are
    interpolated where the encoder was made for another size.
    """
    family = family_of(encoder.config)
    asked = {}
    if family.asks and tuple(pixels.shape[2:]) != (encoder.config.image_size,) * 2:
        asked["interpolate_pos_encoding"] = True
    features = encoder(pixel_values=pixels, **asked).last_hidden_state[:, -num_tokens:]
    return features if family.normed else encoder.get_submodule(family.norm)(features)


def pixel_statistics(path: str | Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that a VFM expects; SigLIP's 0.5 where none is stored."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(path)
        found = getattr(processor, "data_config", None)  # timm's
        if found is not None:
            return list(found["mean"]), list(found["std"])
        return list(processor.image_mean), list(processor.image_std)
    except (OSError, ValueError, AttributeError):
        return [0.5] * 3, [0.5] * 3


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) pixels in [0, 1] -> the same with the encoder's mean and deviation."""
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
