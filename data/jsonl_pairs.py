"""Pictures with texts, one JSON record each: what a user writes by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vqrae.data._stream import BadSample
from vqrae.data.images import ImageError, open_image
from vqrae.data.llava import LlavaDataset, is_pair, read_records


class JsonlPairs(LlavaDataset):
    """Records {"image": file, "text": caption} of a .jsonl or .json file.

    Yields {"key": str, "image": PIL RGB, "text": str, "json": None}. Conversations in the same file
    are passed over: LlavaDataset reads those.

    A record with an unreadable image or an empty text is skipped, counted and named in the log.

    Args: see LlavaDataset.
    Raises ValueError where the file holds no such record.
    """

    _what = "record with an image and a text"

    @staticmethod
    def _kept(entry: object) -> bool:
        return is_pair(entry)

    def _decode(self, record: tuple[int, dict]) -> dict:
        _, entry = record
        text = entry["text"]
        if not isinstance(text, str) or not text.strip():
            raise BadSample("its text is empty; mend it")
        if not isinstance(entry["image"], str):
            raise BadSample("its image is no file name; mend it")
        try:
            image = open_image(self.image_root / entry["image"])
        except ImageError as error:
            raise BadSample(str(error)) from None
        return {"key": self._name(record), "image": image, "text": text.strip(), "json": None}


def kinds_in(path: str | Path) -> Iterator[str]:
    """ "pairs", "conversations", or both: what a file of records holds."""
    pairs = [is_pair(record) for record in read_records(path)]
    if any(pairs):
        yield "pairs"
    if not all(pairs):
        yield "conversations"
