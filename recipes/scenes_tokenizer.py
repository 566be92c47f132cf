"""The tokenizer of the scenes world, in the paper's two stages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from vqrae.data import Augment, ShardDataset
from vqrae.recipes.scenes_vfm import recipe_settings
from vqrae.tokenizer import TokenizerLossConfig, TokenizerObjective, VQRAEModel
from vqrae.training import FitResult, TrainConfig, fit


@dataclass(frozen=True, kw_only=True)
class ScenesTokenizer1:
    """Stage 1: the encoder frozen; codebook, projections and decoder learn."""

    run: str
    """Run directory; the tokenizer is exported to RUN/final."""
    data: str
    """Folder written by `vqrae data scenes`."""
    vfm: str
    """The vision foundation model: RUN/final of scenes-vfm, any folder, or a hub name."""
    codebook_size: int = 512
    """K, number of codes."""
    code_dim: int = 192
    """E, dimension of a code; above the encoder's width, as the paper found best."""
    loss: TokenizerLossConfig = TokenizerLossConfig(
        stage=1,
        decoder_lr=2e-3,
        decoder_min_lr=2e-5,
        quantizer_lr_factor=0.1,
        augment=Augment(),
        turn_channels=True,
        perceptual="vfm",
        perceptual_weight=0.1,
        projection_init="pixels",
        codebook_init_images=4096,
        revive_every=100,
        usage_window=100,
    )
    """Loss weights and learning rates."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=480,
            batch_size=32,
            warmup=40,
            save_every=240,
            optimizer="muon",
            betas=(0.9, 0.99),
        )
    )
    """Steps, batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class ScenesTokenizer2:
    """Stage 2: the encoder learns too, held to its original by distillation."""

    run: str
    """Run directory; the tokenizer is exported to RUN/final."""
    data: str
    """Folder written by `vqrae data scenes`."""
    stage1: str
    """RUN/final of stage 1."""
    perceptual_vfm: str | None = None
    """The VFM behind the perceptual loss, if loss.perceptual is 'vfm'."""
    loss: TokenizerLossConfig = TokenizerLossConfig(
        stage=2,
        decoder_lr=1e-3,
        decoder_min_lr=2e-5,
        quantizer_lr_factor=0.1,
        augment=Augment(),
        turn_channels=True,
        encoder_lr=2e-4,
        distillation_weight=2.0,
        quantization_weight=0.2,
        perceptual="vfm",
        perceptual_weight=0.1,
        adversarial_start=270,
        adversarial_weight=0.0001,
        lecam_weight=0.0,
        critic_lr=2e-4,
        critic_width=8,
        revive_every=100,
        # Codes die as long as the encoder moves.
        revive_until=0.95,
        usage_window=100,
    )
    """Loss weights and learning rates."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=360,
            batch_size=32,
            warmup=20,
            save_every=180,
            optimizer="muon",
            betas=(0.9, 0.99),
        )
    )
    """Steps, batch and the rest of the loop."""


def _fit(model: VQRAEModel, loss, config, recipe: str) -> FitResult:
    objective = TokenizerObjective(model, loss, config.train.steps, config.train.seed)
    dataset = ShardDataset(f"{config.data}/train", seed=config.train.seed, shuffle=2000)
    settings = recipe_settings(config)
    return fit(objective, dataset, config.train, config.run, recipe=recipe, recipe_config=settings)


def with_vfm(loss: TokenizerLossConfig, vfm: str | None) -> TokenizerLossConfig:
    if loss.perceptual != "vfm" or loss.perceptual_path is not None or vfm is None:
        return loss
    return replace(loss, perceptual_path=vfm)


def scenes_tokenizer_1(config: ScenesTokenizer1) -> FitResult:
    r"""Train codebook, projections and decoder on the frozen encoder.

    Command: vqrae train scenes-tokenizer-1 --run runs/stage1 --data runs/scenes \
        --vfm runs/vfm/final
    Cost: about 1 minute on 2 CPU cores.
    Expected: more than 90% of the codes used on the held-out split from the first step on; there
    27 dB PSNR.
    """
    torch.manual_seed(config.train.seed)
    model = VQRAEModel.from_vfm(
        config.vfm, codebook_size=config.codebook_size, code_dim=config.code_dim
    )
    return _fit(model, with_vfm(config.loss, config.vfm), config, "scenes-tokenizer-1")


def scenes_tokenizer_2(config: ScenesTokenizer2) -> FitResult:
    r"""Go on from stage 1 with the encoder unfrozen, its frozen original as teacher.

    Command: vqrae train scenes-tokenizer-2 --run runs/stage2 --data runs/scenes \
        --stage1 runs/stage1/final --perceptual-vfm runs/vfm/final
    Cost: about 1 minute on 2 CPU cores.
    Expected: better PSNR than stage 1; zero-shot accuracy within 2 points of the teacher.
    """
    torch.manual_seed(config.train.seed)
    model = VQRAEModel.from_pretrained(config.stage1)
    return _fit(model, with_vfm(config.loss, config.perceptual_vfm), config, "scenes-tokenizer-2")
