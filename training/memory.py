"""What one training step would hold in memory, without a device, weights or data.

The step itself is run (two of them, for AdamW's moments) on tensors that have shapes but no
contents; what is alive at each moment is counted by kind, and each ZeRO stage divides what it
divides. Not counted: what the device's driver and its kernels' workspaces take, and memory that the
allocator leaves unused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights
from vqrae import deepspeed_configs

from ._average import WeightAverage
from ._critic import CriticTrainer
from ._live_memory import LiveMemory
from .config import TrainConfig
from .engine import TorchEngine
from .objective import Objective

STAGES = (0, 1, 2, 3)
_TRAINED, _FROZEN, _GRADIENTS, _MOMENTS = "trained", "frozen", "gradients", "moments"
# DeepSpeed's defaults, in numbers of fp32.
_BUCKET, _MAX_LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class StepMemory:
    """Peaks in bytes of one process, and what never changes in them."""

    micro_batch: int
    peaks: dict[int, float]
    """By ZeRO stage."""
    trained: int
    """Bytes of the trained weights, whole."""
    frozen: int
    """Bytes of the objective's frozen weights and buffers, whole."""


def step_memory(
    build: Callable[[], Objective],
    make_batch: Callable[[int], dict[str, Tensor]],
    config: TrainConfig,
    micro_batch: int,
    *,
    step: int = 0,
    gpus: int = 1,
) -> StepMemory:
    """Peak of a step with `micro_batch` samples, for each ZeRO stage over `gpus` processes.

    Args:
        build: makes the objective; called where tensors have no contents.
        make_batch: a batch of so many samples, called likewise.
        step: the step that is looked at, where the objective's losses depend on it.
    """
    weighings = {str(stage): _factors(stage, gpus) for stage in STAGES}
    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        no_init_weights(),
    ):
        # torch's own deepcopy does so.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        objective = build().train()
        live = LiveMemory(weighings)
        with live:
            trained = [p for p in objective.parameters() if p.requires_grad]
            frozen = [p for p in objective.parameters() if not p.requires_grad]
            live.hold(trained, _TRAINED)
            live.hold([*frozen, *objective.buffers()], _FROZEN)
            sizes = live.live[_TRAINED], live.live[_FROZEN]
            live.hold(p for part in objective.large_parts() for p in part.parameters())
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(
                    lambda p: live.hold([p.grad], _GRADIENTS)
                )
            whole = replace(config, engine="torch", deepspeed=None)
            engine = TorchEngine(objective, whole, torch.device("cpu"))
            critic = CriticTrainer(objective, whole, engine.device) if objective.critic else None
            average = WeightAverage(objective, config.ema) if config.ema else None
            for _ in range(2):
                batch = make_batch(micro_batch)
                loss, logs = engine.forward(batch, step)
                engine.backward(loss)
                if critic is not None:
                    critic.accumulate(batch, step)
                engine.step()
                for state in engine.optimizer.state.values():
                    live.hold((x for x in state.values() if isinstance(x, Tensor)), _MOMENTS)
                if critic is not None:
                    critic.step(step)
                if average is not None:
                    average.update(step)
                del loss, logs, batch
    peaks = {stage: live.peaks[str(stage)] + _extra(stage, gpus, *sizes) for stage in STAGES}
    return StepMemory(micro_batch, peaks, *sizes)


def _factors(stage: int, gpus: int) -> dict[str, float]:
    """What each process keeps of a kind."""
    shared = {1: (_MOMENTS,), 2: (_MOMENTS, _GRADIENTS)}
    shared[3] = (*shared[2], _TRAINED, _FROZEN)
    return dict.fromkeys(shared.get(stage, ()), 1 / gpus)


def _extra(stage: int, gpus: int, trained: int, frozen: int) -> float:
    """DeepSpeed's own: fp32 masters, the bucket that gradients are reduced in, gathered weights."""
    if stage == 0:
        return 0.0
    zero = json.loads(deepspeed_configs.path(f"zero{stage}").read_text())["zero_optimization"]
    bucket = 4.0 * zero.get("reduce_bucket_size", _BUCKET)
    if stage < 3:
        return trained / gpus + bucket
    gathered = min(trained + frozen, 4 * zero.get("stage3_max_live_parameters", _MAX_LIVE))
    return trained / gpus + bucket + gathered
