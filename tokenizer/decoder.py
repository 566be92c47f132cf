"""The symmetric ViT decoder: as deep, wide and many-headed as its encoder, no convolution.

Shapes: B batch, N image tokens, D encoder width, P patch size in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder
from vqrae.tokenizer.encoders import EncoderGeometry


class PixelDecoder(nn.Module):
    """Tokens on the grid (patch size 1) through a ViT, then one linear layer to P x P pixels.

    The paper does not state the position embedding: ours is learnable, one vector a grid cell.
    """

    def __init__(self, geometry: EncoderGeometry, attn_implementation: str | None = None):
        super().__init__()
        self.grid, self.patch_size = geometry.grid, geometry.patch_size
        blocks = SiglipVisionConfig(
            hidden_size=geometry.width,
            intermediate_size=geometry.mlp_width,
            num_hidden_layers=geometry.depth,
            num_attention_heads=geometry.heads,
            layer_norm_eps=geometry.norm_eps,
        )
        blocks._attn_implementation = attn_implementation or "sdpa"
        self.position = nn.Parameter(torch.randn(geometry.grid**2, geometry.width) * 0.02)
        self.blocks = SiglipEncoder(blocks)
        self.norm = nn.LayerNorm(geometry.width, eps=geometry.norm_eps)
        self.to_pixels = nn.Linear(geometry.width, 3 * geometry.patch_size**2)

    def hidden(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), what the last layer reads. `grid`: rows and columns of tokens."""
        inputs = tokens + self._positions(grid or (self.grid, self.grid))
        return self.norm(self.blocks(inputs_embeds=inputs).last_hidden_state)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == (self.grid, self.grid):
            return self.position
        table = self.position.T.view(1, -1, self.grid, self.grid)
        table = F.interpolate(table.float(), grid, mode="bicubic", align_corners=False)
        return table.flatten(2)[0].T.to(self.position.dtype)

    def patches(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, P * P * 3), what the last layer should give."""
        batch, size = len(pixels), self.patch_size
        rows, columns = pixels.shape[2] // size, pixels.shape[3] // size
        pixels = pixels.view(batch, 3, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
        return pixels.reshape(batch, rows * columns, -1)

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, D) -> (B, 3, H, W), not clamped.

        Args:
            grid: rows and columns of tokens; left out, the square that the decoder was made for.
                Positions are interpolated for others.
        """
        patches = self.to_pixels(self.hidden(tokens, grid))
        batch, size = len(tokens), self.patch_size
        rows, columns = grid or (self.grid, self.grid)
        patches = patches.view(batch, rows, columns, size, size, 3)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, rows * size, columns * size)
