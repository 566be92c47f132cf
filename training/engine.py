"""Who computes gradients and steps: the Engine protocol and its plain-torch form.

The DeepSpeed form is in `_deepspeed.py` and is imported only when asked for. Both write the same
files, so a run may go on under another engine or ZeRO stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from . import _weights
from ._optimizer import complete_groups, make_optimizer, pack_state, unpack_state, warn_left_out
from ._process import env_world_size, pick_device
from ._weights import MODEL_FILE, OPTIMIZER_FILE
from .config import TrainConfig
from .objective import Objective


class Engine(Protocol):
    """One process's hold on the objective, its optimizer and its peers."""

    module: Objective
    device: torch.device
    rank: int
    world_size: int
    groups: list[dict]
    """The optimizer's groups: read "peak_lr", "min_lr", "name"; set rates through `set_lr`."""
    grad_norm: Tensor | float
    """Norm of the whole gradient in the last step, before clipping."""

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """module(batch, step)."""

    def backward(self, loss: Tensor) -> None:
        """Add loss / accumulation to the gradient."""

    def step(self) -> None:
        """Clip, update, forget the gradient. Called after `accumulation` backward passes."""

    def set_lr(self, rates: list[float]) -> None:
        """One rate for each group."""

    def save(self, directory: Path) -> None:
        """Write model.safetensors and optimizer.safetensors, or shards of them; every rank calls
        it."""

    def load(self, directory: Path) -> None:
        """Read the optimizer's state of a checkpoint whose weights are already in the module."""

    def editing(self, parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager:
        """Within it the parameters are whole and may be changed in place (rank 0 decides)."""

    def gathered(self) -> contextlib.AbstractContextManager:
        """Within it every parameter is whole, to be read (not to be run)."""


class TorchEngine:
    """One process, one device, torch's AdamW."""

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        self.module = objective
        self.device = device
        self.rank = 0
        self.world_size = 1
        groups = complete_groups(objective.param_groups(), config, objective.muon_parameters())
        warn_left_out(objective, groups)
        self.optimizer = make_optimizer(groups, config)
        self.groups = self.optimizer.param_groups
        self.grad_norm: Tensor | float = 0.0
        self._parameters = [p for group in self.groups for p in group["params"]]
        self._accumulation = config.accumulation
        self._clip = config.clip if config.clip > 0 else float("inf")
        self._bf16 = config.precision == "bf16"
        self._shard_bytes = config.shard_bytes

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(self.device, self._bf16):
            return self.module(batch, step)

    def backward(self, loss: Tensor) -> None:
        (loss / self._accumulation if self._accumulation > 1 else loss).backward()

    def step(self) -> None:
        self.grad_norm = nn.utils.clip_grad_norm_(self._parameters, self._clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def set_lr(self, rates: list[float]) -> None:
        for group, rate in zip(self.groups, rates, strict=True):
            group["lr"] = rate

    def save(self, directory: Path) -> None:
        size, skip = self._shard_bytes, self.module.not_saved
        weights = self.module.state_dict()
        _weights.save(weights, directory / MODEL_FILE, skip, shard_bytes=size)
        state = pack_state(self.optimizer, self.module.named_parameters())
        _weights.save(state, directory / OPTIMIZER_FILE, shard_bytes=size)

    def load(self, directory: Path) -> None:
        state = _weights.read(directory / OPTIMIZER_FILE)
        unpack_state(state, self.optimizer, self.module.named_parameters())

    def editing(self, parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager:
        return torch.no_grad()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        yield


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager:
    """bf16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def start_processes(config: TrainConfig) -> tuple[torch.device, int, int]:
    """Device, rank and world size of this process; joins the process group for DeepSpeed.

    Raises ValueError when several processes were started for the plain torch engine.
    """
    if config.engine == "torch":
        if env_world_size() > 1:
            raise ValueError(
                f"engine is 'torch' but WORLD_SIZE is {env_world_size()}; "
                "use --engine deepspeed for several processes"
            )
        return pick_device(config.device), 0, 1
    from ._deepspeed import join

    return join(config)


def make_engine(objective: Objective, config: TrainConfig, device: torch.device) -> Engine:
    """The engine that the config names, around an objective that is already on `device`."""
    if config.engine == "torch":
        return TorchEngine(objective, config, device)
    from ._deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(objective, config, device)
