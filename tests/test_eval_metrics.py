"""Metrics against other implementations and against numbers done by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vqrae.eval.metrics import PSNR_CEILING_DB, code_usage, image_psnr, load_lpips, psnr, ssim
from vqrae.eval.reconstruction import evaluate_reconstruction, mean_image


def pictures(count: int, size: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, 3, size // 4, size // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(smooth, size=size, mode="bilinear")
    return (smooth * 255).round() / 255


class Rounder(torch.nn.Module):
    """A tokenizer whose codes are 2x2 mean brightnesses: enough for the evaluation's contract."""

    def __init__(self, codebook_size: int = 16, size: int = 24):
        super().__init__()
        self.config = SimpleNamespace(codebook_size=codebook_size)
        self.size = size

    def tokenize(self, pixels: torch.Tensor) -> torch.Tensor:
        grey = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 2)
        return (grey.flatten(1) * (self.config.codebook_size - 1)).round().long()

    def detokenize(self, codes: torch.Tensor) -> torch.Tensor:
        side = self.size // 2
        grey = codes.view(-1, 1, side, side).float() / (self.config.codebook_size - 1)
        return torch.nn.functional.interpolate(grey, scale_factor=2).expand(-1, 3, -1, -1)


def test_psnr_and_ssim_equal_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pictures(4), (pictures(4) + 0.1 * pictures(4, seed=1)).clamp(0, 1)
    pairs = [(x.double().numpy(), y.double().numpy()) for x, y in zip(a, b, strict=True)]
    wanted = [metrics.peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in pairs]
    assert psnr(a, b) == pytest.approx(np.mean(wanted), abs=1e-6)
    wanted = [
        metrics.structural_similarity(
            x,
            y,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in pairs
    ]
    assert ssim(a, b) == pytest.approx(np.mean(wanted), abs=1e-5)


def test_psnr_is_a_mean_of_decibels():
    black = torch.zeros(2, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert image_psnr(other, black).tolist() == pytest.approx([20, 40], abs=1e-4)
    assert psnr(other, black) == pytest.approx(30, abs=1e-4)
    assert psnr(black, black) == PSNR_CEILING_DB
    with pytest.raises(ValueError, match="alike"):
        psnr(black, black[:1])


def test_usage_and_perplexity_by_hand():
    codes = torch.tensor([[0, 0, 0, 0], [1, 1, 3, 3]])
    usage = code_usage(codes, 8)
    assert usage.share == 3 / 8 and usage.tokens == 8
    assert usage.histogram.tolist() == [4, 2, 0, 2, 0, 0, 0, 0]
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert usage.perplexity == pytest.approx(math.exp(entropy))
    assert code_usage(torch.arange(8), 8).perplexity == pytest.approx(8)
    assert code_usage(torch.zeros(5, dtype=torch.long), 8).perplexity == pytest.approx(1)
    with pytest.raises(ValueError, match="span 0..9"):
        code_usage(torch.tensor([0, 9]), 8)


def test_reconstruction_does_not_depend_on_the_batch_size():
    images, model = pictures(11), Rounder()
    mean = images.mean(0)
    whole = evaluate_reconstruction(model, [images], mean=mean, batch_size=64, examples=3)
    single = evaluate_reconstruction(model, iter(images), mean=mean, batch_size=1, examples=3)
    ragged = evaluate_reconstruction(model, images.split(4), mean=mean, batch_size=3, examples=3)
    for other in (single, ragged):
        for name in ("psnr", "ssim", "baseline_psnr", "usage", "perplexity"):
            assert other[name] == pytest.approx(whole[name], abs=1e-6)
        assert other["window"] == whole["window"] == {"images": 11, "tokens": 11 * 144}
        assert len(other["examples"]) == 3
    assert whole["lpips"] is None
    assert whole["psnr"] > whole["baseline_psnr"] > 0
    assert sum(whole["histogram"]) == 11 * 144
    with pytest.raises(ValueError, match="no image"):
        evaluate_reconstruction(model, [])


def test_mean_image_takes_the_first_training_images():
    images = [np.full((4, 4, 3), value, dtype=np.uint8) for value in (0, 255, 7)]
    mean = mean_image(({"image": image} for image in images), limit=2)
    assert mean.shape == (3, 4, 4) and torch.allclose(mean, torch.tensor(0.5))
    with pytest.raises(ValueError, match="no training image"):
        mean_image([])


def test_lpips_takes_weights_from_disk_only(tmp_path):
    with pytest.raises(ValueError, match="not found"):
        load_lpips(tmp_path / "alexnet.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="neither AlexNet nor VGG16"):
        load_lpips(tmp_path / "other.safetensors")
    pytest.importorskip("lpips")
    from torchvision.models import alexnet

    state = {k: v for k, v in alexnet().state_dict().items() if k.startswith("features")}
    save_file(state, tmp_path / "alexnet.safetensors")
    distance = load_lpips(tmp_path / "alexnet.safetensors")
    images = pictures(2, size=64)
    assert distance(images, images).tolist() == [0, 0]
    assert (distance(images, images.flip(-1)) > 0).all()
