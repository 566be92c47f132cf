"""Picture and codebook metrics. Legend: B batch, H W pixels, K codebook size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PSNR_CEILING_DB = 100.0
"""What two identical images score: their PSNR is infinite and would swallow every mean."""


def _check_pair(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            "both batches of images must be (B, C, H, W) and alike: "
            f"{tuple(images.shape)} and {tuple(reference.shape)}"
        )


def image_psnr(images: Tensor, reference: Tensor) -> Tensor:
    """PSNR of each image in dB, at most PSNR_CEILING_DB.

    images, reference: (B, C, H, W) with pixels in [0, 1]. Returns (B,) float64.
    10 log10(1 / mse), the mse over all pixels and channels of one image.
    Raises ValueError where the shapes differ.
    """
    _check_pair(images, reference)
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(10 ** (-PSNR_CEILING_DB / 10)))


def psnr(images: Tensor, reference: Tensor) -> float:
    """Mean over the images of each image's PSNR in dB, pixels in [0, 1].

    The mean of decibels, not the decibels of the mean error: the latter lets the few worst images
    set the number and moves when batches are pooled.
    """
    return image_psnr(images, reference).mean().item()


def image_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """SSIM of each image: gaussian window 11, sigma 1.5, data range 1, mean over channels.

    Only windows that lie wholly in the image count, as in the original definition and in
    scikit-image. images, reference: (B, C, H, W) with pixels in [0, 1], H and W at least 11.
    Returns (B,). Raises ValueError where the shapes differ or an image is smaller than the window.
    """
    _check_pair(images, reference)
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of 11 pixels or more, not {tuple(images.shape[-2:])}")
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, windows = structural_similarity_index_measure(
        images.float(), reference.float(), sigma=1.5, data_range=1.0, return_full_image=True
    )
    # torchmetrics pads by reflection and keeps the padded windows; they count edges twice
    return windows[..., 5:-5, 5:-5].flatten(1).mean(1)


def ssim(images: Tensor, reference: Tensor) -> float:
    """Mean over the images of each image's SSIM (see image_ssim)."""
    return image_ssim(images, reference).mean().item()


def load_lpips(weights: str | Path) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS 0.1 over a backbone whose weights the user has; nothing is downloaded.

    weights: torchvision's AlexNet or VGG16 state dict (.safetensors, .pt or .pth); the learned
    heads come with the lpips package. Returns a function of two (B, 3, H, W) batches in [0, 1]
    that gives (B,) distances, lower is better.
    Raises ValueError where the file is missing or is neither network.
    """
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"LPIPS weights '{path}' not found; give torchvision's AlexNet or VGG16")
    from vqrae.tokenizer._loading import read_weights

    state = read_weights(path)
    first = state.get("features.0.weight")
    kernel = None if first is None else tuple(first.shape[2:])
    name = {(11, 11): "alex", (3, 3): "vgg"}.get(kernel)
    if name is None:
        raise ValueError(f"'{path}' holds neither AlexNet nor VGG16 of torchvision; give one")
    try:
        import lpips
    except ImportError as error:
        raise ValueError("LPIPS needs the lpips package: pip install 'vqrae[eval]'") from error
    network = lpips.LPIPS(net=name, pnet_rand=True, verbose=False).eval()
    with torch.no_grad():
        # lpips cuts the backbone into slices and keeps torchvision's layer numbers inside them
        for key, parameter in network.net.named_parameters():
            layer = key.split(".", 1)[1]
            source = state.get(f"features.{layer}")
            if source is None or source.shape != parameter.shape:
                raise ValueError(f"'{path}' lacks features.{layer}; give the whole state dict")
            parameter.copy_(source)

    @torch.no_grad()
    def distance(images: Tensor, reference: Tensor) -> Tensor:
        network.to(images.device)
        return network(images.float(), reference.float(), normalize=True).flatten()

    return distance


@dataclass(frozen=True)
class CodeUsage:
    """How a codebook is used over one window of tokens."""

    share: float
    """Share of the K codes that occur at least once in the window."""
    perplexity: float
    """exp of the entropy (nats) of the codes' frequencies: K where all are equally used."""
    histogram: Tensor
    """(K,) int64, how often each code occurs."""
    tokens: int
    """The window: how many tokens were counted. Share and perplexity mean nothing without it."""


def code_histogram(codes: Tensor, codebook_size: int) -> Tensor:
    """(K,) int64 counts of codes (any shape). Raises ValueError for a code outside [0, K)."""
    flat = codes.detach().flatten().cpu()
    if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) < codebook_size):
        raise ValueError(
            f"codes span {int(flat.min())}..{int(flat.max())}, the codebook has {codebook_size}"
        )
    return torch.bincount(flat, minlength=codebook_size)


def usage_of_histogram(histogram: Tensor) -> CodeUsage:
    """CodeUsage of (K,) counts, added up over as many batches as the window has."""
    tokens = int(histogram.sum())
    if tokens == 0:
        return CodeUsage(0.0, 0.0, histogram, 0)
    share = (histogram > 0).double().mean().item()
    frequency = histogram[histogram > 0].double() / tokens
    entropy = -(frequency * frequency.log()).sum()
    return CodeUsage(share, entropy.exp().item(), histogram, tokens)


def code_usage(codes: Tensor, codebook_size: int) -> CodeUsage:
    """Share used, perplexity and histogram over the window that `codes` (any shape, int64) is.

    PAPER.md's codebook ablation reports the share as utilisation.
    Raises ValueError for a code outside [0, codebook_size).
    """
    return usage_of_histogram(code_histogram(codes, codebook_size))
