"""The Fréchet distance between two sets of features, from sums that batches and ranks add to.

FID and rFID are this over Inception features (Heusel et al. 2017). Shapes: B batch, F features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vqrae.eval._ranks import summed


@dataclass
class FeatureStatistics:
    """Mean and covariance of features, summed in float64; the order of batches does not matter."""

    count: int = 0
    total: Tensor | None = None
    """(F,) sum."""
    products: Tensor | None = None
    """(F, F) sum of outer products."""
    about: dict[str, Any] = field(default_factory=dict)
    """Of which pictures they are."""

    def add(self, features: Tensor) -> None:
        """features: (B, F)."""
        features = features.double().cpu()
        if self.total is None:
            size = features.shape[1]
            self.total, self.products = torch.zeros(size).double(), torch.zeros(size, size).double()
        self.count += len(features)
        self.total += features.sum(0)
        self.products += features.T @ features

    def reduce(self, features: int) -> None:
        """Add up over ranks; `features` is F, for a rank that has seen no picture."""
        if self.total is None:
            self.total = torch.zeros(features).double()
            self.products = torch.zeros(features, features).double()
        self.count = int(summed(torch.tensor(self.count)))
        self.total, self.products = summed(self.total), summed(self.products)

    @property
    def mean(self) -> Tensor:
        """(F,) float64."""
        assert self.total is not None
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(F, F) float64, with count - 1 below the line, as in the published implementations.

        Raises ValueError for fewer than two pictures.
        """
        if self.count < 2:
            raise ValueError(f"statistics of {self.count} pictures have no covariance; take more")
        mean = self.mean
        return (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def save(self, path: str | Path) -> None:
        """As .safetensors, with what they are of."""
        from safetensors.torch import save_file

        about = json.dumps(self.about | {"count": self.count})
        tensors = {"mu": self.mean.contiguous(), "sigma": self.covariance.contiguous()}
        save_file(tensors, path, {"about": about})


@dataclass(frozen=True)
class Reference:
    """Saved statistics."""

    mean: Tensor
    covariance: Tensor
    about: dict[str, Any] | None
    """None for a file of others, which does not say."""


def load_reference(path: str | Path) -> Reference:
    """Ours (.safetensors), or an .npz with mu and sigma as pytorch-fid and ADM write them.

    Raises:
        ValueError: if the file is not there or holds no statistics.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of reference statistics '{path}'; check the path")
    about = None
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                mean, covariance = file.get_tensor("mu"), file.get_tensor("sigma")
                about = json.loads((file.metadata() or {}).get("about", "null"))
        else:
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = (torch.from_numpy(file[name]) for name in ("mu", "sigma"))
    except Exception as error:  # of many kinds, and all mean the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"'{path}' holds no mu and sigma: {reason}; give other statistics"
        ) from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"'{path}' has mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}, which do "
            "not fit together; give another file"
        )
    return Reference(mean.double(), covariance.double(), about)


def frechet_distance(mean: Tensor, covariance: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """|mu - mu2|^2 + tr(S + S2 - 2 (S S2)^(1/2)).

    The root's trace is that of (S^(1/2) S2 S^(1/2))^(1/2), which is symmetric: its eigenvalues are
    found much faster than those of S S2, and are real.

    Raises ValueError for statistics of different widths.
    """
    if mean.shape != mean2.shape:
        raise ValueError(f"features of width {len(mean)} and {len(mean2)} cannot be compared")
    values, vectors = torch.linalg.eigh(covariance)
    half = vectors * values.clamp(min=0).sqrt()
    roots = torch.linalg.eigvalsh(half.T @ covariance2 @ half).clamp(min=0).sqrt().sum()
    distance = (mean - mean2).square().sum() + covariance.trace() + covariance2.trace() - 2 * roots
    return max(0.0, float(distance))
