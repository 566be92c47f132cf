"""What this processor is good at."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def has_bf16() -> bool:
    """Whether it multiplies bf16; without instructions for it that is a hundred times slower."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


@cache
def mkl_is_at_home() -> bool:
    """Whether torch's products of fp32 are MKL's and the processor is Intel's; on others it falls
    back to slower kernels."""
    try:
        processors = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return torch.backends.mkl.is_available() and "GenuineIntel" in processors
