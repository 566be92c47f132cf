"""What all datasets share: an endless stream of raw records, split over ranks, resumed exactly.

A dataset is a stream of raw (undecoded) records whose order depends on the seed and the epoch only.
A rank, or a loader's worker within it, decodes every world_size-th of them and skips the others,
so that the global order is the same for any number of ranks. A position in the stream is therefore
one number, whatever the number of ranks; `merge_states` makes one of those of several readers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypedDict

from torch.utils.data import IterableDataset, get_worker_info
from vqrae.data._position import Taken, is_taken, merge_positions, still_taken

logger = logging.getLogger(__name__)

# Bad samples are judged as a share only once this many were seen, or at an epoch's end.
_ENOUGH_SEEN = 20


class BadSample(Exception):
    """A record that cannot become a sample. The message says why and how to mend it."""


class BadCount:
    """Counts the samples seen and the bad ones among them, and stops above a share."""

    def __init__(
        self,
        where: str,
        max_share: float,
        advice: str = "mend or remove them, or raise max_bad_share",
    ) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_bad_share {max_share} is not a share; give a number from 0 to 1")
        self.where, self.max_share, self.advice = where, max_share, advice
        self.seen = self.bad = 0
        self.last = ""

    def good(self) -> None:
        self.seen += 1
        if self.seen == _ENOUGH_SEEN:
            self.check()

    def skip(self, name: str, reason: str) -> None:
        """Counts and logs a bad sample. Raises ValueError above the share."""
        self.seen += 1
        self.bad += 1
        self.last = name
        logger.warning("skipped bad sample '%s' of '%s': %s", name, self.where, reason)
        if self.seen >= _ENOUGH_SEEN:
            self.check()

    def check(self) -> None:
        if self.seen and self.bad / self.seen > self.max_share:
            raise ValueError(
                f"{self.bad} of {self.seen} samples of '{self.where}' are bad, above the allowed "
                f"share {self.max_share:g} (the last is '{self.last}'); {self.advice}"
            )

    def state_dict(self) -> dict:
        return {"seen": self.seen, "bad": self.bad, "last": self.last}

    def load_state_dict(self, state: dict) -> None:
        self.seen, self.bad, self.last = state["seen"], state["bad"], state["last"]

    @staticmethod
    def merged(states: list[dict]) -> dict:
        """All readers' counts together, for each of those who go on: it is the share that counts,
        and one that few samples make would stop the run too soon."""
        return {
            "seen": sum(state["seen"] for state in states),
            "bad": sum(state["bad"] for state in states),
            "last": next((state["last"] for state in states if state["last"]), ""),
        }


def share_of_stream(rank: int, world_size: int) -> tuple[int, int]:
    """(first, stride) of the records that this rank's current process decodes.

    Worker w of rank r is reader r + world_size * w, of world_size * workers readers.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside a world of {world_size}; use 0 to world_size - 1")
    worker = get_worker_info()
    if worker is None:
        return rank, world_size
    return rank + world_size * worker.id, world_size * worker.num_workers


class StreamOptions(TypedDict, total=False):
    """What every dataset takes, by name."""

    seed: int
    """Of the shuffling; 0 by default."""
    shuffle: int
    """1000 by default; see the dataset. 0 keeps the order."""
    epochs: int | None
    """None, the default, for endless."""
    rank: int
    world_size: int
    """This process takes the samples whose position % world_size == rank."""
    max_bad_share: float
    """The share of bad samples at which training stops; 0.05 by default."""


