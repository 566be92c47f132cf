"""The tokenizer's two-stage objective (paper section 3.2).

L = L_pixel + w_p L_perceptual + w_G L_adversarial + L_quant (+ lambda_d ||Z_I - T(X)||^2).
Shapes: B batch, N image tokens, D encoder width, K codebook size, H W pixels.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from vqrae.data.augment import Augment
from vqrae.tokenizer._encoder_families import set_trainable
from vqrae.tokenizer.codebook_init import initialise_codebook, patch_contrast
from vqrae.tokenizer.critic import LeCam, PatchCritic, hinge_critic_loss, hinge_generator_loss
from vqrae.tokenizer.encoders import normalise, patch_features
from vqrae.tokenizer.image_processing_vqrae import VQRAEImageProcessor
from vqrae.tokenizer.modeling_vqrae import VQRAEModel
from vqrae.tokenizer.perceptual import build_perceptual
from vqrae.tokenizer.projection_init import (
    PixelRegression,
    initialise_projections,
    initialise_readout,
)
from vqrae.tokenizer.usage import UsageWindow
from vqrae.training import Objective, TrainingStopped, decay_groups


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights, learning rates and switches of a tokenizer stage; defaults are the paper's."""

    stage: Literal[1, 2] = 1
    """1 keeps the encoder frozen; 2 trains it with distillation from its frozen original."""
    decoder_lr: float = 4e-4
    """Peak learning rate of codebook, projections and decoder (stage 2: 1e-4)."""
    decoder_min_lr: float = 1e-4
    """Where its cosine ends (stage 2: 1e-5)."""
    quantizer_lr_factor: float = 1.0
    """Learning rate of both projections and SimVQ's W, as a multiple of decoder_lr. Below 1 the
    codes stay near their k-means start while the decoder is still poor."""
    encoder_lr: float = 1e-5
    """Learning rate of the encoder in stage 2, constant."""
    weight_decay: float = 1e-4
    """AdamW's weight decay, on matrices only."""
    pixel_weight: float = 1.0
    """Weight of the mean squared error of pixels."""
    augment: Augment = Augment(mirror=True, crop=1.0)
    """What happens to training pictures; the paper's "random crop and flip"."""
    turn_channels: bool = False
    """Show each training picture with its RGB channels turned by chance (RGB, GBR or BRG), so that
    shapes are seen in more hues. Not in the paper, whose crops and flips change no hue."""
    perceptual: Literal["none", "vfm", "lpips", "convnext", "lpips+convnext"] = "none"
    """Which perceptual net; the paper's is ConvNeXt-S. The TiTok family, from which its code grew,
    adds a tenth of ConvNeXt-S's distance to LPIPS."""
    perceptual_path: str | None = None
    """Folder of the VFM, or file of weights, that the perceptual net loads (of both: LPIPS's)."""
    convnext_path: str | None = None
    """With 'lpips+convnext': file of ConvNeXt-S's weights."""
    convnext_weight: float = 0.1
    """With 'lpips+convnext': weight of ConvNeXt-S's distance beside that of LPIPS."""
    perceptual_layers: int = 2
    """With 'vfm': how many of its layers are compared."""
    perceptual_weight: float = 1.1
    """Weight of the perceptual term."""
    quantization_weight: float = 1.0
    """Weight of SimVQ's loss."""
    distillation_weight: float = 1.0
    """lambda_d: weight of ||Z_I - T(X)||^2 in stage 2."""
    adversarial_weight: float = 0.1
    """lambda_G, from adversarial_start on; 0 leaves the critic out. The weight is fixed: an
    adaptive one needs gradients that ZeRO does not give."""
    adversarial_start: int | None = None
    """First step with the critic; None: never (stage 1). Paper: 50k (SigLIP2), 30k (InternViT)."""
    lecam_weight: float = 0.001
    """Weight of the LeCam regulariser in the critic's loss; 0 leaves it out. Not stated in the
    paper; the TiTok family's."""
    critic_lr: float = 4e-5
    """Learning rate of the critic."""
    critic_width: int = 64
    """Channels of the critic's first layer; they double in each of its three stages."""
    codebook_init: Literal["kmeans", "random"] = "kmeans"
    """How a fresh stage 1 fills the codebook."""
    end_to_end: bool = False
    """Stage 2 from a fresh tokenizer, with no stage 1 before it: codebook and projections start as
    stage 1's would. Only for comparison; the paper finds two stages better."""
    projection_init: Literal["isometry", "pixels"] = "isometry"
    """Where stage 1's projections start: distances of features kept, or near latents for near
    pixels (needs codebook_init=kmeans and standardised features)."""
    projection_flatten: float = 0.4
    """With 'pixels', how far loud and quiet components are made alike, 0 to 1."""
    codebook_init_images: int = 2048
    """Training pictures that k-means and the feature statistics see."""
    codebook_init_tokens: int = 32768
    """Tokens of them that k-means uses, drawn in proportion to the contrast of their patch."""
    usage_window: int = 50
    """Batches over which codebook usage is counted."""
    revive_every: int = 0
    """Every so many steps, codes unused over the window move onto encoded tokens; 0: never."""
    revive_until: float = 0.8
    """Revival ends at this share of the run's steps, so that the decoder can settle."""
    collapse_below: float = 0.02
    """Usage over a full window below which the run stops; 0 goes on regardless."""


