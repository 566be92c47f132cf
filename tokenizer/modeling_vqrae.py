"""The VQRAE tokenizer: one encoder, continuous features to understand, codes to generate.

Shapes: B batch, N image tokens, D encoder width, E code dimension, K codebook size, H W pixels.
Path: pixels -> encoder -> Z_I (D) -> projection -> (E) -> SimVQ -> projection -> (D) -> decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from vqrae.tokenizer._loading import StrictLoadingMixin
from vqrae.tokenizer.configuration_vqrae import VQRAEConfig
from vqrae.tokenizer.decoder import PixelDecoder
from vqrae.tokenizer.encoders import (
    build_encoder,
    load_vfm,
    normalise,
    patch_features,
    pixel_statistics,
)
from vqrae.tokenizer.quantizer import SimVQ


@dataclass
class VQRAEOutput(ModelOutput):
    """What one pass through the tokenizer gives."""

    reconstruction: Tensor | None = None
    """(B, 3, H, W), pixels, not clamped."""
    features: Tensor | None = None
    """(B, N, D), continuous, before quantization."""
    latents: Tensor | None = None
    """(B, N, E), projected features that the quantizer saw."""
    codes: Tensor | None = None
    """(B, N) int64."""
    quantization_loss: Tensor | None = None
    """Scalar: SimVQ's loss."""


class VQRAEModel(StrictLoadingMixin, PreTrainedModel):
    """`encode` and `tokenize` see, `detokenize` draws; `forward` does both, for training."""

    config_class = VQRAEConfig
    main_input_name = "pixels"
    _what = "the tokenizer"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: VQRAEConfig):
        super().__init__(config)
        width = config.feature_dim
        self.encoder = build_encoder(
            config.encoder_config, layer=config.encoder_layer, final_norm=config.final_norm
        )
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        self.project_in = nn.Linear(width, config.code_dim)
        self.quantizer = SimVQ(
            config.codebook_size, config.code_dim, config.beta, config.assignment
        )
        self.project_out = nn.Linear(config.code_dim, width)
        self.decoder = PixelDecoder(config.geometry)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is not self:
            return
        # The projections start as an isometry and its inverse, so that distances between codes
        # begin as distances between features; the encoder and decoder blocks come initialised.
        init.orthogonal_(self.project_in.weight)
        init.copy_(self.project_out.weight, self.project_in.weight.T)
        init.zeros_(self.project_in.bias)
        init.zeros_(self.project_out.bias)
        init.normal_(self.decoder.to_pixels.weight, std=0.02)
        init.constant_(self.decoder.to_pixels.bias, 0.5)

    @classmethod
    def from_vfm(cls, path: str, **config_fields) -> VQRAEModel:
        """A new tokenizer on the pretrained encoder at `path`; the rest starts untrained.

        Args:
            path: hub name or folder of the vision foundation model.
            config_fields: fields of VQRAEConfig, such as codebook_size and code_dim.

        Raises:
            ValueError: if there is no such encoder, or it lacks what the fields ask for.
        """
        chosen = {"layer": "encoder_layer", "final_norm": "final_norm"}
        vfm = load_vfm(
            path,
            **{key: config_fields[name] for key, name in chosen.items() if name in config_fields},
        )
        mean, std = pixel_statistics(path)
        config_fields = {"pixel_mean": mean, "pixel_std": std} | config_fields
        model = cls(VQRAEConfig(encoder_config=vfm.config, **config_fields))
        model.encoder.load_state_dict(vfm.state_dict())
        return model

    # -- seeing ------------------------------------------------------------------------------

    def encode(self, pixels: Tensor) -> Tensor:
        """Continuous features Z_I, which the LLM reads: (B, 3, H, W) in [0, 1] -> (B, N, D).

        H and W may be others than the config's image_size: positions are then interpolated.

        Raises:
            ValueError: if the pixels have another shape, or sides that patches do not divide.
        """
        rows, columns = self.grid_of(pixels)
        pixels = normalise(pixels, self.config.pixel_mean, self.config.pixel_std)
        return patch_features(self.encoder, pixels, rows * columns)

    def grid_of(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens of pixels (B, 3, H, W), which detokenize needs where they are
        not the config's square.

        Raises:
            ValueError: as encode.
        """
        size, patch = self.config.image_size, self.decoder.patch_size
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(n % patch for n in pixels.shape[2:]):
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)} do not fit this tokenizer, which reads "
                f"(B, 3, {size}, {size}) or other sides that {patch} divides; prepare pictures "
                "with VQRAEImageProcessor"
            )
        return pixels.shape[2] // patch, pixels.shape[3] // patch

    def to_latents(self, features: Tensor) -> Tensor:
        """(B, N, D) features -> (B, N, E) latents, what the quantizer compares with its codes."""
        return self.project_in((features - self.feature_mean) / self.feature_std)

    @torch.no_grad()
    def quantize_features(self, features: Tensor) -> Tensor:
        """Codes of features that are at hand already: (B, N, D) -> (B, N) int64."""
        return self.quantizer.nearest(self.to_latents(features))

    @torch.no_grad()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """Codes, which the LLM writes: (B, 3, H, W) in [0, 1] -> (B, N) int64 in [0, K)."""
        return self.quantize_features(self.encode(pixels))

    # -- drawing -----------------------------------------------------------------------------

    def decode(self, latents: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, E) quantized latents -> (B, 3, H, W) pixels, not clamped; `grid` as below."""
        return self.decoder(self.project_out(latents), grid)

    @torch.no_grad()
    def detokenize(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N) int64 in [0, K) -> (B, 3, H, W) pixels in [0, 1].

        Args:
            grid: rows and columns of tokens, where they are not the config's square.

        Raises:
            ValueError: for a code out of range or another number of tokens.
        """
        size = self.config.codebook_size
        tokens = self.config.num_image_tokens if grid is None else grid[0] * grid[1]
        if codes.ndim != 2 or codes.shape[1] != tokens:
            raise ValueError(f"codes of shape {tuple(codes.shape)} are not (B, {tokens})")
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < size):
            raise ValueError(
                f"codes from {int(codes.min())} to {int(codes.max())} do not fit a codebook of "
                f"{size}; were they written by another tokenizer?"
            )
        return self.decode(self.quantizer.lookup(codes), grid).clamp(0, 1)

    # -- both --------------------------------------------------------------------------------

    def forward(self, pixels: Tensor, features: Tensor | None = None) -> VQRAEOutput:
        """Encode, quantize and reconstruct. `features` (B, N, D) may be given if known already."""
        features = self.encode(pixels) if features is None else features
        latents = self.to_latents(features)
        quantized = self.quantizer(latents)
        return VQRAEOutput(
            reconstruction=self.decode(quantized.latents, self.grid_of(pixels)),
            features=features,
            latents=latents,
            codes=quantized.codes,
            quantization_loss=quantized.loss,
        )


AutoConfig.register("vqrae", VQRAEConfig, exist_ok=True)
AutoModel.register(VQRAEConfig, VQRAEModel, exist_ok=True)
