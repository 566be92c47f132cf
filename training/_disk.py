"""A disk that is full while a run writes: one line, and nothing half-written stays behind."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .objective import TrainingStopped

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(target: Path, aside: Path | None = None) -> Iterator[None]:
    """Around writing `target`, or a folder `aside` that is to become it.

    Raises TrainingStopped naming `target` where there was no room for it; `aside` is removed then.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _no_room(error)
        if reason is None:
            raise
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        raise TrainingStopped(
            f"cannot write {target}: {reason}; make room there and run the same command to go on "
            "from the last checkpoint"
        ) from error


def _no_room(error: Exception) -> str | None:
    """What the system says where that is that there is no room; libraries have it in their own
    errors."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _FULL else None
    if number := re.search(r"os error (\d+)", str(error)):  # safetensors
        return os.strerror(int(number[1])) if int(number[1]) in _FULL else None
    if "PytorchStreamWriter failed writing" in str(error) or "unexpected pos" in str(error):
        return "the file came out short"  # torch.save does not say why
    return None
