"""SimVQ with a high-dimensional codebook (paper section 3.1; quantizer of arXiv 2411.02038).

Shapes: M vectors, E code dimension, K codebook size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vqrae.tokenizer._nearest import CodeIndex


class Quantized(NamedTuple):
    """What the quantizer gives for latents of shape (..., E)."""

    latents: Tensor
    """(..., E), values of the codes; the gradient passes straight through to the input."""
    codes: Tensor
    """(...) int64 in [0, K)."""
    loss: Tensor
    """Scalar: mse(q, sg(z)) + beta * mse(z, sg(q)). The paper prints the stop-gradient on the
    code in both terms; SimVQ's own loss, which trains W, is what we use."""


class SimVQ(nn.Module):
    """Fixed codebook C (K, E) seen through one learnable matrix W (E, E): the codes are C W.

    Because W is shared, a gradient through any code moves all of them. C is a buffer: it is drawn
    once, at random or from encoded training pictures (`fill`), and only `revive` changes it later.
    """

    def __init__(self, codebook_size: int, code_dim: int, beta: float, assignment: str):
        super().__init__()
        self.codebook_size, self.code_dim = codebook_size, code_dim
        self.beta, self.assignment = beta, assignment
        self.register_buffer("codebook", torch.randn(codebook_size, code_dim) * code_dim**-0.5)
        self.transform = nn.Parameter(torch.eye(code_dim))
        self._kept: tuple[list, CodeIndex] | None = None

    def effective_codebook(self) -> Tensor:
        """(K, E), the codes that latents are compared with and replaced by."""
        return self.codebook @ self.transform

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Index of the nearest code of each latent: (..., E) -> (...) int64.

        Latents and codes are compared block by block, so that no (M, K) matrix is ever there.
        """
        return self._nearest(latents, self._index())

    def _nearest(self, latents: Tensor, index: CodeIndex) -> Tensor:
        flat = latents.reshape(-1, self.code_dim)
        if self.assignment == "cosine":
            flat = F.normalize(flat, dim=-1)
        return index.nearest(flat).view(latents.shape[:-1])

    def _index(self) -> CodeIndex:
        if self.training:  # the next step has other codes
            return self._new_index()
        # What codes are made from, and whether it was changed since.
        made_from = [
            (x.data_ptr(), 0 if x.is_inference() else x._version, x.dtype)
            for x in (self.codebook, self.transform)
        ]
        if self._kept is None or self._kept[0] != made_from:
            self._kept = (made_from, self._new_index())
        return self._kept[1]

    def _new_index(self) -> CodeIndex:
        codes = self.effective_codebook()
        return CodeIndex(F.normalize(codes, dim=-1) if self.assignment == "cosine" else codes)

    def train(self, mode: bool = True) -> SimVQ:
        self._kept = None
        return super().train(mode)

    def lookup(self, indices: Tensor) -> Tensor:
        """(...) int64 -> (..., E). Applies W: the raw C means nothing to the decoder."""
        return F.embedding(indices, self.codebook) @ self.transform

    def forward(self, latents: Tensor) -> Quantized:
        with torch.no_grad():
            index = self._index()
            indices = self._nearest(latents, index)
        if self.assignment == "cosine":  # the index has them without their lengths
            quantized = self.lookup(indices)
        else:
            quantized = _Lookup.apply(self.transform, self.codebook, index.codes, indices)
        loss = F.mse_loss(quantized, latents.detach())
        loss = loss + self.beta * F.mse_loss(latents, quantized.detach())
        straight_through = latents + (quantized - latents).detach()
        return Quantized(straight_through, indices, loss)

    @torch.no_grad()
    def fill(self, rows: Tensor) -> None:
        """Set C so that the effective codes are `rows` (K, E)."""
        assert rows.shape == self.codebook.shape, (rows.shape, self.codebook.shape)
        self.codebook.copy_(self._before_transform(rows))

    @torch.no_grad()
    def revive(self, indices: Tensor, latents: Tensor) -> None:
        """Move the codes `indices` (M,) onto `latents` (M, E), so that they are used again."""
        self.codebook[indices] = self._before_transform(latents)

    def _before_transform(self, rows: Tensor) -> Tensor:
        # Solve X W = rows; least squares, because nothing keeps W far from singular.
        return torch.linalg.lstsq(self.transform.T.float(), rows.T.float()).solution.T.to(rows)


class _Lookup(torch.autograd.Function):
    """`SimVQ.lookup` where the codes C W are there already, since they have just been searched."""

    @staticmethod
    def forward(ctx, transform: Tensor, codebook: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(codebook, indices)
        return F.embedding(indices, codes)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        codebook, indices = ctx.saved_tensors
        rows = F.embedding(indices.flatten(), codebook).to(grad.dtype)
        return rows.T @ grad.flatten(0, -2), None, None, None
