"""Which model a command uses when none is named."""

from __future__ import annotations

import os

from vqrae.assets import nano_folder


def model_folder(given: str | None) -> str:
    """--model, else $VQRAE_MODEL, else the model that ships with the package."""
    return given or os.environ.get("VQRAE_MODEL") or str(nano_folder())