class StreamDataset(IterableDataset):
    """Base of the datasets. A subclass gives `_epoch`, `_decode` and `_name`.

    Iterating starts at epoch 0, or where `load_state_dict` says. `state_dict` is the position after
    the last yielded sample. `rank` and `world_size` may be set until iteration begins.
    """

    def __init__(
        self,
        where: str,
        *,
        seed: int = 0,
        shuffle: int = 1000,
        epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_bad_share: float = 0.05,
    ) -> None:
        super().__init__()
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1, or None for endless, not {epochs}")
        self.where, self.seed, self.shuffle, self.epochs = where, seed, shuffle, epochs
        self.rank, self.world_size = rank, world_size
        self.count = BadCount(where, max_bad_share)
        self._rewind()
        self._loaded = False

    def _epoch(self, epoch: int) -> Iterator[Any]:
        """Raw records of an epoch, always in the same order."""
        raise NotImplementedError

    def _permuted(self, items: Iterable[Any], epoch: int) -> list[Any]:
        """For `_epoch`: all items, shuffled wholly."""
        order = list(items)
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order

    def _buffered(
        self, parts: Iterable[Any], read: Callable[[Any], Iterable[Any]], epoch: int
    ) -> Iterator[Any]:
        """For `_epoch`: what is read from the parts in shuffled order, through a shuffle buffer."""
        rng = random.Random(f"{self.seed}/{epoch}")
        order = list(parts)
        if self.shuffle:
            rng.shuffle(order)
        raw = (record for part in order for record in read(part))
        return _shuffled(raw, self.shuffle, rng) if self.shuffle else raw

    def _decode(self, record: Any) -> dict:
        """The sample. Raises BadSample."""
        raise NotImplementedError

    def _name(self, record: Any) -> str:
        """What the log calls a record."""
        raise NotImplementedError

    def _rewind(self) -> None:
        self._epoch_number = self._in_epoch = self._position = 0
        self._taken: Taken = []

    def records(self) -> Iterator[tuple[int, Any]]:
        """(position, record) from the current position on, undecoded and unsplit."""
        while self.epochs is None or self._epoch_number < self.epochs:
            read = 0
            for record in self._epoch(self._epoch_number):
                read += 1
                if read <= self._in_epoch:
                    continue  # replay up to the position
                position = self._position
                self._in_epoch += 1
                self._position += 1
                yield position, record
            if read == 0:
                raise ValueError(f"'{self.where}' holds no samples; write it anew or remove it")
            self._epoch_number += 1
            self._in_epoch = 0

    def decode(self, record: Any) -> dict | None:
        """The sample, or None (counted and logged) where it is bad."""
        try:
            sample = self._decode(record)
        except BadSample as reason:
            self.count.skip(self._name(record), str(reason))
            return None
        self.count.good()
        return sample

    def begin(self) -> None:
        """Goes to the loaded position, or else to the start."""
        if not self._loaded:
            self._rewind()
            self.count.load_state_dict({"seen": 0, "bad": 0, "last": ""})
        self._loaded = False

    def __iter__(self) -> Iterator[dict]:
        first, stride = share_of_stream(self.rank, self.world_size)
        self.begin()
        epoch, found = self._epoch_number, True
        for position, record in self.records():
            if self._epoch_number != epoch:
                self._end_of_epoch(found)
                epoch, found = self._epoch_number, False
            if position % stride != first:
                continue
            if is_taken(self._taken, position):
                found = True
                continue
            sample = self.decode(record)
            if sample is not None:
                found = True
                yield sample
        self.count.check()

    def _end_of_epoch(self, found: bool) -> None:
        self.count.check()
        if not found:
            raise ValueError(
                f"'{self.where}' gave no good sample in a whole epoch to one of its readers; "
                "use fewer processes and workers, or more samples"
            )

    def state_dict(self) -> dict:
        """The position, as plain numbers."""
        return {
            "epoch": self._epoch_number,
            "in_epoch": self._in_epoch,
            "position": self._position,
            "taken": still_taken(self._taken, self._position),
            "count": self.count.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The next iteration goes on from there."""
        self._epoch_number, self._in_epoch = state["epoch"], state["in_epoch"]
        self._position = state["position"]
        self._taken = state.get("taken", [])  # older checkpoints have none
        self.count.load_state_dict(state["count"])
        self._loaded = True

    def merge_states(self, states: list[dict]) -> dict:
        """The state from which any number of readers go on where others stopped: every sample is
        read once. `states` are those of readers 0, 1, ... (see `share_of_stream`)."""
        counts = BadCount.merged([state["count"] for state in states])
        return {**merge_positions(states), "count": counts}


def _shuffled(records: Iterable[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """Shuffles through a buffer that is full before anything leaves it."""
    buffer: list[Any] = []
    for record in records:
        buffer.append(record)
        if len(buffer) > size:
            index = rng.randrange(len(buffer))
            buffer[index], buffer[-1] = buffer[-1], buffer[index]
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer
