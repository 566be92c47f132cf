"""The tokenizer's second stage at its smallest, for tests that start processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config
from vqrae.tokenizer import VQRAEConfig, VQRAEImageProcessor, VQRAEModel


def prepare(home: Path) -> None:
    """A first stage's result and pictures, where `options` look for them."""
    torch.manual_seed(0)
    encoder = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        mlp_ratio=2,
    )  # fmt: skip
    config = VQRAEConfig(encoder_config=encoder, codebook_size=64, code_dim=40)
    VQRAEModel(config).save_pretrained(home / "stage1")
    VQRAEImageProcessor(32).save_pretrained(home / "stage1")
    (home / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / f"pictures/{number:02d}.png")


def options(steps: int) -> list[str]:
    """The recipe and its options, but for --run; in the folder that was prepared."""
    return [
        "tokenizer-2", "--data", "pictures", "--stage1", "stage1", "--loss.perceptual", "none",
        "--train.steps", str(steps), "--train.batch-size", "8", "--train.warmup", "1",
        "--train.precision", "fp32", "--train.num-workers", "0", "--train.log-every", "1",
        "--train.device", "cpu",
    ]  # fmt: skip
