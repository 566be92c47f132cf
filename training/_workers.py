"""Loader processes: they end with the training process and only with it."""

from __future__ import annotations

import re
import signal

from torch.multiprocessing import _prctl_pr_set_pdeathsig
from torchdata.stateful_dataloader import StatefulDataLoader

_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
_RAISED = "in DataLoader worker process"


def start_worker(_worker: int) -> None:
    """The loader's worker_init_fn."""
    # A launcher's SIGTERM and a terminal's Ctrl-C reach the whole process group, but the training
    # process needs its workers until it has saved. It decides when they end (`end_workers`).
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # Linux: killed where the training process was killed


def end_workers(loader: StatefulDataLoader) -> None:
    """End the loader's processes, those that hang too: Python would wait for them at its exit."""
    iterator = loader._iterator
    workers = getattr(iterator, "_workers", ())
    if workers:
        iterator._shutdown_workers()
    for worker in workers:
        worker.kill()
        worker.join()


def death_of_worker(error: RuntimeError) -> str | None:
    """In one line that a loader process died, if it is that what torch's error says."""
    found = _DIED.match(str(error))
    if found is None:
        return None
    how = found[2].split(". ")[0].strip(" .")
    return (
        f"loader process {found[1]} died ({how}); if memory ran out, lower num_workers or the "
        "batch size; run the same command to go on"
    )


def words_of_worker(error: ValueError) -> str | None:
    """What was raised in a loader process, without torch's traceback; None if it was not there."""
    text = str(error)
    return text.rpartition("\nValueError: ")[2].strip() if _RAISED in text else None
