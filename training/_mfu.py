"""How much of its device a run uses: model FLOPs utilisation (MFU).

MFU is the observed throughput over that of the same run at peak FLOPs (PaLM, arXiv 2204.02311,
appendix B). FLOPs are those of the model's products, forward and backward; what gradient
checkpointing computes anew is not counted, nor are the optimizer and element-wise work. The peak
is the device's own, measured: a figure from a data sheet is higher, and MFU against it lower.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from ._process import barrier, gather_objects
from .config import TrainConfig
from .logging import device_seconds
from .objective import Objective

logger = logging.getLogger(__name__)

# Micro-batches that are counted: they differ in their tokens.
_COUNTED = 4
_SIZES = (512, 1024, 2048, 4096, 8192)
aten = torch.ops.aten
# Products for which torch has no formula of their own: another name for one that has.
_SAME = {
    aten.addmm_: aten.addmm,
    aten.baddbmm_: aten.baddbmm,
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}


class Utilisation:
    """Counts the FLOPs of the first micro-batches as they are trained on, and tells MFU from them.

    All ranks make one at the same time; each measures its device's peak, for under a second.

    Args:
        objective: already in the precision in which it is trained.
    """

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        self._objective = objective
        self._compiled = bool(config.compile)
        trained = next(p for p in objective.parameters() if p.requires_grad)
        dtype = torch.bfloat16 if config.precision == "bf16" else trained.dtype
        barrier()  # ranks that share a device or a CPU share its peak, too
        peaks = gather_objects(measured_peak(device, dtype))
        self._peak = sum(peaks)
        # With a critic a step costs more once that is trained: (FLOPs, units, micro-batches).
        self._counts: dict[bool, tuple[int, int, int]] = {}
        self._phase = False
        name = str(dtype).removeprefix("torch.")
        logger.info(
            "matmul peak %.3g TFLOP/s in %s over %d device(s), measured; mfu is the share of it",
            self._peak / 1e12,
            name,
            len(peaks),
        )

    @contextmanager
    def counting(self, batch: dict, step: int) -> Iterator[None]:
        """Around a micro-batch's forward and backward pass, which run as they would without it.

        Only parts that TrainConfig.compile compiles run uncompiled where they are counted.
        """
        objective = self._objective
        self._phase = objective.critic is not None and objective.critic_active(step)
        flops, units, count = self._counts.get(self._phase, (0, 0, 0))
        if count == _COUNTED:
            yield
            return
        counter = FlopCount()
        eager = torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()
        with eager, counter:
            yield
        flops, units = flops + counter.total, units + objective.count(batch)
        self._counts[self._phase] = flops, units, count + 1

    def of(self, units_per_second: float) -> float:
        """MFU, 0 to 1, of all ranks together at this throughput; every rank calls it."""
        counts = gather_objects(self._counts[self._phase])
        per_unit = sum(flops for flops, _, _ in counts) / max(1, sum(n for _, n, _ in counts))
        return per_unit * units_per_second / self._peak


class FlopCount(TorchDispatchMode):
    """FLOPs of matmuls, convolutions and attention by torch's formulas, less what is run again.

    torch's own FlopCounterMode splits some operations up, which changes results in their last bit.
    Causal attention counts as full, as in PaLM. What torch has no formula for (the flash-attn
    package's kernels) counts nothing.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._tracker = ModuleTracker()  # not entered: it knows of backward passes without

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = getattr(func, "_overloadpacket", func)
        formula = flop_registry.get(_SAME.get(op, op))
        # In a backward pass gradients are off, but for a forward pass that is run again.
        if formula and not (self._tracker.is_bw and torch.is_grad_enabled()):
            flops = formula(*args, **kwargs, out_val=out)
            # Attention's backward forms its scores again, as one of five products.
            again = "attention" in str(op) and "backward" in str(op)
            self.total += flops * 4 // 5 if again else flops
        return out


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """FLOP/s of the fastest square matmul found; each of the sizes is tried for `seconds`."""
    generator = torch.Generator(device).manual_seed(0)  # the run's own is not drawn from
    best = 0.0
    for size in _SIZES:
        flops = 2 * size**3
        if best and flops > 4 * best * seconds:
            break
        left, right, out = (
            torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(3)
        )
        torch.mm(left, right, out=out)  # a first call chooses its kernel
        device_seconds(device)
        start = now = time.perf_counter()
        while now - start < seconds:
            torch.mm(left, right, out=out)
            device_seconds(device)
            before, now = now, time.perf_counter()
            best = max(best, flops / (now - before))
    return best
