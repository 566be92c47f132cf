"""How well pictures survive the codes, and how much of the codebook they use.

Legend: B batch, N image tokens, K codebook size, H W pixels.
"""

from __future__ import annotations

from itertools import islice
from math import fsum
from typing import TYPE_CHECKING, Any

import torch
from vqrae.eval._pictures import device_of, pixel_batches, to_pil
from vqrae.eval._ranks import summed
from vqrae.eval.metrics import code_histogram, image_psnr, image_ssim, usage_of_histogram
from vqrae.training._process import gather_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor
    from vqrae.eval._pictures import Preprocess


def mean_image(
    dataset: Iterable[dict], *, limit: int = 2000, preprocess: Preprocess | None = None
) -> Tensor:
    """The mean picture of a training set, (3, H, W) in [0, 1]: what one can draw without looking.

    dataset: yields samples with an "image" (a ShardDataset over the TRAIN shards); the first
    `limit` are taken. Raises ValueError where there is none.
    """
    total, count = None, 0
    images = (sample["image"] for sample in islice(dataset, limit))
    for pixels in pixel_batches(images, 64, preprocess):
        batch_sum = pixels.double().sum(0)
        total = batch_sum if total is None else total + batch_sum
        count += len(pixels)
    if total is None:
        raise ValueError("no training image to take the mean of; check the train shards")
    return (total / count).float()


@torch.no_grad()
def evaluate_reconstruction(
    model: Any,
    images: Iterable,
    *,
    mean: Tensor | None = None,
    preprocess: Preprocess | None = None,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    batch_size: int = 64,
    examples: int = 12,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, Any]:
    """Tokenize every image, draw it back from its codes alone, and compare.

    model: a VQRAEModel (tokenize, detokenize, config.codebook_size). images: PIL images, uint8
    arrays (H, W, 3), or tensors (3, H, W) / (B, 3, H, W) in [0, 1]. mean: (3, H, W) in [0, 1],
    see mean_image; without it the baseline is None. lpips: see metrics.load_lpips. observe: called
    with each batch of pictures and what became of them. Where several ranks have joined, each gives
    its own images and all get the numbers over all of them.

    Returns psnr (dB, mean over images), ssim, lpips or None, usage (share of the codebook),
    perplexity, baseline_psnr (every picture replaced by the mean image),
    window {"images", "tokens"}, codebook_size, histogram (list of K counts), examples
    [(original, reconstruction, psnr)], and each [{"psnr", "ssim", ...}], one for each image of
    this rank in their order. The numbers do not depend on batch_size.
    Raises ValueError where there is no image.
    """
    device = device_of(model)
    codebook_size = int(model.config.codebook_size)
    histogram = torch.zeros(codebook_size, dtype=torch.int64)
    scores: dict[str, list[Tensor]] = {}
    pictures: list[dict[str, Any]] = []
    count = 0
    for pixels in pixel_batches(images, batch_size, preprocess):
        pixels = pixels.to(device)
        codes = model.tokenize(pixels)
        drawn = model.detokenize(codes).float().clamp(0, 1)
        # what is measured is what is saved as a picture: 8 bit
        drawn = drawn.mul(255).round().div(255)
        histogram += code_histogram(codes, codebook_size)
        found = {"psnr": image_psnr(drawn, pixels), "ssim": image_ssim(drawn, pixels)}
        if lpips is not None:
            found["lpips"] = lpips(drawn, pixels)
        if mean is not None:
            constant = mean.to(device).expand_as(pixels)
            found["baseline_psnr"] = image_psnr(constant, pixels)
        if observe is not None:
            observe(pixels, drawn)
        for name, values in found.items():
            scores.setdefault(name, []).append(values.double().cpu())
        room = max(examples - len(pictures), 0)
        pairs = zip(to_pil(pixels[:room]), to_pil(drawn[:room]), strict=True)
        for (original, reconstruction), value in zip(pairs, found["psnr"].tolist(), strict=False):
            pictures.append({"original": original, "reconstruction": reconstruction, "psnr": value})
        count += len(pixels)
    count = sum(gather_objects(count))
    if count == 0:
        raise ValueError("no image to reconstruct; check the test shards")
    histogram = summed(histogram)
    # Exact sums: which rank or batch a picture was in must not show in the last digit.
    own = {name: torch.cat(values).tolist() for name, values in scores.items()}
    every = gather_objects(own)
    names = ("psnr", "ssim", "lpips", "baseline_psnr")
    means = {
        name: fsum(value for found in every for value in found.get(name, ())) / count
        for name in names
        if any(name in found for found in every)
    }
    usage = usage_of_histogram(histogram)
    return {
        **{name: means.get(name) for name in names},
        "usage": usage.share,
        "perplexity": usage.perplexity,
        "codebook_size": codebook_size,
        "window": {"images": count, "tokens": usage.tokens},
        "histogram": histogram.tolist(),
        "examples": pictures,
        "each": [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)],
    }
