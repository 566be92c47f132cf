"""What the ranks of one evaluation tell each other; with one process all of it is the identity."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from vqrae.training._process import await_gloo_at_exit, env_world_size, gather_objects


def join_ranks() -> tuple[int, int]:
    """(rank, world size), joining the group of torchrun where it started this process."""
    if env_world_size() > 1 and not dist.is_initialized():
        # It carries a few sums only; one rank may wait long for another's share of the work.
        dist.init_process_group("gloo", timeout=timedelta(days=2))
        await_gloo_at_exit()
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def summed(tensor: Tensor) -> Tensor:
    """The sum over ranks of CPU tensors of one shape, in the order of the ranks."""
    first, *others = gather_objects(tensor)
    for other in others:
        first = first + other
    return first
