"""A toy that uses everything a real objective may use: GAN critic, torch's RNG, a tied and a
frozen parameter, a parameter read outside its module's forward, buffers, extra state, revival."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import IterableDataset
from vqrae.data._stream import StreamDataset
from vqrae.training import Objective

WIDTH = 8


def sample(index: int) -> dict:
    generator = torch.Generator().manual_seed(index)
    return {"key": f"sample-{index}", "x": torch.randn(WIDTH, generator=generator)}


class ToyDataset(IterableDataset):
    """Sample i is made from i alone; rank r takes every world_size-th of them."""

    def __init__(self, length: int | None = None) -> None:
        self.rank, self.world_size = 0, 1
        self.position = 0
        self.length = length

    def __iter__(self):
        while self.length is None or self.position < self.length:
            index = self.position * self.world_size + self.rank
            self.position += 1
            yield sample(index)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class ToyStream(StreamDataset):
    """Twenty samples in an epoch, in an order of its own."""

    def __init__(self, **options) -> None:
        super().__init__("toy", **options)

    def _epoch(self, epoch):
        return iter(self._permuted(range(20), epoch))

    def _name(self, record):
        return f"sample-{record}"

    def _decode(self, record):
        return sample(record)


class Part(nn.Module):
    """Owns a bare parameter, which the parent reads without calling forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.linear = nn.Linear(WIDTH, WIDTH)

    def project(self, x):
        return self.linear(x) * self.scale


class ToyObjective(Objective):
    def __init__(
        self,
        *,
        noise: float = 0.0,
        gan: bool = True,
        nan_at: int | None = None,
        edit: bool = False,
        slow: float = 0.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.part = Part()
        self.hidden = nn.Linear(WIDTH, 4 * WIDTH)
        self.out = nn.Linear(4 * WIDTH, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.tied = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied.weight = self.part.linear.weight
        self.codes = nn.Parameter(torch.randn(4, WIDTH))
        self.register_buffer("seen", torch.zeros(()))
        self.noise, self.nan_at, self.edit, self.slow = noise, nan_at, edit, slow
        critic = nn.Sequential(nn.Linear(WIDTH, 16), nn.SiLU(), nn.Linear(16, 1))
        self._outside = (critic if gan else None,)
        self.ran = 0
        self.prepared: list[str] = []

    @property
    def critic(self):
        return self._outside[0]

    def collate(self, samples):
        return {"keys": [s["key"] for s in samples], "x": torch.stack([s["x"] for s in samples])}

    def param_groups(self):
        matrices = [p for p in self.parameters() if p.ndim > 1]  # the frozen one is dropped
        vectors = [p for p in self.parameters() if p.ndim == 1]
        return [
            {"name": "matrices", "params": matrices, "lr": 1e-2, "min_lr": 1e-3},
            {"name": "vectors", "params": vectors, "lr": 5e-3, "weight_decay": 0.01},
        ]

    def forward(self, batch, step):
        if self.slow:
            import time

            time.sleep(self.slow)
        x = batch["x"]
        if step == self.nan_at:
            x = x * float("nan")
        noisy = x + self.noise * torch.randn_like(x)
        h = self.part.project(noisy) + self.tied(noisy)
        y = self.out(nn.functional.silu(self.hidden(h))) + self.codes.mean(0)
        distance = (y - self.frozen(x)).square().mean()
        loss = distance
        if self.critic is not None:
            loss = loss - 0.1 * self.critic(y).mean()
            self._pair = (self.frozen(x).detach(), y.detach())
        self.seen += 1
        return loss, {"distance": distance.detach()}

    def critic_active(self, step):
        return step >= 2

    def critic_loss(self, batch, step):
        real, fake = (self.critic(z) for z in self._pair)
        loss = (1 - real).relu().mean() + (1 + fake).relu().mean()
        return loss, {"real": real.detach().mean()}

    def after_step(self, step):
        self.ran += 1
        if self.edit:
            self.codes[step % 4] = step * 0.01
        return {"ran": float(self.ran)}

    def edited_parameters(self):
        return [self.codes] if self.edit else []

    def extra_state(self):
        return {"ran": self.ran}

    def load_extra_state(self, state):
        self.ran = state["ran"]

    def export(self, directory: Path):
        save_file({k: v.clone() for k, v in self.out.state_dict().items()}, directory / "out.st")