def turn_channels(pixels: Tensor, rng: random.Random) -> Tensor:
    """(B, 3, H, W), each picture's channels turned by 0, 1 or 2 places."""
    return torch.stack([picture.roll(rng.randrange(3), 0) for picture in pixels])


# Tokens behind the least squares of the decoder's last layer.
_READOUT_TOKENS = 16384


class TokenizerObjective(Objective):
    """Reconstruct pictures through codes; stage 2 also unfreezes and distils the encoder.

    Samples hold "image" (PIL) and "key".

    Args:
        steps: of the whole run.
        perceptual: the perceptual net, in the place of the one that the config names.
    """

    unit = "images"

    def __init__(
        self,
        model: VQRAEModel,
        config: TokenizerLossConfig,
        steps: int,
        seed: int = 0,
        *,
        perceptual: nn.Module | None = None,
    ):
        super().__init__()
        self.model, self.config, self.steps, self.seed = model, config, steps, seed
        if config.projection_init == "pixels" and not (
            config.codebook_init == "kmeans" and model.config.standardize_features
        ):
            raise ValueError(
                "projection_init=pixels needs codebook_init=kmeans and a tokenizer with "
                "standardize_features; change one of them"
            )
        self.processor = VQRAEImageProcessor(model.config.image_size)
        set_trainable(model.encoder, config.stage == 2)
        perceptual = perceptual or build_perceptual(
            config.perceptual,
            config.perceptual_path,
            config.perceptual_layers,
            config.convnext_path,
            config.convnext_weight,
        )
        teacher = None
        if config.stage == 2:
            teacher = copy.deepcopy(model.encoder).requires_grad_(False).eval()
        uses_critic = config.adversarial_start is not None and config.adversarial_weight > 0
        critic = PatchCritic(config.critic_width) if uses_critic else None
        # In a tuple they are not submodules: the engine neither shards nor saves them.
        self._aside = (perceptual, teacher, critic)
        self.usage = UsageWindow(model.config.codebook_size, config.usage_window)
        self.lecam = LeCam()
        self._stash: dict[str, Tensor] = {}

    # -- data --------------------------------------------------------------------------------

    def collate(self, samples: list[dict]) -> dict:
        images, keys = (
            [sample["image"] for sample in samples],
            [sample["key"] for sample in samples],
        )
        # From the keys, so that loader workers and resumed runs choose the same.
        seed = "\0".join(map(str, keys))
        if self.config.augment.changes:
            rng = random.Random(f"augment\0{seed}")
            images = [self.config.augment(image, rng) for image in images]
        pixels = self.processor(images)["pixel_values"]
        if self.config.turn_channels:
            pixels = turn_channels(pixels, random.Random(seed))
        return {"keys": keys, "pixels": pixels}

    def count(self, batch: dict) -> int:
        return len(batch["pixels"])

    @torch.no_grad()
    def prepare(self, batches: Iterator[dict]) -> None:
        """Fill the codebook from encoded training pictures, where the tokenizer is fresh."""
        fresh = self.config.stage == 1 or self.config.end_to_end
        if not fresh or self.config.codebook_init == "random":
            return
        model, config = self.model, self.config
        features, contrast, kept, seen = [], [], [], 0
        regression = PixelRegression()
        for batch in batches:
            pixels = batch["pixels"].to(model.feature_mean.device)
            features.append(model.encode(pixels))
            patches = model.decoder.patches(pixels).flatten(0, 1)
            contrast.append(patch_contrast(patches))
            regression.add(features[-1].flatten(0, 1), patches)
            if seen * model.config.num_image_tokens < _READOUT_TOKENS:
                kept.append(pixels)
            seen += len(pixels)
            if seen >= config.codebook_init_images:
                break
        if model.config.standardize_features:
            model.feature_mean.copy_(regression.mean())
            # One scale over all channels would let a few loud ones decide every distance.
            model.feature_std.copy_(regression.std())
        if config.projection_init == "pixels":
            initialise_projections(model, regression, config.projection_flatten)
        initialise_codebook(
            model,
            torch.cat(features).flatten(0, 1),
            torch.cat(contrast),
            config.codebook_init_tokens,
            self.seed,
        )
        if config.projection_init == "pixels":
            initialise_readout(model, zip(features, kept, strict=False))

    # -- parameters --------------------------------------------------------------------------

    def param_groups(self) -> list[dict]:
        config, model = self.config, self.model
        between = nn.ModuleList([model.project_in, model.quantizer, model.project_out])
        groups = []
        for name, module, factor in (
            ("decoder", model.decoder, 1.0),
            ("quantizer", between, config.quantizer_lr_factor),
        ):
            groups += decay_groups(
                module,
                name=name,
                lr=config.decoder_lr * factor,
                min_lr=config.decoder_min_lr * factor,
                weight_decay=config.weight_decay,
            )
        if config.stage == 2:
            groups += self._constant_groups("encoder", model.encoder, config.encoder_lr)
        return groups

    def _constant_groups(self, name: str, module: nn.Module, lr: float) -> list[dict]:
        decay = self.config.weight_decay
        return decay_groups(module, name=name, lr=lr, min_lr=lr, weight_decay=decay)

    @property
    def critic(self) -> nn.Module | None:
        return self._aside[2]

    def critic_param_groups(self) -> list[dict]:
        return self._constant_groups("critic", self.critic, self.config.critic_lr)

    def critic_active(self, step: int) -> bool:
        return self.critic is not None and step >= self.config.adversarial_start

    # -- losses ------------------------------------------------------------------------------

    def _move_aside(self, device: torch.device) -> None:
        for module in self._aside:
            if module is not None and next(module.parameters()).device != device:
                module.to(device)

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config, pixels = self.config, batch["pixels"]
        self._move_aside(pixels.device)
        perceptual, teacher, critic = self._aside
        with torch.no_grad() if config.stage == 1 else nullcontext():
            features = self.model.encode(pixels)
        out = self.model(pixels, features=features)
        image = out.reconstruction

        pixel = F.mse_loss(image, pixels)
        loss = config.pixel_weight * pixel + config.quantization_weight * out.quantization_loss
        logs = {"pixel": pixel, "quantization": out.quantization_loss}
        if perceptual is not None:
            logs["perceptual"] = perceptual(image, pixels)
            loss = loss + config.perceptual_weight * logs["perceptual"]
        if teacher is not None:
            with torch.no_grad():
                wanted = self._teach(teacher, pixels)
            logs["distillation"] = F.mse_loss(features, wanted)
            loss = loss + config.distillation_weight * logs["distillation"]
        if self.critic_active(step):
            logs["adversarial"] = hinge_generator_loss(critic(image))
            loss = loss + config.adversarial_weight * logs["adversarial"]

        with torch.no_grad():
            error = (image.clamp(0, 1) - pixels).square().flatten(1).mean(1).clamp(min=1e-10)
            logs["psnr"] = (-10 * error.log10()).mean()
        self._stash = {
            "image": image.detach(),
            "codes": out.codes,
            "latents": out.latents.detach(),
        }
        return loss, {name: value.detach() for name, value in logs.items()}

    def _teach(self, teacher: nn.Module, pixels: Tensor) -> Tensor:
        config = self.model.config
        pixels = normalise(pixels, config.pixel_mean, config.pixel_std)
        return patch_features(teacher, pixels, config.num_image_tokens)

    def critic_loss(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        real, fake = self.critic(batch["pixels"]), self.critic(self._stash["image"])
        loss = hinge_critic_loss(real, fake)
        logs = {"critic": loss, "critic_real": real.mean(), "critic_fake": fake.mean()}
        if self.config.lecam_weight:
            logs["lecam"] = self.lecam(real, fake)
            loss = loss + self.config.lecam_weight * logs["lecam"]
            self.lecam.update(real, fake)
        return loss, {name: value.detach() for name, value in logs.items()}

    # -- codebook ----------------------------------------------------------------------------

    def after_step(self, step: int) -> dict[str, float]:
        self.usage.add(self._stash["codes"])
        config, logs = self.config, self.usage.logs()
        if self.usage.full and logs["usage"] < config.collapse_below:
            raise TrainingStopped(
                f"step {step}: the codebook has collapsed, {logs['usage']:.1%} of its codes were "
                f"used in the last {config.usage_window} batches; try codebook_init=kmeans, "
                "revive_every, a smaller codebook_size, or a lower decoder_lr"
            )
        due = config.revive_every and (step + 1) % config.revive_every == 0
        if due and self.usage.full and step < config.revive_until * self.steps:
            logs["revived"] = self._revive()
        return logs

    @torch.no_grad()
    def _revive(self) -> float:
        dead = (self.usage.counts() == 0).nonzero().squeeze(-1)
        latents = self._stash["latents"].flatten(0, 1).float()
        dead = dead[: len(latents)]
        if not len(dead):
            return 0.0
        picked = latents[torch.randperm(len(latents))[: len(dead)].to(latents.device)]
        if dist.is_initialized():
            picked = picked.contiguous()
            dist.broadcast(picked, src=0)
        self.model.quantizer.revive(dead.to(picked.device), picked)
        return float(len(dead))

    def large_parts(self) -> list[nn.Module]:
        perceptual, teacher, critic = self._aside
        parts = (self.model.encoder, self.model.decoder, perceptual, teacher, critic)
        return [part for part in parts if part is not None]

    def edited_parameters(self) -> list[nn.Parameter]:
        # Revival reads W, which ZeRO-3 keeps in parts.
        return [self.model.quantizer.transform] if self.config.revive_every else []

    def extra_state(self) -> dict:
        return {"usage": self.usage.state(), "lecam": [self.lecam.real, self.lecam.fake]}

    def load_extra_state(self, state: dict) -> None:
        self.usage.load(state["usage"])
        self.lecam.real, self.lecam.fake = state["lecam"]

    def export(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)
