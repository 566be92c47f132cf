"""The adversarial loss: a blur-pool PatchGAN and the hinge losses.

The paper states no architecture; this is the shape that the TiTok family trains with.
Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


class BlurPool(nn.Module):
    """Low-pass (1 2 1) filter, then every second pixel: no aliasing, so no shimmering gradient.

    (1 2 1) is the box (1 1) applied twice; pooling does that much faster than a grouped
    convolution on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2, stride=1)
        return F.avg_pool2d(x, 2, stride=2)


class PatchCritic(nn.Module):
    """Realness of overlapping patches: (B, 3, H, W) -> (B, 1, H / 2^stages, W / 2^stages)."""

    def __init__(self, width: int = 64, stages: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(0.1)]
        for stage in range(stages):
            narrow, wide = width * 2**stage, width * 2 ** (stage + 1)
            layers += [
                # Downsampled before it is widened: the convolution is four times cheaper.
                BlurPool(),
                nn.Conv2d(narrow, wide, 3, padding=1),
                nn.GroupNorm(min(32, wide // 4), wide),
                nn.LeakyReLU(0.1),
            ]
        self.net = nn.Sequential(*layers, nn.Conv2d(width * 2**stages, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels * 2 - 1)


def hinge_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean(relu(1 - real)) + mean(relu(1 + fake)), halved."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


class LeCam:
    """The LeCam regulariser (Tseng et al. 2021), as the TiTok family trains with it: the critic is
    kept from telling this batch apart from what it thought of earlier ones.

    Each logit is compared by itself, so that several ranks give what one rank gives on the same
    global batch; `update` takes the means of the global batch.
    """

    def __init__(self, decay: float = 0.999):
        self.decay, self.real, self.fake = decay, 0.0, 0.0

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean(relu(real - past fake)^2) + mean(relu(past real - fake)^2)."""
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        means = torch.stack([real.detach().float().mean(), fake.detach().float().mean()])
        if dist.is_initialized():
            dist.all_reduce(means)
            means = means / dist.get_world_size()
        if isinstance(means, FakeTensor):  # a step is only planned: there are no numbers
            return
        real_mean, fake_mean = means.tolist()
        self.real = self.decay * self.real + (1 - self.decay) * real_mean
        self.fake = self.decay * self.fake + (1 - self.decay) * fake_mean


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean(logits): the generator is paid for every patch that looks real."""
    return -fake.mean()
