"""What writers of folders share: whole folders, JSON, PNG bytes, tar members, LLaVA records."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from vqrae.data.llava import IMAGE_MARK


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` when all went well; otherwise nothing of it stays."""
    aside = out.with_name(f".{out.name}.writing-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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


def write_json(path: Path, value: object) -> None:
    """A list goes one record to a line."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(record) for record in value) + "\n]\n"
    else:
        text = json.dumps(value, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


def conversation(key: str, asked: list[tuple[str, str, str]], image: str | None = None) -> dict:
    """A LLaVA-style record of (question, answer, type) about images/IMAGE.png, or KEY.png."""
    turns = []
    for index, (question, answer, _) in enumerate(asked):
        mark = f"{IMAGE_MARK}\n" if index == 0 else ""
        turns.append({"from": "human", "value": mark + question})
        turns.append({"from": "gpt", "value": answer})
    return {
        "id": key,
        "image": f"images/{image or key}.png",
        "conversations": turns,
        "question_types": [kind for _, _, kind in asked],
    }


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member whose bytes depend on name and data only: no time, no owner."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mtime = 0
    tar.addfile(info, io.BytesIO(data))
