"""From an image's bytes and a text to a sample, whatever kind of file they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqrae.data._stream import BadSample
from vqrae.data.images import ImageError, open_image

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")


def pair(
    key: str, image: bytes | Path, name: str, text: Any, *, facts: Any = None, texts: bool = True
) -> dict:
    """{"key", "image": PIL RGB, "text", "json"}.

    Args:
        image: the file's bytes, or its path.
        name: what errors call it.
        texts: whether a text must be there; otherwise it is "" where there is none.

    Raises:
        BadSample: without a readable image, or without the text that must be there.
    """
    text = text.strip() if isinstance(text, str) else ""
    if texts and not text:
        raise BadSample("it has no text; add one or remove it")
    try:
        picture = open_image(image, name=name)
    except ImageError as error:
        raise BadSample(str(error)) from None
    return {"key": key, "image": picture, "text": text, "json": facts}
