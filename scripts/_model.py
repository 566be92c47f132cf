"""Which model a command uses when none is named."""

from __future__ import annotations

import os
from pathlib import Path

DEMO_MODEL = Path("runs/demo/unified/final")


def model_folder(given: str | None) -> str:
    """--model, else $VQRAE_MODEL, else the model that `vqrae demo` left here.

    Raises:
        ValueError: if there is none of these.
    """
    chosen = given or os.environ.get("VQRAE_MODEL")
    if chosen:
        return chosen
    if DEMO_MODEL.is_dir():
        return str(DEMO_MODEL)
    raise ValueError(
        f"no model: {str(DEMO_MODEL)!r} is not here; give --model DIR, set VQRAE_MODEL, or run "
        "`vqrae demo` first"
    )
