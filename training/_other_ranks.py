"""Going on from a checkpoint with another number of processes than wrote it.

Weights and moments are stored whole and by name, so it is the files rank-*.pt that must be shared
out anew:

    data      one position for all, so that every sample of the stream is used once; without
              loader workers and bad samples the global batches stay the same, too
    extra     rank 0's, for all ranks
    window    the sums of all ranks, given to rank 0
    RNG       not kept: each rank is seeded with `seed_after`
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from ._data import reader_states
from .checkpoint import load_rank
from .logging import Window

logger = logging.getLogger(__name__)


def load_for_rank(
    checkpoint: Path, writers: int, rank: int, dataset: IterableDataset
) -> dict[str, Any]:
    """What this rank's file would hold, but for "rng" and "data": the dataset is put in its place.

    Args:
        writers: the number of processes that wrote the checkpoint.

    Raises:
        ValueError: for a file that is missing or damaged.
    """
    states = [load_rank(checkpoint, writer) for writer in range(writers)]
    _place(dataset, [state["data"] for state in states], warn=rank == 0)
    windows = [state["window"] for state in states]
    window = Window.merged(windows) if rank == 0 else Window().state_dict()
    return {**states[0], "window": window}


def seed_after(seed: int, step: int, rank: int) -> int:
    """63 bits that depend on the run's seed, the finished steps and the rank."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)


def _place(dataset: IterableDataset, loaders: list[dict], *, warn: bool) -> None:
    """Before its loader starts, which in turn hands the place to its workers."""
    states = reader_states(loaders)
    if hasattr(dataset, "merge_states") and None not in states:
        dataset.load_state_dict(dataset.merge_states(states))
    elif warn:
        logger.warning(
            "%s has no merge_states to say where its %d readers stood; it starts over at sample 0",
            type(dataset).__name__,
            len(states),
        )
