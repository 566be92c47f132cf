"""Configuration of the VQRAE tokenizer."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from vqrae.tokenizer._keywords import refuse_unknown_keywords
from vqrae.tokenizer.encoders import EncoderGeometry, encoder_geometry


@strict
class VQRAEConfig(PreTrainedConfig):
    """Shapes and choices of one tokenizer.

    The decoder has no size of its own: depth, width, heads and patch size are read from
    `encoder_config` (paper section 3.1, "symmetric" decoder).

    Args:
        encoder_config: the vision foundation model's own transformers config.
        encoder_layer: whose output is Z_I, counted as transformers counts hidden states: -1 (the
            paper) is the last layer's, -2 that before, 1 the first's. Layers above it are left out,
            of the decoder too.
        final_norm: what the encoder's final norm does to Z_I: "affine", as it was trained; "plain",
            without its scale and shift; "none". By default what the library's last hidden state
            has: "affine" for all but CLIP and those InternViTs that have no final norm.
        image_size: side of the square picture, in pixels, if another than the encoder's own.
        codebook_size: K, number of codes. Paper: 16384.
        code_dim: E, dimension of a code. Paper: 1536, above the encoder's width.
        beta: weight of the commitment term. Paper: 0.25.
        assignment: nearest code by "euclidean" (paper) or "cosine" distance.
        standardize_features: scale each feature channel by stored statistics before the
            projection. Not stated in the paper; it keeps k-means and distances meaningful when
            channels differ in scale.
        pixel_mean, pixel_std: what the encoder expects, per RGB channel, for pixels in [0, 1].

    Raises:
        ValueError: for a misspelt keyword, or a value out of its range.
    """

    model_type = "vqrae"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model")
    }

    encoder_config: dict | PreTrainedConfig | None = None
    encoder_layer: int = -1
    final_norm: Literal["affine", "plain", "none"] | None = None
    image_size: int | None = None
    codebook_size: int = 16384
    code_dim: int = 1536
    beta: float = 0.25
    assignment: Literal["euclidean", "cosine"] = "euclidean"
    standardize_features: bool = True
    pixel_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self, **kwargs):
        refuse_unknown_keywords(type(self), kwargs)
        super().__post_init__(**kwargs)
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, not {self.codebook_size}")
        self.image_size = self.geometry.image_size
        if self.code_dim < 1:
            raise ValueError(f"code_dim must be at least 1, not {self.code_dim}")

    @property
    def geometry(self) -> EncoderGeometry:
        return encoder_geometry(
            self.encoder_config, layer=self.encoder_layer, image_size=self.image_size
        )

    @property
    def num_image_tokens(self) -> int:
        """N, tokens in one picture of `image_size`."""
        return self.geometry.grid**2

    @property
    def feature_dim(self) -> int:
        """D, width of the encoder."""
        return self.geometry.width
