"""Folders of pictures, with or without a caption beside each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from vqrae.data._pairs import IMAGE_ENDINGS, pair
from vqrae.data._stream import BadSample, StreamDataset, StreamOptions


class ImageFolderDataset(StreamDataset):
    """The pictures of a folder and all its subfolders; NAME.txt beside NAME.jpg is its caption.

    Yields {"key": path within the folder, "image": PIL RGB, "text": str, "json": None}. A picture
    that cannot be read, or lacks the text that it must have, is skipped, counted and named in the
    log; above `max_bad_share` that is a ValueError.

    Args:
        folder: holds the pictures.
        texts: whether each must have a caption; otherwise the text is "" where there is none.
        seed: of the shuffling.
        shuffle: 0 keeps the order of the names; anything else shuffles each epoch wholly.
        epochs: None for endless.
        rank, world_size: this process takes the samples whose position % world_size == rank.
        max_bad_share: the share of bad samples at which training stops.

    Raises:
        ValueError: if there is no such folder, or no picture in it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        texts: bool = False,
        **options: Unpack[StreamOptions],
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"no image folder '{folder}'; check the path")
        found = (path for path in self.folder.rglob("*") if path.is_file())
        self.names = sorted(
            path.relative_to(self.folder).as_posix()
            for path in found
            if path.suffix[1:].lower() in IMAGE_ENDINGS
        )
        if not self.names:
            raise ValueError(
                f"'{folder}' holds no picture ({', '.join(IMAGE_ENDINGS)}); check the path"
            )
        super().__init__(
            str(folder),
            **options,
        )
        self.texts = texts

    def __len__(self) -> int:
        """Pictures in one epoch, before ranks share them."""
        return len(self.names)

    def _epoch(self, epoch: int) -> Iterator[str]:
        return iter(self._permuted(self.names, epoch))

    def _name(self, record: str) -> str:
        return record

    def _decode(self, record: str) -> dict:
        path = self.folder / record
        beside = path.with_suffix(".txt")
        try:
            text = beside.read_text(encoding="utf-8") if beside.is_file() else None
        except UnicodeDecodeError:
            raise BadSample(f"its text '{beside.name}' is not UTF-8; save it again") from None
        return pair(record, path, record, text, texts=self.texts)
