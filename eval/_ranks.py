"""What the ranks of one evaluation tell each other; with one process all of it is the identity."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def join_ranks() -> tuple[int, int]:
    """(rank, world size), joining the group of torchrun where it started this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")  # it carries a few sums only
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gathered(value: Any) -> list[Any]:
    """`value` of every rank, in rank order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def summed(tensor: Tensor) -> Tensor:
    """The sum over ranks of CPU tensors of one shape."""
    return torch.stack(gathered(tensor)).sum(0)
