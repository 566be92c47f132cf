"""An exponential moving average of the weights, which is what a run then exports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from . import _weights

AVERAGE_FILE = "average.safetensors"


class WeightAverage:
    """average += (1 - decay) * (weight - average) after every step, in fp32, for what is trained.

    In the first steps the decay is lower, (1 + t) / (10 + t), or the untrained start would stay in
    the average for long. Weights must be whole on every rank: ZeRO 0 to 2.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.average: list[Tensor] = [p.detach().float().clone() for _, p in self._named]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """`step` counts finished steps, this one not yet."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach().float() for _, p in self._named]
        torch._foreach_lerp_(self.average, weights, 1 - decay)

    def save(self, directory: Path, shard_bytes: int) -> None:
        names = (name for name, _ in self._named)
        average = dict(zip(names, self.average, strict=True))
        _weights.save(average, directory / AVERAGE_FILE, shard_bytes=shard_bytes)

    def load(self, directory: Path) -> None:
        """Raises ValueError where the checkpoint has no average of these weights."""
        state = _weights.read(directory / AVERAGE_FILE)
        for (name, _), average in zip(self._named, self.average, strict=True):
            if name not in state:
                raise ValueError(
                    f"{directory / AVERAGE_FILE} has no {name!r}; resume with the settings that "
                    "wrote it, or choose another --run"
                )
            average.copy_(state[name])

    @contextlib.contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within it the module has the averaged weights."""
        kept = [p.detach().clone() for _, p in self._named]
        for (_, parameter), average in zip(self._named, self.average, strict=True):
            parameter.copy_(average)
        yield
        for (_, parameter), weight in zip(self._named, kept, strict=True):
            parameter.copy_(weight)
