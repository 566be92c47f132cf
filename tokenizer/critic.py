"""The adversarial loss: a blur-pool PatchGAN and the hinge losses.

The paper states no architecture; this is the shape that the TiTok family trains with.
Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BlurPool(nn.Module):
    """Low-pass (1 2 1) filter, then every second pixel: no aliasing, so no shimmering gradient."""

    def __init__(self, channels: int):
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        kernel = line[:, None] * line[None, :] / 16
        self.register_buffer("kernel", kernel.expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=len(self.kernel))


class PatchCritic(nn.Module):
    """Realness of overlapping patches: (B, 3, H, W) -> (B, 1, H / 2^stages, W / 2^stages)."""

    def __init__(self, width: int = 64, stages: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(0.1)]
        for stage in range(stages):
            narrow, wide = width * 2**stage, width * 2 ** (stage + 1)
            layers += [
                nn.Conv2d(narrow, wide, 3, padding=1),
                BlurPool(wide),
                nn.GroupNorm(min(32, wide // 4), wide),
                nn.LeakyReLU(0.1),
            ]
        self.net = nn.Sequential(*layers, nn.Conv2d(width * 2**stages, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels * 2 - 1)


def hinge_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean(relu(1 - real)) + mean(relu(1 + fake)), halved."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean(logits): the generator is paid for every patch that looks real."""
    return -fake.mean()
