"""A key-value cache whose room is made once: a step writes into it, and nothing is copied.

Shapes: B rows, H key-value heads, L positions, D width of a head.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer


class _RoomyLayer(DynamicLayer):
    """Keys and values are views (B, H, L so far, D) of buffers (B, H, room, D).

    A growing cache copies all it holds at every step, and so does quadratic work.
    """

    def __init__(self, room: int):
        super().__init__()
        self._room = room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_buffer, self._value_buffer = (
            states.new_empty(*states.shape[:2], self._room, states.shape[3])
            for states in (key_states, value_states)
        )
        self._show(0)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        assert stop <= self._room, f"{stop} positions in a cache for {self._room}"
        self._key_buffer[:, :, start:stop] = key_states
        self._value_buffer[:, :, start:stop] = value_states
        self._show(stop)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        if length:
            self._key_buffer = self._key_buffer[indices]
            self._value_buffer = self._value_buffer[indices]
            self._show(length)

    def _show(self, length: int) -> None:
        self.keys = self._key_buffer[:, :, :length]
        self.values = self._value_buffer[:, :, :length]


def roomy_cache(config: PreTrainedConfig, room: int) -> DynamicCache:
    """A cache for `room` positions; layers with a sliding window keep the library's own."""
    cache = DynamicCache(config=config)
    # Without knowledge of its layers a cache makes them as they come, all of one kind.
    if not cache.layers:
        cache.layers = [_RoomyLayer(room) for _ in range(config.num_hidden_layers)]
    else:
        cache.layers = [
            _RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
        ]
    return cache
