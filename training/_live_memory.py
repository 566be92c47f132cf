"""Bytes alive at once while tensors are computed, by what they are for.

Under torch's FakeTensorMode shapes are followed but nothing is computed or held, so a step of a
model of any size can be watched in seconds on any machine.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OTHER = "other"


class LiveMemory(TorchDispatchMode):
    """Within it, every tensor that is made counts until its storage is gone.

    Args:
        weighings: {name: {kind: factor}}; `peaks` has, for each name, the most bytes ever alive at
            once, each kind multiplied by its factor (1 if left out).
    """

    def __init__(self, weighings: dict[str, dict[str, float]]) -> None:
        super().__init__()
        self.weighings = weighings
        self.peaks = dict.fromkeys(weighings, 0.0)
        self.live: Counter[str] = Counter()
        self._kinds: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        self.hold(x for x in tree_leaves(result) if isinstance(x, Tensor))
        return result

    def hold(self, tensors: Iterable[Tensor], kind: str = OTHER) -> None:
        """Count the tensors' storages under `kind`, those that are known already from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._kinds:
                if kind == OTHER:
                    continue
                self._drop(key)
            else:
                weakref.finalize(storage, self._drop, key)
            size = storage.nbytes()
            self._kinds[key] = (kind, size)
            self.live[kind] += size
        for name, factors in self.weighings.items():
            whole = sum(size * factors.get(kind, 1.0) for kind, size in self.live.items())
            self.peaks[name] = max(self.peaks[name], whole)

    def _drop(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self.live[kind] -= size
