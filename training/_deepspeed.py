"""The Engine over DeepSpeed: any number of processes, ZeRO 0 to 3, CPU or GPU.

DeepSpeed is imported here only. Checkpoints do not use its own per-rank pickles: weights and
AdamW's moments are gathered by parameter name into the same safetensors files that TorchEngine
writes, so a run may change its engine or its ZeRO stage between two calls.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vqrae import deepspeed_configs

from . import _weights
from ._optimizer import complete_groups, make_optimizer, pack_state, unpack_state, warn_left_out
from ._process import await_gloo_at_exit, broadcast_tensors, env_world_size, pick_device
from ._weights import MODEL_FILE, OPTIMIZER_FILE
from .config import TrainConfig
from .objective import Objective

_MOMENTS = ("exp_avg", "exp_avg_sq")
_OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "torch_autocast",
)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which accelerator it has (it would guess a GPU's from what is installed)."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(
            f"engine is 'deepspeed' but it cannot be imported ({error}); pip install 'vqrae[train]'"
        ) from None
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Its collectives go by names that torch has renamed: one warning for every call otherwise.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


def join(config: TrainConfig) -> tuple[torch.device, int, int]:
    """Join the process group; device, rank and world size of this process."""
    device = pick_device(config.device)
    deepspeed = _import_deepspeed(device)
    if not torch.distributed.is_initialized():
        if env_world_size() == 1:  # without these DeepSpeed looks for MPI
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if device.type == "cpu":
            # Compiled at first use for about a minute, and then only used by tensor-parallel
            # inference. Training goes through gloo either way.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        await_gloo_at_exit()
    elif deepspeed.comm.cdb is None:
        deepspeed.init_distributed(verbose=False)
    return device, torch.distributed.get_rank(), torch.distributed.get_world_size()


def settings(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The JSON's ZeRO settings with the run's numbers merged in.

    Raises ValueError for a file that is not JSON and for keys that the run's config owns.
    """
    file = deepspeed_configs.path(config.deepspeed or "zero0")
    try:
        merged = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    owned = [key for key in _OWNED if key in merged]
    if owned:
        raise ValueError(f"{file} sets {', '.join(owned)}; the run's own options decide that")
    if merged.get("fp16", {}).get("enabled"):
        raise ValueError(f"{file} enables fp16; use bf16 (its loss scale needs no state)")
    stage = merged.get("zero_optimization", {}).get("stage", 0)
    if merged.get("bf16", {}).get("enabled") and stage < 2:
        raise ValueError(f"{file} enables bf16 weights with ZeRO {stage}; use stage 2 or 3")
    merged["train_micro_batch_size_per_gpu"] = config.micro_batch(world_size)
    merged["gradient_accumulation_steps"] = config.accumulation
    # Always written: left out, DeepSpeed clips at 1. In stage 0 we clip, to know the norm.
    merged["gradient_clipping"] = config.clip if stage else 0.0
    merged.setdefault("zero_allow_untested_optimizer", True)
    merged.setdefault("zero_force_ds_cpu_optimizer", False)
    merged.setdefault("steps_per_print", 10**9)
    if config.precision == "bf16" and not merged.get("bf16", {}).get("enabled"):
        merged["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return merged


class DeepSpeedEngine:
    """One of `world_size` processes; see the Engine protocol."""

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        self._deepspeed = _import_deepspeed(device)
        self.module = objective
        self.device = device
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.grad_norm: Tensor | float = 0.0
        self._clip = config.clip if config.clip > 0 else float("inf")
        self._shard_bytes = config.shard_bytes
        merged = settings(config, self.world_size)
        self.stage: int = merged.get("zero_optimization", {}).get("stage", 0)
        groups = complete_groups(objective.param_groups(), config)
        warn_left_out(objective, groups)
        # Names now: ZeRO puts flat buffers in the place of the groups' parameters.
        grouped = {id(p) for group in groups for p in group["params"]}
        self._trained = [(n, p) for n, p in objective.named_parameters() if id(p) in grouped]
        self._optimizer = make_optimizer(groups, config)
        self._engine, *_ = self._deepspeed.initialize(
            model=objective,
            optimizer=self._optimizer,
            config=merged,
            dist_init_required=False,
        )
        self.groups = self._optimizer.param_groups

    # ---- the step

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self._engine(batch, step)

    def backward(self, loss: Tensor) -> None:
        engine = self._engine
        engine.backward(loss)
        if not engine.is_gradient_accumulation_boundary():
            engine.step()  # only counts the micro-batch

    def step(self) -> None:
        if self.stage == 0:
            parameters = [p for _, p in self._trained]
            self.grad_norm = nn.utils.clip_grad_norm_(parameters, self._clip, foreach=True)
            self._engine.step()
            return
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        self.grad_norm = 0.0 if norm is None else norm

    def set_lr(self, rates: list[float]) -> None:
        for group, rate in zip(self.groups, rates, strict=True):
            group["lr"] = rate

    # ---- whole parameters

    def _gather(self, parameters: list[nn.Parameter], *, change: bool = False) -> Any:
        if self.stage < 3:
            return contextlib.nullcontext()
        rank = 0 if change else None
        return self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=rank)

    @contextlib.contextmanager
    def editing(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        trained = [p for p in parameters if p.requires_grad]
        with torch.no_grad():
            with self._gather(parameters, change=True):
                yield
                broadcast_tensors(parameters)
                values = [p.detach().float().clone() for p in trained]
            if self.stage:  # the optimizer's own copy would undo the change in its next step
                for parameter, value in zip(trained, values, strict=True):
                    self._set(parameter, value)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        with self._gather(list(self.module.parameters())):
            yield

    # ---- checkpoints

    def save(self, directory: Path) -> None:
        self._write(self._whole_weights(), directory / MODEL_FILE)
        self._write(self._whole_moments(), directory / OPTIMIZER_FILE)

    def _write(self, tensors: Iterator[_weights.Named], path: Path) -> None:
        """On rank 0; the others only take part in the gathering."""
        if self.rank == 0:
            _weights.write(tensors, path, self._shard_bytes)
        else:
            for _ in tensors:
                pass

    def _whole_weights(self) -> Iterator[_weights.Named]:
        """The state dict, one parameter after another whole and in its optimizer's precision."""
        state = self.module.state_dict()
        skip = self.module.not_saved
        if self.stage == 0:
            yield from _weights.named_once(state, skip)
            return
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            if name in state and not (skip and name.startswith(skip)):
                names.setdefault(parameter, []).append(name)
        gathered = {name for aliases in names.values() for name in aliases}
        kept = {name: value for name, value in state.items() if name not in gathered}
        yield from _weights.named_once(kept, skip)
        trained = {id(p) for _, p in self._trained}
        for parameter, aliases in names.items():
            if id(parameter) in trained:
                value = self._deepspeed.utils.safe_get_full_fp32_param(parameter)
                value = value.view(self._shape(parameter))
            else:
                with self._gather([parameter]):
                    value = parameter.detach().clone()
            yield aliases, value

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        return parameter.ds_shape if self.stage == 3 else parameter.shape

    def _whole_moments(self) -> Iterator[_weights.Named]:
        if self.stage == 0:
            yield from _weights.named_once(pack_state(self._optimizer, self._trained))
            return
        counters = [s["step"] for s in self._optimizer.state.values() if "step" in s]
        if not counters:  # not one step yet
            return
        self._link_moments()
        for name, parameter in self._trained:
            for key in _MOMENTS:
                value = self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
                yield [f"{name}/{key}"], value.view(self._shape(parameter))
            yield [f"{name}/step"], counters[0].detach().clone()

    def load(self, directory: Path) -> None:
        moments = _weights.read(directory / OPTIMIZER_FILE)
        if self.stage == 0:
            unpack_state(moments, self._optimizer, self._trained)
            return
        self._reload_masters(directory)
        if moments:
            self._make_flat_state(moments)
            for name, parameter in self._trained:
                for key in _MOMENTS:
                    value = moments.get(f"{name}/{key}")
                    if value is not None:  # torch's engine has none where no gradient came
                        value = value.to(self.device, torch.float32)
                        self._set(parameter, value, key)

    def _reload_masters(self, directory: Path) -> None:
        """With bf16 weights the fp32 masters were made from rounded ones."""
        if all(p.dtype == torch.float32 for _, p in self._trained):
            return
        weights = _weights.read(directory / MODEL_FILE)
        for name, parameter in self._trained:
            self._set(parameter, weights[name].to(self.device, torch.float32))

    def _make_flat_state(self, moments: dict[str, Tensor]) -> None:
        """AdamW's state for ZeRO's flat partitions, as after a first step."""
        zero = self._engine.optimizer
        flats = (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )
        steps = max(v.item() for k, v in moments.items() if k.endswith("/step"))
        fused = self._optimizer.defaults["fused"]
        for flat in flats:
            step = torch.tensor(steps, dtype=torch.float32)
            state = {"step": step.to(flat.device) if fused else step}
            state.update({key: torch.zeros_like(flat) for key in _MOMENTS})
            self._optimizer.state[flat] = state
        self._link_moments()

    def _link_moments(self) -> None:
        """Let ZeRO 1 and 2 know every group's moments.

        They link them after their first group's first step, when the others have none yet.
        """
        if self.stage < 3:
            zero = self._engine.optimizer
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Put this rank's part of a whole fp32 master (or moment, by key) into the optimizer."""
        utils = self._deepspeed.utils
        if self.stage < 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # Stage 3's own setter of whole values fails where the ranks' parts do not come out even.
        size = parameter.ds_tensor.ds_numel
        flat = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        part = flat[size * self.rank : size * (self.rank + 1)]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)
