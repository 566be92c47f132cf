"""The model that ships with the package: `nano_folder()`, made by `vqrae nano`."""

from __future__ import annotations

from pathlib import Path

_NANO = Path(__file__).resolve().parent / "nano"


def nano_folder(part: str = "unified") -> Path:
    """Folder of a part of the shipped model: "unified", "tokenizer" or "vfm".

    Raises:
        ValueError: for another part.
    """
    parts = ("unified", "tokenizer", "vfm")
    if part not in parts:
        raise ValueError(f"the shipped model has no part {part!r}; choose one of {parts}")
    return _NANO / part


__all__ = ["nano_folder"]
