"""Folders that are written once, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqrae.data._writing import whole_folder


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A place, not made yet, that becomes `out` when all went well; otherwise nothing stays.

    Raises:
        ValueError: if something is there already.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"'{out}' holds something already; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as aside:
        yield aside
