"""Pictures in lm-eval's requests and samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from vqrae.data import open_image
from vqrae.data.images import to_rgb


class Visuals(Sequence):
    """The pictures of one request: PIL, bytes, paths, or {"bytes", "path"}.

    Of a PIL picture that nobody has looked at, a copy is decoded: decoding it in place would leave
    all pictures of a benchmark in memory.
    """

    def __init__(self, visuals: Any, name: str):
        several = isinstance(visuals, (list, tuple))
        self._visuals = [v for v in (visuals if several else [visuals]) if v is not None]
        self._name = name

    def __len__(self) -> int:
        return len(self._visuals)

    def __getitem__(self, index: int) -> Any:
        return self._visuals[index]

    def opened(self, places: Sequence[int]) -> list[Image.Image]:
        """RGB pictures at these places.

        Raises:
            ValueError: in one line, naming the request, for one that cannot be read.
        """
        return [self._open(self._visuals[place]) for place in places]

    def digests(self) -> list[str]:
        """sha256 of each: of its file where that is at hand, of its pixels otherwise."""
        return [_digest(visual) for visual in self._visuals]

    def _open(self, visual: Any) -> Image.Image:
        source = _source(visual)
        if isinstance(source, Image.Image):
            return to_rgb(source)
        return open_image(source, name=f"picture of {self._name}")


def _source(visual: Any) -> Image.Image | bytes | Path:
    """The encoded file where there is one."""
    if isinstance(visual, Mapping):
        visual = visual.get("bytes") or visual.get("path")
    if isinstance(visual, Image.Image):
        file = getattr(visual, "fp", None)  # gone once it is decoded
        return file.getvalue() if isinstance(file, io.BytesIO) else visual
    return visual if isinstance(visual, bytes) else Path(visual)


def _digest(visual: Any) -> str:
    source = _source(visual)
    if isinstance(source, Image.Image):
        head = f"{source.mode} {source.size} ".encode()
        return hashlib.sha256(head + source.tobytes()).hexdigest()
    data = source if isinstance(source, bytes) else source.read_bytes()
    return hashlib.sha256(data).hexdigest()


def without_pictures(value: Any) -> Any:
    """The same lists and dicts with None in place of pictures and bytes."""
    if isinstance(value, (bytes, bytearray, Image.Image)):
        return None
    if isinstance(value, Mapping):
        return {key: without_pictures(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_pictures(each) for each in value)
    return value
