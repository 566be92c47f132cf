"""A bar on the terminal for what takes more than a moment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, of all); nothing is shown in the first second, nor where
    standard error is no terminal."""
    from tqdm import tqdm

    with tqdm(unit=unit, delay=1, leave=False, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
