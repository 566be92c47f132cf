"""Projections that start from what the features say about pixels, not from chance.

A pretrained encoder's features hold much that its own patch does not show: every background token
of a picture also carries what stands elsewhere in it. Distances between features then spend codes
on differences that no pixel shows. Here `project_in` starts as the linear map that predicts each
token's own pixels best (reduced-rank regression), so that near latents are near pictures. Not in
the paper, which does not say how its projections start.
Shapes: B pictures, N image tokens, M tokens, D encoder width, P values in a patch, E code
dimension, R components.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from vqrae.tokenizer.modeling_vqrae import VQRAEModel


class PixelRegression:
    """Moments of features and patches, gathered batch by batch; never the patches themselves."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, ...] = ()

    def add(self, features: Tensor, patches: Tensor) -> None:
        """(M, D) encoded tokens and the (M, P) pixels of their own patches."""
        x, y = features.double(), patches.double()
        new = (x.sum(0), y.sum(0), x.T @ x, x.T @ y)
        old = self.sums or (0.0,) * len(new)
        self.sums = tuple(a + b for a, b in zip(old, new, strict=True))
        self.count += len(x)

    def mean(self) -> Tensor:
        """(D,) of the features."""
        return self.sums[0] / self.count

    def std(self) -> Tensor:
        """(D,) of the features."""
        variance = self.sums[2].diagonal() / self.count - self.mean().square()
        return variance.clamp(min=1e-8).sqrt()

    def correlation(self) -> Tensor:
        """(D, D), covariance of standardised features."""
        mean, std = self.mean(), self.std()
        return (self.sums[2] / self.count - mean[:, None] * mean) / std / std[:, None]

    def regression(self, ridge: float = 1e-3) -> Tensor:
        """(D, P), pixels less their mean from standardised features.

        Args:
            ridge: regularisation, as a share of a feature's variance.
        """
        covariance = self.correlation()
        cross = self.sums[3] / self.count - self.mean()[:, None] * self.sums[1] / self.count
        eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        return torch.linalg.solve(covariance + ridge * eye, cross / self.std()[:, None])

    def components(self, flatten: float) -> tuple[Tensor, Tensor]:
        """Principal components of the predicted pixels, as functions of standardised features.

        Args:
            flatten: from 0, components as loud as in the pixels, to 1, all equally loud. What a
                patch is of (tone, colour) is louder than which shape it has.

        Returns:
            maps (D, R) from standardised features, loudest first, and variances (R,); together as
            loud as the D features.
        """
        covariance, regression = self.correlation(), self.regression()
        variances, directions = torch.linalg.eigh(regression.T @ covariance @ regression)
        rank = min(regression.shape)
        variances, directions = variances.flip(0)[:rank], directions.flip(1)[:, :rank]
        kept = variances > 1e-9 * variances[0]
        variances, directions = variances[kept], directions[:, kept]
        maps = regression @ directions * variances ** (-flatten / 2)
        loudness = len(covariance) / (variances ** (1 - flatten)).sum()
        return maps * loudness.sqrt(), variances ** (1 - flatten) * loudness


@torch.no_grad()
def initialise_projections(model: VQRAEModel, regression: PixelRegression, flatten: float) -> None:
    """Set project_in to the components and project_out to the way back to features.

    The model's feature statistics must be set. Components that E has no room for are left out,
    quietest first; dimensions beyond R start at zero, in directions of chance.
    """
    maps, variances = regression.components(flatten)
    size = model.config.code_dim
    maps, variances = maps[:, :size], variances[:size]
    weight_in, weight_out = model.project_in.weight, model.project_out.weight
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(size, len(variances), generator=generator).double()).Q
    frame = frame.to(maps.device)
    weight_in.copy_(frame @ maps.T)
    # Least squares of the features on uncorrelated components.
    weight_out.copy_((regression.correlation() @ maps / variances) @ frame.T)
    model.project_in.bias.zero_()
    model.project_out.bias.zero_()


@torch.no_grad()
def initialise_readout(model: VQRAEModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the decoder's last layer by least squares, as the rest of it stands.

    The decoder then begins near the best linear picture of the codes. From a random last layer its
    first gradients mean nothing, and would pull the codes away from where k-means put them.

    Args:
        batches: features (B, N, D) of encoded pictures, and the pictures (B, 3, H, W).
    """
    layer, fit = model.decoder.to_pixels, PixelRegression()
    for features, pixels in batches:
        latents = model.quantizer(model.to_latents(features)).latents
        hidden = model.decoder.hidden(model.project_out(latents))
        fit.add(hidden.flatten(0, 1), model.decoder.patches(pixels).flatten(0, 1))
    weight = fit.regression() / fit.std()[:, None]
    layer.weight.copy_(weight.T)
    layer.bias.copy_(fit.sums[1] / fit.count - fit.mean() @ weight)
