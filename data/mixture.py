"""Several datasets drawn from by weight."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import IterableDataset
from vqrae.data._position import Taken, is_taken, merge_positions, still_taken
from vqrae.data._stream import BadCount, StreamDataset, share_of_stream

_BLOCK = 1024


class MixtureDataset(IterableDataset):
    """Yields samples of several datasets, with sample["task"] = the dataset's name.

    Which dataset gives sample i depends on the seed and i only. The parts are read as one global
    stream each: their own rank and world_size are not used, the mixture's are. It ends when a part
    ends. `state_dict` / `load_state_dict` resume exactly.

    Args:
        parts: {name: (dataset, weight)}; a weight is a share of the samples, of any scale.
        seed: of the draws.
    """

    def __init__(
        self,
        parts: dict[str, tuple[StreamDataset, float]],
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a mixture needs at least one dataset; give {name: (dataset, weight)}")
        for name, (_, weight) in parts.items():
            if not (weight > 0 and np.isfinite(weight)):
                raise ValueError(f"weight {weight} of '{name}' in a mixture is not above 0")
        self.parts = {name: dataset for name, (dataset, _) in parts.items()}
        self._names = list(self.parts)
        weights = np.array([weight for _, weight in parts.values()], dtype=np.float64)
        self._edges = np.cumsum(weights / weights.sum())
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._position = 0
        self._taken: Taken = []
        self._loaded = False

    def _draws(self) -> Iterator[str]:
        """Names of the parts from the current position on."""
        while True:
            block, start = divmod(self._position, _BLOCK)
            values = np.random.default_rng([self.seed, block]).random(_BLOCK)
            picks = np.minimum(np.searchsorted(self._edges, values, "right"), len(self._names) - 1)
            for index in picks[start:]:
                yield self._names[index]

    def __iter__(self) -> Iterator[dict]:
        first, stride = share_of_stream(self.rank, self.world_size)
        if not self._loaded:
            self._position, self._taken = 0, []
        self._loaded = False
        for part in self.parts.values():
            part.begin()
        streams = {name: part.records() for name, part in self.parts.items()}
        for name in self._draws():
            item = next(streams[name], None)
            if item is None:
                return
            position = self._position
            self._position += 1
            if position % stride != first or is_taken(self._taken, position):
                continue
            sample = self.parts[name].decode(item[1])
            if sample is not None:
                sample["task"] = name
                yield sample

    def state_dict(self) -> dict:
        """The position, as plain numbers."""
        return {
            "position": self._position,
            "taken": still_taken(self._taken, self._position),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """The next iteration goes on from there. Raises ValueError for another mixture's state."""
        if set(state["parts"]) != set(self.parts):
            raise ValueError(
                f"the saved data position is of the mixture {sorted(state['parts'])}, not "
                f"{sorted(self.parts)}; resume with the same data or start a new run"
            )
        self._position = state["position"]
        self._taken = state.get("taken", [])  # older checkpoints have none
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self._loaded = True

    def merge_states(self, states: list[dict]) -> dict:
        """The state from which any number of readers go on; see StreamDataset.merge_states."""
        merged = merge_positions(states)
        # The hindmost reader's parts stand where its position says: each reads all of them.
        merged["parts"] = {
            name: part | {"count": BadCount.merged([s["parts"][name]["count"] for s in states])}
            for name, part in merged["parts"].items()
        }
        return merged
