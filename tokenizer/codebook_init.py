"""A codebook that starts from encoded training pictures instead of noise.

The paper says "initialised codebook" and no more. Random codes lie far from the features of a
trained encoder: a few of them win every token and the rest never wake. k-means on the features
themselves gives every code tokens of its own from the first step.
Shapes: M vectors, E code dimension, D encoder width, K codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vqrae.tokenizer.modeling_vqrae import VQRAEModel


def _nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Index of and squared distance to the nearest centre, a block of vectors at a time."""
    half_norms = centres.square().sum(-1) / 2
    best = [torch.addmm(-half_norms, v, centres.T).max(-1) for v in vectors.split(8192)]
    scores = torch.cat([b.values for b in best])
    distance = (vectors.square().sum(-1) - 2 * scores).clamp(min=0)
    return torch.cat([b.indices for b in best]), distance


def _spread_start(vectors: Tensor, k: int, generator: torch.Generator, rounds: int) -> Tensor:
    """k-means++ in rounds: each draws its share of centres by squared distance to those before."""
    first = int(torch.randint(len(vectors), (), generator=generator))
    picked = torch.tensor([first], device=vectors.device)
    distance = _nearest(vectors, vectors[picked])[1]
    while len(picked) < k:
        weights = distance.double().cpu()
        weights[picked.cpu()] = 0
        # Duplicates of what is picked already have no weight; a floor keeps enough to draw from.
        weights += weights.mean() * 1e-6 + 1e-30
        weights[picked.cpu()] = 0
        count = min(k - len(picked), -(-k // rounds))
        new = torch.multinomial(weights, count, generator=generator).to(vectors.device)
        picked = torch.cat([picked, new])
        distance = torch.minimum(distance, _nearest(vectors, vectors[new])[1])
    return vectors[picked].clone()


@torch.no_grad()
def kmeans(
    vectors: Tensor, k: int, iterations: int = 12, seed: int = 0, rounds: int = 64
) -> Tensor:
    """Lloyd's algorithm from a k-means++ start: (M, E) -> (K, E) centres.

    Euclidean, deterministic for a seed. An empty centre restarts on the vector served worst.

    Args:
        rounds: draws of the start; k of them is k-means++ itself, fewer draw several at once.

    Raises:
        ValueError: if there are fewer vectors than centres.
    """
    if len(vectors) < k:
        raise ValueError(
            f"{len(vectors)} encoded tokens cannot start a codebook of {k}; give more pictures to "
            "codebook_init_images or a smaller codebook_size"
        )
    generator = torch.Generator().manual_seed(seed)
    centres = _spread_start(vectors, k, generator, rounds)
    for _ in range(iterations):
        nearest, distance = _nearest(vectors, centres)
        counts = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        centres = sums / counts.clamp(min=1).unsqueeze(-1)
        empty = (counts == 0).nonzero().squeeze(-1)
        if len(empty):
            centres[empty] = vectors[distance.topk(len(empty)).indices]
    return centres


def patch_contrast(patches: Tensor) -> Tensor:
    """Standard deviation of each patch's pixels, mean over RGB: (M, P * P * 3) -> (M,)."""
    return patches.view(len(patches), -1, 3).std(1).mean(1)


@torch.no_grad()
def initialise_codebook(
    model: VQRAEModel,
    features: Tensor,
    contrast: Tensor | None = None,
    tokens: int = 32768,
    seed: int = 0,
) -> None:
    """Set the codebook of `model` by k-means on the latents of encoded training pictures.

    Args:
        features: (M, D), encoded tokens.
        contrast: (M,), how much there is to see in each token's patch. Tokens are drawn for
            k-means in proportion to its square: flat background would otherwise outnumber what
            matters and take most of the codes.
        tokens: how many are drawn, some of them several times.
    """
    weights = torch.ones(len(features)) if contrast is None else contrast.double().cpu() + 0.02
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(weights**2, tokens, replacement=True, generator=generator)
    latents = model.to_latents(features[drawn.to(features.device)])
    model.quantizer.fill(kmeans(latents, model.config.codebook_size, seed=seed))
