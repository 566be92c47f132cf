"""Which model a command uses when none is named."""

from __future__ import annotations

import os
from pathlib import Path

from vqrae.assets import nano_folder

DEMO_MODEL = Path("runs/demo/unified/final")


def model_folder(given: str | None) -> str:
    """--model, else $VQRAE_MODEL, else what `vqrae demo` left here, else the model that ships.

    Raises:
        ValueError: if there is none of these.
    """
    chosen = given or os.environ.get("VQRAE_MODEL")
    if chosen:
        return chosen
    for folder in (DEMO_MODEL, nano_folder()):
        if folder.is_dir():
            return str(folder)
    raise ValueError(
        f"no model: {str(DEMO_MODEL)!r} is not here; give --model DIR, set VQRAE_MODEL, or run "
        "`vqrae demo` first"
    )
