"""One name for any kind of image-text data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqrae.data._pairs import IMAGE_ENDINGS
from vqrae.data._stream import StreamDataset
from vqrae.data.image_folder import ImageFolderDataset
from vqrae.data.shards import ShardDataset
from vqrae.data.tables import ParquetDataset, TableDataset, is_saved_dataset


def open_pairs(source: str | Path, *, texts: bool = True, **options: Any) -> StreamDataset:
    """Images, with their texts, from what `source` names.

    - a folder of .tar files, "part-{00..31}.tar", or a .txt file of their names: `ShardDataset`
    - a folder of .parquet files, "part-*.parquet": `ParquetDataset`
    - a folder of a saved Hugging Face dataset: `TableDataset`
    - any other folder with pictures in it: `ImageFolderDataset`
    - hf:NAME, such as hf:uoft-cs/cifar10: `TableDataset`

    Args:
        texts: whether every sample must have a text.
        options: seed, shuffle, epochs, rank, world_size, max_bad_share; others of the class.

    Raises:
        ValueError: if nothing of the kinds is there.
    """
    text = str(source)
    if text.startswith("hf:"):
        return TableDataset(text.removeprefix("hf:"), texts=texts, **options)
    kind = _kind(text)
    if kind is None:
        raise ValueError(
            f"'{text}' is no data that can be read: give a folder of .tar or .parquet files or of "
            "pictures, a pattern of their names, or hf:NAME"
        )
    return kind(source, texts=texts, **options)


def _kind(text: str) -> type[StreamDataset] | None:
    path = Path(text)
    if not path.is_dir():
        if text.endswith(".parquet"):
            return ParquetDataset
        return ShardDataset if text.endswith((".tar", ".txt")) or path.is_file() else None
    if is_saved_dataset(path):
        return TableDataset
    if any(path.glob("*.tar")):
        return ShardDataset
    if next(path.rglob("*.parquet"), None):
        return ParquetDataset
    pictures = (file.suffix[1:].lower() in IMAGE_ENDINGS for file in path.rglob("*"))
    return ImageFolderDataset if any(pictures) else None
