"""The second phase of a GAN's step: the critic, its own AdamW, outside DeepSpeed and ZeRO."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from . import _weights
from ._optimizer import complete_groups, make_optimizer, pack_state, unpack_state
from ._process import average_gradients, broadcast_tensors
from .config import TrainConfig
from .engine import autocast
from .objective import Objective
from .schedule import learning_rate

CRITIC_FILE = "critic.safetensors"
CRITIC_OPTIMIZER_FILE = "critic_optimizer.safetensors"


class CriticTrainer:
    """Trains `objective.critic`. Each rank steps the same critic by gradients averaged over all.

    In the model's phase the critic's parameters do not require gradients, so the model's backward
    pass goes through it without adding to (or paying for) the critic's own gradient.
    """

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        assert objective.critic is not None
        self.critic: nn.Module = objective.critic
        if any(p.device != device for p in self.critic.parameters()):
            self.critic.to(device)
        inside = {id(p) for p in objective.parameters()}
        assert not any(id(p) in inside for p in self.critic.parameters()), (
            "the critic is a registered submodule of the objective"
        )
        self._objective = objective
        self._config = config
        self._device = device
        self._optimizer = make_optimizer(
            complete_groups(objective.critic_param_groups(), config), config
        )
        self._parameters = [p for g in self._optimizer.param_groups for p in g["params"]]
        self._pending = False
        broadcast_tensors([*self.critic.parameters(), *self.critic.buffers()])
        self._require_gradients(False)

    def accumulate(self, batch: dict, step: int) -> dict[str, Tensor]:
        """Add one micro-batch to the critic's gradient, if it is active; returns its logs."""
        if not self._objective.critic_active(step):
            return {}
        self._require_gradients(True)
        with autocast(self._device, self._config.precision == "bf16"):
            loss, logs = self._objective.critic_loss(batch, step)
        (loss / self._config.accumulation).backward()
        self._require_gradients(False)
        self._pending = True
        return {"loss_critic": loss.detach(), **logs}

    def step(self, step: int) -> None:
        """Update the critic by what has been accumulated."""
        if not self._pending:
            return
        self._pending = False
        average_gradients(self._parameters)
        if self._config.clip > 0:
            nn.utils.clip_grad_norm_(self._parameters, self._config.clip, foreach=True)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, self._config, group["peak_lr"], group["min_lr"])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _require_gradients(self, on: bool) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(on)

    def save(self, directory: Path) -> None:
        size = self._config.shard_bytes
        _weights.save(self.critic.state_dict(), directory / CRITIC_FILE, shard_bytes=size)
        state = pack_state(self._optimizer, self.critic.named_parameters())
        _weights.save(state, directory / CRITIC_OPTIMIZER_FILE, shard_bytes=size)

    def load(self, directory: Path) -> None:
        _weights.load_into(self.critic, directory / CRITIC_FILE)
        state = _weights.read(directory / CRITIC_OPTIMIZER_FILE)
        unpack_state(state, self._optimizer, self.critic.named_parameters())
