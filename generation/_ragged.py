"""One cache for requests that come and go: each row has a length of its own.

Shapes: R rows, H key-value heads, L new positions, P room of a row, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin


class _Plan:
    """Where the next forward writes and how far it sees; one for all layers."""

    def __init__(self) -> None:
        self.rows = slice(0, 0)
        self.places = torch.zeros(0, 0, dtype=torch.long)  # (rows, L)
        self.seen = 0  # positions that are looked at


class _RaggedLayer(CacheLayerMixin):
    """Keys and values (R, H, P, D), made once."""

    is_sliding = False

    def __init__(self, plan: _Plan, rows: int, room: int):
        super().__init__()
        self._plan, self._rows, self._room = plan, rows, room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros(self._rows, states.shape[1], self._room, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self._plan
        found = []
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            rows = buffer[plan.rows]
            places = plan.places[:, None, :, None].expand_as(states)
            rows.scatter_(2, places, states)
            found.append(rows[:, :, : plan.seen])
        return found[0], found[1]

    def swap(self, a: int, b: int, length: int) -> None:
        if self.is_initialized:
            for buffer in (self.keys, self.values):
                buffer[[a, b], :, :length] = buffer[[b, a], :, :length]

    def get_seq_length(self) -> int:
        return self._plan.seen - self._plan.places.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._plan.seen, 0

    def get_max_length(self) -> int:
        return self._room


class RaggedCache(Cache):
    """Rows 0 to R - 1, each for up to P tokens. Sliding windows forget nothing here: masks tell
    what they see."""

    def __init__(self, config: PreTrainedConfig, rows: int, room: int):
        self.plan = _Plan()
        self.rows, self.room = rows, room
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        self._window = config.sliding_window if "sliding_attention" in kinds else None
        super().__init__(
            layers=[_RaggedLayer(self.plan, rows, room) for _ in range(config.num_hidden_layers)]
        )

    def aim(
        self, rows: slice, lengths: Tensor, new: int
    ) -> tuple[Tensor, Tensor | dict[str, Tensor]]:
        """Say where the next forward of `new` tokens in `rows` writes: behind `lengths` (rows,).

        Returns positions (rows, new) and the mask of what each of them may look at, (rows, 1, new,
        seen) of bool, or one for each kind of layer.
        """
        plan = self.plan
        plan.rows = rows
        plan.places = lengths[:, None] + torch.arange(new, device=lengths.device)
        plan.seen = int(lengths.max()) + new
        behind = plan.places[:, None, :, None] - torch.arange(plan.seen, device=lengths.device)
        full = behind >= 0
        if self._window is None:
            return plan.places, full
        near = full & (behind < self._window)
        return plan.places, {"full_attention": full, "sliding_attention": near}

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` tokens of two rows."""
        for layer in self.layers:
            layer.swap(a, b, length)
