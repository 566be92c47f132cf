"""What may end a run early: a signal, or numbers that are no longer finite."""

from __future__ import annotations

import math
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ._process import barrier
from .objective import TrainingStopped

_ADVICE = "lower the learning rate, lengthen the warm-up, or look at these samples"


class Interruption:
    """Within it SIGTERM and SIGINT only set `asked`; a second SIGINT (Ctrl-C) acts at once.

    A second SIGTERM changes nothing: launchers send several, and the first one's checkpoint may
    be half written by then.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()


class StepWatch:
    """Finds non-finite losses and gradients, and agrees on stopping among all ranks.

    On the CPU it looks at once, before the weights are touched. On a GPU looking at once would
    make the CPU wait for every step, so a step's numbers are copied aside and looked at one step
    later; `settle` looks at what is outstanding, and is called before a checkpoint is written.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        self._device = device
        self._world_size = world_size
        self._lagged = device.type == "cuda"
        self._bad = False  # this rank, this step
        self._bad_keys: list[str] = []
        self._flags: Tensor | None = None  # lagged: [loss or gradient not finite, asked to stop]
        self._outstanding: tuple[Tensor, torch.cuda.Event | None, list[str], int] | None = None
        self._keys: list[str] = []

    def look(self, loss: Tensor, keys: Any, step: int, *, last: bool, stop: bool) -> bool:
        """Take in a micro-batch's loss; after the step's last one, whether to stop.

        Raises TrainingStopped on every rank when a loss on any of them is not finite.
        """
        if self._lagged:
            return self._look_later(loss, keys, step, last, stop)
        if not math.isfinite(loss.item()):
            self._bad = True
            self._bad_keys += list(keys)
        if not last:
            return False
        bad, stop = self._agree(self._bad, stop)
        if bad:
            self._stop("the loss", step, self._bad_keys)
        self._keys = list(keys)
        return stop

    def look_at_gradient(self, norm: Tensor | float, step: int) -> None:
        """Raises TrainingStopped when the whole gradient's norm (same on all ranks) is not finite.

        By then the weights are lost, but no checkpoint holds them.
        """
        if self._lagged:
            if isinstance(norm, Tensor) and self._flags is not None:
                self._flags[0] += (~torch.isfinite(norm)).to(self._flags)
        elif not math.isfinite(float(norm)):
            self._stop("the gradient", step, self._keys)

    def interrupted_anywhere(self, asked: bool) -> bool:
        """Whether any rank was asked to stop (every rank gets the same answer)."""
        return self._agree(False, asked)[1]

    def settle(self, step: int) -> None:
        """Look at what is outstanding, this step's included."""
        if self._lagged:
            self._read()
            self._send([], step - 1)
            self._read()

    def wait_for_all(self) -> None:
        barrier()

    def _agree(self, bad: bool, stop: bool) -> tuple[bool, bool]:
        if self._world_size == 1:
            return bad, stop
        flags = torch.tensor([float(bad), float(stop)], device=self._device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        first, second = flags.tolist()
        return first > 0, second > 0

    def _look_later(self, loss: Tensor, keys: Any, step: int, last: bool, stop: bool) -> bool:
        if self._flags is None:
            self._flags = torch.zeros(2, device=self._device)
        self._flags[0] += (~torch.isfinite(loss.detach())).to(self._flags)
        self._keys += list(keys)
        if not last:
            return False
        stop_now = self._read()
        if stop:
            self._flags[1] += 1
        self._send(self._keys, step)
        self._keys = []
        return stop_now

    def _send(self, keys: list[str], step: int) -> None:
        """Start copying the flags of all ranks to the CPU."""
        if self._flags is None:
            return
        if self._world_size > 1:
            dist.all_reduce(self._flags, dist.ReduceOp.MAX)
        host, event = self._flags, None
        if self._device.type == "cuda":
            host = torch.empty(2, pin_memory=True)
            host.copy_(self._flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._outstanding = (host, event, keys, step)
        self._flags = torch.zeros(2, device=self._device)

    def _read(self) -> bool:
        """Look at the flags sent last; whether to stop."""
        if self._outstanding is None:
            return False
        host, event, keys, step = self._outstanding
        self._outstanding = None
        if event is not None:
            event.synchronize()
        if host[0] > 0:
            self._stop("the loss or the gradient", step, keys)
        return bool(host[1] > 0)

    def _stop(self, what: str, step: int, keys: list[str]) -> NoReturn:
        names = ", ".join(str(k) for k in keys[:16]) if keys else "of another process"
        more = f" and {len(keys) - 16} more" if len(keys) > 16 else ""
        raise TrainingStopped(
            f"{what} is not finite in step {step + 1}; batch keys: {names}{more}; {_ADVICE}"
        )
