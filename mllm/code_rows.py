"""Embeddings of codes that are a linear map of what the codes look like.

A row of its own for every code is learnt from that code's pictures alone: a code that training
never draws keeps a row that training only pushed away. Rows made from what the encoder sees in a
code share one map, so that "purple" and "ring", learnt from other codes, meet in a purple ring.
Frequent codes have a part of their own besides: they are backgrounds mostly, alike in what they
mean and yet to be told apart. (Adaptive embeddings of words do the same for rare words.) Not in the
paper. Folded into plain rows when the model is saved.

Nor are codes that training never draws pushed away: while rows are shared, such codes are left out
of the softmax. (Nothing pulls at them, so one map shared with all others could still learn that
they never come.) When drawing, all codes are there. Together they may have a hundredth of the
probability; what is above costs loss. Without that one code of the scenes world, unlike all others,
came to 4% everywhere, and a quarter of the drawings were strewn with its red stars. How likely each
of them is in the end is still chance; see `code_bias`.

Tried on the scenes world: held-out colours drawn right after 750 steps with K = 384, of the 64%
that the tokenizer allows: free rows 6%, this map alone 42%, on whitened meanings 6%, with a part of
its own for every code 3%. With K = 1024 the map alone hardly learns backgrounds (loss on codes 5.6
after 200 steps of 64); with parts for frequent codes 3.3 after 300 steps of 32. K = 1024, 1,500
steps of 32 drawings, no guidance: held-out colours 25%, with unseen codes left out of the softmax
81%; two objects of held-out colours at guidance 3: 8% and 21%.

Shapes: K codebook size, N image tokens, D encoder width, T text width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vqrae.tokenizer import VQRAEModel

_PICTURES = 64  # encoded at once
_FREQUENT = 0.5  # multiple of an even share from which on a code is frequent


@torch.no_grad()
def code_meanings(vqrae: VQRAEModel) -> Tensor:
    """(K, D), what the encoder sees in each code: the mean feature of a picture tiled with it.

    Channels have mean 0 and variance 1 over the codes.
    """
    codes = torch.arange(vqrae.config.codebook_size, device=vqrae.device)
    seen = []
    for some in codes.split(_PICTURES):
        tiled = some[:, None].expand(-1, vqrae.config.num_image_tokens)
        seen.append(vqrae.encode(vqrae.detokenize(tiled)).mean(1))
    meanings = torch.cat(seen).float()
    return (meanings - meanings.mean(0)) / meanings.std(0).clamp(min=1e-6)


class CodeRows(nn.Module):
    """Rows (K, T) of an embedding table or head, from meanings (K, D); no code is frequent yet."""

    def __init__(self, meanings: Tensor, rows: Tensor):
        """Starts as the least squares of `rows` (K, T) on `meanings` (K, D)."""
        super().__init__()
        self.register_buffer("meanings", meanings)
        self.map = nn.Linear(meanings.shape[1], rows.shape[1])
        with torch.no_grad():
            rows, mean = rows.float(), rows.float().mean(0)
            eye = torch.eye(meanings.shape[1], device=meanings.device)
            gram = meanings.T @ meanings / len(meanings) + 1e-2 * eye
            fit = torch.linalg.solve(gram, meanings.T @ (rows - mean) / len(meanings))
            self.map.weight.copy_(fit.T)
            self.map.bias.copy_(mean)
        self.own = nn.Parameter(torch.zeros_like(rows))
        self.register_buffer("frequent", torch.zeros(len(meanings), 1))
        self.register_buffer("seen", torch.ones(len(meanings), dtype=torch.bool))

    def set_counts(self, counts: Tensor) -> None:
        """How often training draws each code, (K,): frequent codes have a part of their own beside
        what they share; codes that are never drawn are not `seen`."""
        self.frequent.copy_((counts > _FREQUENT * counts.float().mean())[:, None])
        self.seen.copy_(counts > 0)

    def forward(self) -> Tensor:
        return self.map(self.meanings) + self.frequent * self.own
