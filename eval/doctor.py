"""Whether installation, machine and model will do, and what to do where they will not."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from vqrae.eval._doctor_machine import (
    check_compiler,
    check_device,
    check_disk,
    check_hub,
    check_installation,
)
from vqrae.eval._finding import Finding, guarded

__all__ = ["Finding", "examine", "has_problem"]


def examine(
    model: str | Path, *, run: str | Path = "runs", deepspeed: str | None = None
) -> list[Finding]:
    """Every check; none of them raises, whatever it meets.

    Args:
        model: folder of a unified model or a tokenizer.
        run: where runs would be written; nothing is left there.
        deepspeed: a JSON of the user's own, or a shipped name.
    """
    found = guarded("installation", check_installation, "pip install --upgrade vqrae, or make")
    if any(f.status == "problem" for f in found) and "torch" not in sys.modules:
        return found
    found += guarded("device", check_device)
    found += guarded("model", partial(_model, Path(model)), "save or copy the folder again")
    found += guarded("deepspeed", partial(_deepspeed, deepspeed), "pip install 'vqrae[train]'")
    found += guarded("compiler", check_compiler)
    found += guarded("disk", partial(check_disk, Path(run), _size(Path(model))))
    return found + guarded("hub", check_hub)


def has_problem(found: list[Finding]) -> bool:
    """Whether something will not work."""
    return any(finding.status == "problem" for finding in found)


def _model(folder: Path):
    # at call: torch and transformers may be what is missing
    from vqrae.eval._doctor_model import check_model

    yield from check_model(folder)


def _deepspeed(given: str | None):
    from vqrae.eval._doctor_deepspeed import check_deepspeed

    yield from check_deepspeed(given)


def _size(folder: Path) -> int | None:
    """Bytes of the weights."""
    try:
        return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) or None
    except OSError:
        return None
