"""Ranks and what they say to each other; with one process everything here is the identity."""

from __future__ import annotations

import atexit
import os
import random
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def env_world_size() -> int:
    """Number of processes that torchrun (or the deepspeed launcher) has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def await_gloo_at_exit() -> None:
    """Let gloo's threads let go of the last collective's tensors before Python ends.

    For that they need its lock; a thread that waits for the lock when Python ends is killed, and
    takes the process with it (SIGABRT, one run in some fifty; torchrun then reports a failed run).
    Destroying the group does not help, for DeepSpeed and torch hold on to it.
    """
    atexit.register(time.sleep, 0.2)


def pick_device(name: str) -> torch.device:
    """The device of this process. ValueError for one that is not there."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device is {name!r} but torch sees no GPU; use --device cpu")
        device = torch.device("cuda", local if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Every generator's state, in types that torch.load(weights_only=True) reads."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def load_rng_state(state: dict[str, Any]) -> None:
    """The counterpart of `rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in rank order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_tensors(tensors: list[Tensor]) -> None:
    """Rank 0's values for all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Mean of the gradients over all ranks, as one message."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    # A parameter may have got no gradient on this rank alone, so every rank sends all of them.
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for parameter, grad in zip(parameters, grads, strict=True):
        grad.copy_(flat[start : start + grad.numel()].view_as(grad))
        parameter.grad = grad
        start += grad.numel()
