"""The tokenizer's recipes for real encoders and pictures, at a toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model
from vqrae.scripts.main import main
from vqrae.tokenizer import VQRAEModel

SMALL = [
    "--loss.perceptual", "none", "--train.steps", "2", "--train.batch-size", "4", "--train.warmup",
    "1", "--train.engine", "torch", "--train.precision", "fp32", "--train.num-workers", "0",
    "--train.log-every", "1", "--train.device", "cpu", "--train.ema", "0.5",
]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    vision = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=40, patch_size=8,
        mlp_ratio=2,
    )  # fmt: skip
    Dinov2Model(vision).save_pretrained("encoder")
    Path("pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (40 + number, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{number}.png")
    return tmp_path


def test_both_stages_on_a_real_class_of_encoder(home):
    first = [
        "train", "tokenizer-1", "--run", "one", "--data", "pictures", "--vfm", "encoder",
        "--codebook-size", "16", "--code-dim", "40", "--image-size", "32",
        "--train.deepspeed", "None", *SMALL,
    ]  # fmt: skip
    assert main(first) == 0
    second = [
        "train", "tokenizer-2", "--run", "two", "--data", "pictures", "--stage1", "one/final",
        "--loss.adversarial-start", "1", "--loss.critic-width", "4",
        "--train.deepspeed", "None", *SMALL,
    ]  # fmt: skip
    assert main(second) == 0
    before, after = (VQRAEModel.from_pretrained(f"{run}/final") for run in ("one", "two"))
    assert before.config.image_size == 32 and before.config.num_image_tokens == 16
    source = Dinov2Model.from_pretrained("encoder").state_dict()
    assert all(torch.equal(v, source[k]) for k, v in before.encoder.state_dict().items())
    moved = after.encoder.state_dict()
    assert any(not torch.equal(v, source[k]) for k, v in moved.items())


def test_what_is_missing_is_named(home, capsys):
    line = ["train", "siglip2-256-1", "--run", "r", "--data", "pictures", "--train.engine", "torch"]
    line += ["--train.deepspeed", "None", "--train.device", "cpu"]
    assert main([*line, "--vfm", "encoder"]) == 2
    assert "needs perceptual_path" in capsys.readouterr().err
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "cannot load the encoder 'google/siglip2-so400m-patch16-256'" in error
    assert error.count("\n") == 1
