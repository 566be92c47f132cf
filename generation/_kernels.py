"""Our own products and attention for CPUs, compiled for this one the first time they are wanted.

Shapes: M rows, I inputs, O outputs, W outputs of a panel; B rows, H heads, R positions, D width of
a head.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad
from vqrae.generation._huge_pages import in_huge_pages

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("_kernels.cpp")
_TORCH = Path(torch.__file__).parent
_LINKED = (f"-L{_TORCH / 'lib'}", "-ltorch_cpu")


@cache
def have_kernels() -> bool:
    """Whether they are there; the first call builds them, in some seconds, where no earlier run
    did. They need a C++ compiler: $CXX, or the first there is of c++, g++ and clang++."""
    try:
        torch.ops.load_library(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error.__cause__ or error)
        why = next(iter(said.strip().splitlines()), "")
        logger.info("torch's kernels are used, for ours cannot be built: %s", why)
        return False
    torch.library.register_fake("vqrae::linear", _fake_linear)
    torch.library.register_fake("vqrae::attend", _fake_attend)
    return True


def panels_of(weight: Tensor) -> Tensor:
    """(O, I) as (O / W, rounded up, I, W): what a step of the sums reads lies together."""
    width = torch.ops.vqrae.panel_width()
    panels = pad(weight, (0, 0, 0, -len(weight) % width)).unflatten(0, (-1, width)).mT
    return in_huge_pages(panels.shape, panels.dtype).copy_(panels)


def linear(inputs: Tensor, panels: Tensor, scale: Tensor | None, outputs: int) -> Tensor:
    """fp32 inputs (..., I), panels of fp32, bf16 or int8, a scale (O,) of each output -> (..., O).

    A row's result does not depend on the other rows, to the last bit.
    """
    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
    product = torch.ops.vqrae.linear(rows, panels, scale, outputs)
    return product.view(*inputs.shape[:-1], outputs)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """fp32 query (B, H, D), key and value (B, heads that share none, R, D), mask (B, R), true where
    it is looked at -> (B, H, D). Only what is looked at is read."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    return torch.ops.vqrae.attend(query, key, value, mask, scaling)


def _fake_linear(x: Tensor, panels: Tensor, scale: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty(x.shape[0], outputs)


def _fake_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return query.new_empty(query.shape)


def compiler_commands() -> list[list[str]]:
    """C++ compilers in the order in which they are looked for: $CXX alone, where it is set."""
    given = shlex.split(os.environ.get("CXX", ""))
    return [given] if given else [["c++"], ["g++"], ["clang++"]]


def _built() -> Path:
    """The library, built unless it is there: one for each source, torch, compiler and processor."""
    compilers = compiler_commands()
    compiler = next((each for each in compilers if shutil.which(each[0])), compilers[0])
    command = [*compiler, *_flags(), str(_SOURCE), *_LINKED]
    what = (_SOURCE.read_text(), torch.__version__, *command)
    name = hashlib.blake2b("\0".join(what).encode(), digest_size=8).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqrae"
    library = folder / f"kernels-{name}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Built aside: another process may do the same, and none must load half a file.
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            built = Path(aside) / library.name
            command += ["-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            os.replace(built, library)
    return library


def _flags() -> list[str]:
    flags = ["-std=c++20", "-O3", "-fPIC", "-shared", f"-I{_TORCH / 'include'}"]
    # By name, not "native": a home may be shared by machines of several kinds.
    can = torch.cpu.get_capabilities()
    if can.get("avx2") and can.get("fma3"):
        flags += ["-mavx2", "-mfma"]
        if all(can.get(f"avx512_{part}") for part in ("f", "bw", "dq", "vl")):
            flags += [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
    return flags
