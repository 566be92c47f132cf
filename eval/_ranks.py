"""What the ranks of one evaluation tell each other; with one process all of it is the identity."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from vqrae.training._process import env_world_size, gather_objects


def join_ranks() -> tuple[int, int]:
    """(rank, world size), joining the group of torchrun where it started this process."""
    if env_world_size() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")  # it carries a few sums only
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def summed(tensor: Tensor) -> Tensor:
    """The sum over ranks of CPU tensors of one shape, in the order of the ranks."""
    first, *others = gather_objects(tensor)
    for other in others:
        first = first + other
    return first
