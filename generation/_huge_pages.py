"""Memory in huge pages, where the system has them: large matrices are read sooner from it."""

from __future__ import annotations

import contextlib
import mmap
from math import prod

import torch
from torch import Tensor

_PAGE = 2 << 20  # bytes, of x86-64 and of ARM with pages of 4 KiB


def in_huge_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU. What is smaller than a huge page, or on a system that has none, lies as
    torch lays it."""
    size = prod(shape) * dtype.itemsize
    if size < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    # A page more than is needed: the system gives a start that is a small page's.
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % _PAGE :][:size].view(dtype).view(shape)
