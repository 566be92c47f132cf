"""Pictures that results left beside their numbers, laid beside each other by name."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqrae.data import open_image
from vqrae.eval.report import data_uri, image_uri

_FOLDERS = ("drawings", "samples", "pictures")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_MOST = 16
_LARGEST = 640
_FINE = 260
"""Pictures of so many pixels in height are shown with their pixels as they are."""


def pictures_of(folder: Path) -> dict[str, Path]:
    """Name to file: pairs.png, and what lies in folders of drawings, by their place in them."""
    found = {"pairs": folder / "pairs.png"} if (folder / "pairs.png").is_file() else {}
    for name in _FOLDERS:
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in _ENDINGS:
                inner = path.relative_to(folder / name).with_suffix("").parts
                found["/".join(part for part in inner if part not in _FOLDERS)] = path
    return found


def gallery(
    folders: Sequence[Path], runs: Sequence[Any], items: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], str]:
    """Rows of a picture in each run, and what to say above them.

    items: of one of the runs, whose prompts are put above its drawings.
    """
    every = [pictures_of(folder) for folder in folders]
    names = list(dict.fromkeys(name for found in every for name in found))
    if not names:
        return [], ""
    shared = [name for name in names if all(name in found for found in every)] or names
    drawn = [name for name in shared if name != "pairs"]
    step = max(1, -(-len(drawn) // _MOST))
    chosen = [name for name in shared if name == "pairs"] + drawn[::step]
    said = {}
    for item in items:
        text = item.get("prompt")
        if isinstance(text, str):
            said |= {str(item["id"]): text, str(item["id"]).replace("/", "-"): text}
    rows = [
        {
            "said": "originals above, reconstructions below"
            if name == "pairs"
            else said.get(name, name),
            "columns": 1 if name == "pairs" else min(len(runs), 3),
            "cells": [_cell(found.get(name), run) for found, run in zip(every, runs, strict=True)],
        }
        for name in chosen
    ]
    if not drawn:
        return rows, "The first pictures of the data, not chosen ones."
    which = f"all {len(drawn)}" if step == 1 else f"one in {step} of the {len(drawn)}"
    return rows, f"Shown: {which} drawings that are there, not chosen ones."


def _cell(path: Path | None, run: Any) -> dict[str, Any]:
    cell = {"run": run, "src": "", "pixel": False, "alt": "", "note": ""}
    if path is None:
        return cell | {"note": "not there"}
    try:
        picture = open_image(path)
    except ValueError:
        return cell | {"note": "cannot be read"}
    fine = picture.height <= _FINE
    if not fine:
        picture.thumbnail((2 * _LARGEST, _LARGEST))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        source = data_uri(buffer.getvalue(), "image/jpeg")
    else:
        source = image_uri(picture)
    return cell | {"src": source, "pixel": fine, "alt": f"by {run.letter}"}
