"""From a dataset to batches on the device, with a position that can be saved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ._workers import start_worker, words_of_worker


def make_loader(
    dataset: IterableDataset,
    batch_size: int,
    collate: Callable[[list[dict]], dict],
    num_workers: int,
    seed: int,
    device: torch.device,
) -> StatefulDataLoader:
    """torchdata's loader: its state_dict after n batches makes another one start at batch n + 1.

    It draws its workers' seeds from a generator of its own, so that the global generators stand
    where training left them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own affair
        return StatefulDataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=collate,
            drop_last=True,
            num_workers=num_workers,
            worker_init_fn=start_worker if num_workers else None,
            generator=torch.Generator().manual_seed(seed),
            pin_memory=device.type == "cuda",
        )


def reader_states(loaders: list[dict]) -> list[dict | None]:
    """The dataset's own states within the loaders' states of all ranks, by reader: with W ranks,
    worker w of rank r is reader r + W * w. None where the dataset keeps no state."""
    by_rank = [_own_states(loader) for loader in loaders]
    return [state for worker in zip(*by_rank, strict=True) for state in worker]


def _own_states(loader: dict) -> list[dict | None]:
    """One of each worker, or the training process's. The keys are torchdata's."""
    holders = [loader]
    if "_snapshot" in loader:
        workers = loader["_snapshot"]["_worker_snapshots"]
        holders = [workers[f"worker_{index}"] for index in range(len(workers))]
    return [holder["dataset_state"] for holder in holders]


def batches_on(device: torch.device, loader: StatefulDataLoader) -> Iterator[dict]:
    """The loader's batches, moved. The loader's iterator is made here and now, not at `next`."""
    return _moved(device, iter(loader))


def _moved(device: torch.device, batches: Iterator[dict]) -> Iterator[dict]:
    try:
        for batch in batches:
            yield move(batch, device)
    except ValueError as error:
        words = words_of_worker(error)
        if words is None:
            raise
        raise ValueError(words) from None


def move(value: Any, device: torch.device) -> Any:
    """Every tensor in dicts, lists and tuples to the device; the rest as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor | dict) for v in value):
        return type(value)(move(item, device) for item in value)
    return value
