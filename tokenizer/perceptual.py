"""Perceptual distances between pictures; which one is a choice of the run's config.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vqrae.tokenizer._loading import read_weights
from vqrae.tokenizer.encoders import (
    build_encoder,
    load_vfm,
    load_vfm_config,
    normalise,
    pixel_statistics,
)

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ("none", "vfm", "lpips", "convnext", "lpips+convnext")


class VFMPerceptual(nn.Module):
    """Distance between the hidden states of a frozen VFM, channel-normalised as in LPIPS.

    For worlds that LPIPS's natural-image nets know nothing of; needs no weights beyond the VFM's.
    With `load` off they are as they come: only the net's shape is of use.
    """

    def __init__(self, path: str | Path, layers: int = 2, *, load: bool = True):
        super().__init__()
        self.vfm = load_vfm(path) if load else build_encoder(load_vfm_config(path))
        if self.vfm.config.model_type != "siglip_vision_model":
            raise ValueError(f"perceptual net 'vfm' needs a SigLIP encoder, which {path!s} is not")
        depth = len(self.vfm.encoder.layers)
        if not 1 <= layers <= depth:
            raise ValueError(f"perceptual_layers must be 1 to {depth}, the VFM's depth: {layers}")
        self.vfm.encoder.layers = self.vfm.encoder.layers[:layers]
        self.mean, self.std = pixel_statistics(path)
        self.requires_grad_(False)

    def _states(self, pixels: Tensor) -> list[Tensor]:
        own = self.vfm.config.image_size
        hidden = self.vfm.embeddings(
            normalise(pixels, self.mean, self.std),
            interpolate_pos_encoding=pixels.shape[-2:] != (own, own),
        )
        states = []
        for layer in self.vfm.encoder.layers:
            hidden = layer(hidden, None)
            states.append(F.normalize(hidden, dim=-1))
        return states

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> scalar, mean over layers of the squared distance per token."""
        with torch.no_grad():
            wanted = self._states(targets)
        pairs = zip(self._states(images), wanted, strict=True)
        return sum((a - b).square().sum(-1).mean() for a, b in pairs) / len(wanted)


class LPIPSPerceptual(nn.Module):
    """LPIPS on a torchvision VGG-16, both from one local file of weights.

    The file is a safetensors or weights-only torch file of `lpips.LPIPS(net="vgg")`. Without one
    the weights are as they come: only the net's shape is of use.
    """

    def __init__(self, weights: str | Path | None):
        super().__init__()
        try:
            import lpips
        except ImportError:
            raise ValueError(
                "perceptual 'lpips' needs the lpips package: pip install 'vqrae[eval]'"
            ) from None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")  # lpips' own affair
            self.net = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        if weights is not None:
            _load_weights(self.net, weights, "lpips")
        self.requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.net(images * 2 - 1, targets * 2 - 1).mean()


class ConvNeXtPerceptual(nn.Module):
    """Squared distance of ConvNeXt-S logits at 224 pixels, as the TiTok family uses it.

    The weights are a local file of torchvision's `convnext_small`; without one, as of LPIPS.
    """

    def __init__(self, weights: str | Path | None):
        super().__init__()
        from torchvision.models import convnext_small

        self.net = convnext_small(weights=None)
        if weights is not None:
            _load_weights(self.net, weights, "convnext")
        self.requires_grad_(False)
        self.net.eval()

    def _logits(self, pixels: Tensor) -> Tensor:
        pixels = F.interpolate(pixels, size=224, mode="bilinear", antialias=True)
        return self.net(normalise(pixels, _IMAGENET_MEAN, _IMAGENET_STD))

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._logits(targets)
        return F.mse_loss(self._logits(images), wanted)


def _load_weights(net: nn.Module, path: str | Path, kind: str) -> None:
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"perceptual {kind!r}: there is no weight file {str(path)!r}; give a local file, or "
            "choose perceptual 'vfm' or 'none'"
        )
    state = read_weights(path)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"perceptual {kind!r}: {str(path)!r} does not fit the net: {lines[-1].strip()}"
        ) from None


class SumPerceptual(nn.Module):
    """LPIPS plus a share of ConvNeXt's distance."""

    def __init__(self, lpips: nn.Module, convnext: nn.Module, weight: float):
        super().__init__()
        self.lpips, self.convnext, self.weight = lpips, convnext, weight

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.lpips(images, targets) + self.weight * self.convnext(images, targets)


def build_perceptual(
    kind: str,
    path: str | Path | None,
    layers: int = 2,
    convnext_path: str | Path | None = None,
    convnext_weight: float = 0.1,
    *,
    load: bool = True,
) -> nn.Module | None:
    """The perceptual net of a config: "none", "vfm" (a folder), "lpips" or "convnext" (a file), or
    "lpips+convnext" (a file each).

    Args:
        load: off, no weights are read, and files need not be there: only the shape is of use.

    Raises:
        ValueError: for an unknown kind, or weights that are not there.
    """
    if kind not in KINDS:
        raise ValueError(f"perceptual must be one of {', '.join(KINDS)}, not {kind!r}")
    if kind == "none":
        return None
    if path is None and (load or kind == "vfm"):
        raise ValueError(f"perceptual {kind!r} needs perceptual_path")
    if kind == "vfm":
        return VFMPerceptual(path, layers, load=load)
    if not load:
        path = convnext_path = None
    if kind == "lpips+convnext":
        if convnext_path is None and load:
            raise ValueError(f"perceptual {kind!r} needs convnext_path")
        convnext = ConvNeXtPerceptual(convnext_path)
        return SumPerceptual(LPIPSPerceptual(path), convnext, convnext_weight)
    return LPIPSPerceptual(path) if kind == "lpips" else ConvNeXtPerceptual(path)
