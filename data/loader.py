"""The loader: batches whose position can be saved and resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.utils.data import IterableDataset

if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader


def make_loader(
    dataset: IterableDataset,
    *,
    batch_size: int,
    collate: Callable[[list[dict]], dict],
    num_workers: int = 0,
) -> StatefulDataLoader:
    """Batches of `batch_size` samples of this rank, as `collate` makes them.

    The last, smaller batch of a finite dataset is dropped. `state_dict` / `load_state_dict` resume
    exactly, with the same num_workers.
    """
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        drop_last=True,
    )
