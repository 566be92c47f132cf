"""The tokenizer on a real vision foundation model and real pictures, with the paper's numbers.

What the paper leaves open follows the TiTok family, from which its code grew: LPIPS plus a tenth of
ConvNeXt-S, LeCam, averaged weights, the critic's shape. Both nets of the perceptual term, and the
encoder, are local files or in the hub's cache: nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from vqrae.data import open_pairs
from vqrae.recipes.scenes_vfm import recipe_settings
from vqrae.tokenizer import TokenizerLossConfig, TokenizerObjective, VQRAEModel
from vqrae.training import FitResult, TrainConfig, fit

_LOSS1 = TokenizerLossConfig(
    stage=1, decoder_lr=4e-4, decoder_min_lr=1e-4, perceptual="lpips+convnext"
)
_LOSS2 = TokenizerLossConfig(
    stage=2,
    decoder_lr=1e-4,
    decoder_min_lr=1e-5,
    encoder_lr=1e-5,
    distillation_weight=1.0,
    perceptual="lpips+convnext",
    adversarial_start=50_000,
    adversarial_weight=0.1,
    critic_lr=4e-5,
)
_TRAIN = TrainConfig(
    steps=100_000,
    batch_size=1024,
    warmup=2000,
    weight_decay=1e-4,
    betas=(0.9, 0.999),
    clip=1.0,
    precision="bf16",
    ema=0.999,
    engine="deepspeed",
    deepspeed="zero1",
    num_workers=8,
    log_every=50,
    save_every=2500,
)


@dataclass(frozen=True, kw_only=True)
class TokenizerStage1:
    """Stage 1: the encoder frozen; codebook, projections and decoder learn (paper section 3.2)."""

    run: str
    """Run directory; the tokenizer is exported to RUN/final."""
    data: str
    """Pictures: a folder of them, of .tar or of .parquet files, a pattern, or hf:NAME."""
    vfm: str
    """The vision foundation model: a hub name in the local cache, or a folder."""
    codebook_size: int = 16384
    """K, number of codes."""
    code_dim: int = 1536
    """E, dimension of a code."""
    image_size: int | None = None
    """Side of the pictures in pixels, if another than the encoder's own."""
    encoder_layer: int = -1
    """Whose output is read; see VQRAEConfig."""
    final_norm: str | None = None
    """affine, plain or none; by default as the encoder has it."""
    shuffle: int = 10_000
    """Size of the shuffle buffer, in pictures."""
    max_bad_share: float = 0.05
    """Share of pictures that may be unreadable: they are skipped and named; above it training
    stops."""
    loss: TokenizerLossConfig = _LOSS1
    """Weights and learning rates. loss.perceptual-path and loss.convnext-path must be given."""
    train: TrainConfig = _TRAIN
    """Steps, batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class TokenizerStage2:
    """Stage 2: the encoder learns too, held to its original by distillation; then the critic."""

    run: str
    """Run directory; the tokenizer is exported to RUN/final."""
    data: str
    """Pictures; see stage 1."""
    stage1: str
    """RUN/final of stage 1."""
    shuffle: int = 10_000
    """Size of the shuffle buffer, in pictures."""
    max_bad_share: float = 0.05
    """Share of pictures that may be unreadable: they are skipped and named; above it training
    stops."""
    loss: TokenizerLossConfig = _LOSS2
    """Weights and learning rates. loss.perceptual-path and loss.convnext-path must be given."""
    train: TrainConfig = field(default_factory=lambda: replace(_TRAIN, steps=70_000))
    """Steps, batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class SigLIP2Stage1(TokenizerStage1):
    """VQRAE-SigLIP2 at 256 pixels, stage 1, as the paper trains it."""

    vfm: str = "google/siglip2-so400m-patch16-256"
    """The vision foundation model: a hub name in the local cache, or a folder."""


@dataclass(frozen=True, kw_only=True)
class SigLIP2Large1(TokenizerStage1):
    """VQRAE-SigLIP2 at 512 pixels, stage 1, as the paper trains it."""

    vfm: str = "google/siglip2-so400m-patch16-512"
    """The vision foundation model: a hub name in the local cache, or a folder."""


@dataclass(frozen=True, kw_only=True)
class InternViTStage1(TokenizerStage1):
    """VQRAE-InternViT at 448 pixels, stage 1, as the paper trains it."""

    vfm: str = "OpenGVLab/InternVL3-1B-hf"
    """An InternVL3 model, whose InternViT-300M is taken."""
    train: TrainConfig = replace(_TRAIN, steps=45_000, batch_size=768)
    """Steps, batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class InternViTStage2(TokenizerStage2):
    """VQRAE-InternViT, stage 2, as the paper trains it."""

    loss: TokenizerLossConfig = replace(_LOSS2, adversarial_start=30_000)
    """Weights and learning rates. loss.perceptual-path and loss.convnext-path must be given."""
    train: TrainConfig = field(
        default_factory=lambda: replace(_TRAIN, steps=60_000, batch_size=768)
    )
    """Steps, batch and the rest of the loop."""


def tokenizer_stage1(config: TokenizerStage1) -> FitResult:
    r"""Train codebook, projections and decoder on a frozen real encoder.

    Command:

        torchrun --nproc-per-node 8 -m -- vqrae.scripts.train siglip2-256-1 \
            --run runs/stage1 --data 'pretrain/part-{0000..2047}.tar' \
            --loss.perceptual-path lpips_vgg.pth --loss.convnext-path convnext_small.pth

    Cost: not measured by us; the paper names none.
    Expected: after both stages rFID 1.31, PSNR 22.23, SSIM 0.762 (SigLIP2, ImageNet val at 256).

    Raises:
        ValueError: for an encoder, weights or data that are not there.
    """
    torch.manual_seed(config.train.seed)
    model = VQRAEModel.from_vfm(
        config.vfm,
        codebook_size=config.codebook_size,
        code_dim=config.code_dim,
        image_size=config.image_size,
        encoder_layer=config.encoder_layer,
        final_norm=config.final_norm,
    )
    return _fit(model, config, "tokenizer-1")


def tokenizer_stage2(config: TokenizerStage2) -> FitResult:
    r"""Go on from stage 1 with the encoder unfrozen, its frozen original as teacher.

    Command:

        torchrun --nproc-per-node 8 -m -- vqrae.scripts.train siglip2-256-2 \
            --run runs/stage2 --data 'pretrain/part-{0000..2047}.tar' --stage1 runs/stage1/final \
            --loss.perceptual-path lpips_vgg.pth --loss.convnext-path convnext_small.pth

    Cost: not measured by us; the paper names none.
    Expected: see stage 1.

    Raises:
        ValueError: for a tokenizer, weights or data that are not there.
    """
    torch.manual_seed(config.train.seed)
    return _fit(VQRAEModel.from_pretrained(config.stage1), config, "tokenizer-2")


def _fit(model: VQRAEModel, config: TokenizerStage1 | TokenizerStage2, recipe: str) -> FitResult:
    train = config.train
    objective = TokenizerObjective(model, config.loss, train.steps, train.seed)
    dataset = open_pairs(
        config.data,
        texts=False,
        seed=train.seed,
        shuffle=config.shuffle,
        max_bad_share=config.max_bad_share,
    )
    settings = recipe_settings(config)
    return fit(objective, dataset, train, config.run, recipe=recipe, recipe_config=settings)
