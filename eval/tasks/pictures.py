"""Pictures of questions, encoded for as long as nothing looks at them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def doc_to_image(doc: Mapping[str, Any]) -> list[Image.Image]:
    """PIL pictures, not decoded before something looks at them."""
    return [_opened(image, doc["id"]) for image in doc["image"]]


def _opened(image: Any, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image_bytes(image)))
    except OSError as error:
        raise ValueError(f"cannot read the picture of question '{name}': {error}") from None


def image_bytes(image: Any) -> bytes:
    """The encoded picture in {"bytes", "path"}, bytes or a path."""
    if isinstance(image, Mapping):
        image = image["bytes"] or image["path"]
    return image if isinstance(image, bytes) else Path(image).read_bytes()
