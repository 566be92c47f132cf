"""Tables with a column of images: parquet files, and datasets of the Hugging Face library."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from vqrae.data._pairs import pair
from vqrae.data._stream import BadSample, StreamDataset, StreamOptions

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "jpeg", "webp", "image_bytes", "bytes")
TEXT_COLUMNS = ("text", "caption", "txt", "prompt")
KEY_COLUMNS = ("key", "__key__", "id", "image_id")
_INSTALL = "install it with: pip install 'vqrae[data]'"


def find_parquet(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """Files named by a folder, a glob or a list. Raises ValueError where there is none."""
    found: list[str] = []
    for path in [paths] if isinstance(paths, (str, Path)) else list(paths):
        text = str(path)
        if Path(text).is_dir():
            here = sorted(str(file) for file in Path(text).rglob("*.parquet"))
        elif glob.has_magic(text):
            here = sorted(glob.glob(text))
        else:
            here = [text] if Path(text).is_file() else []
        if not here:
            raise ValueError(f"no parquet file '{text}'; check the path")
        found += here
    if not found:
        raise ValueError("no parquet files given; name a folder, a pattern or files")
    return found


class ParquetDataset(StreamDataset):
    """Rows of parquet files, read one row group at a time.

    Yields {"key": str, "image": PIL RGB, "text": str, "json": None}. Images are bytes, or the
    struct of bytes and path in which Hugging Face datasets keep them. A row that cannot be read is
    skipped, counted and named in the log; above `max_bad_share` that is a ValueError.

    Args:
        paths: see `find_parquet`.
        image, text, key: names of columns; left out, the first of the usual names that is there
            (IMAGE_COLUMNS, TEXT_COLUMNS, KEY_COLUMNS). Without a key, file and row are the key.
        texts: whether each row must have a text; otherwise it is "" where there is none.
        seed: of the shuffling.
        shuffle: size of the shuffle buffer in rows, behind shuffled row groups; 0 keeps the order.
        epochs: None for endless.
        rank, world_size: this process takes the samples whose position % world_size == rank.
        max_bad_share: the share of bad samples at which training stops.

    Raises:
        ValueError: if there is no such file or column, or pyarrow is not installed.
    """

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        image: str | None = None,
        text: str | None = None,
        key: str | None = None,
        texts: bool = True,
        **options: Unpack[StreamOptions],
    ) -> None:
        self.files = find_parquet(paths)
        self.groups: list[tuple[str, int]] = []
        for number, file in enumerate(self.files):
            with _parquet(file) as table:
                if number == 0:
                    names = table.schema_arrow.names
                self.groups += [(file, group) for group in range(table.num_row_groups)]
        self.columns = choose_columns(names, image, text, key, where=self.files[0], texts=texts)
        super().__init__(
            str(paths) if isinstance(paths, (str, Path)) else f"{self.files[0]} ...",
            **options,
        )
        self.texts = texts

    def _epoch(self, epoch: int) -> Iterator[tuple[str, dict]]:
        return self._buffered(self.groups, self._read, epoch)

    def _read(self, part: tuple[str, int]) -> Iterator[tuple[str, dict]]:
        """Rows of one row group, with their places."""
        file, group = part
        wanted = [name for name in self.columns if name]
        with _parquet(file) as table:
            row = sum(table.metadata.row_group(g).num_rows for g in range(group))
            missing = set(wanted) - set(table.schema_arrow.names)
            if missing:
                raise ValueError(
                    f"'{file}' has no column '{min(missing)}' like the others; mend it"
                )
            for batch in table.iter_batches(64, row_groups=[group], columns=wanted):
                for values in batch.to_pylist():
                    yield f"{Path(file).stem}-{row:08d}", values
                    row += 1

    def _name(self, record: tuple[str, dict]) -> str:
        return _key(record, self.columns[2])

    def _decode(self, record: tuple[str, dict]) -> dict:
        return _sample(record, self.columns, self.texts)


class TableDataset(StreamDataset):
    """Rows of a Hugging Face dataset: a name on the hub, a folder of save_to_disk, or one at hand.

    Yields what ParquetDataset yields; see there for the arguments that are not here.

    Args:
        source: name, folder or datasets.Dataset.
        split: of a named one, or of a folder that holds several.
        config: the name of its configuration, where it has several.
        shuffle: 0 keeps the order; anything else shuffles each epoch wholly.

    Raises:
        ValueError: if it cannot be loaded or has no such column, or datasets is not installed.
    """

    def __init__(
        self,
        source: Any,
        *,
        split: str = "train",
        config: str | None = None,
        image: str | None = None,
        text: str | None = None,
        key: str | None = None,
        texts: bool = True,
        **options: Unpack[StreamOptions],
    ) -> None:
        where = str(source) if isinstance(source, (str, Path)) else "the dataset"
        table = _load(source, split, config)
        self.columns = choose_columns(
            table.column_names, image, text, key, where=where, texts=texts
        )
        self.table = _undecoded(table, self.columns[0])
        super().__init__(
            where,
            **options,
        )
        self.texts = texts
        self.first = 0
        """Of the rows' numbers, where the table is a part of another."""

    def __len__(self) -> int:
        """Rows in one epoch, before ranks share them."""
        return len(self.table)

    def _epoch(self, epoch: int) -> Iterator[int]:
        return iter(self._permuted(range(len(self.table)), epoch))

    def _name(self, record: int) -> str:
        return f"{self.first + record:08d}"

    def _decode(self, record: int) -> dict:
        return _sample((self._name(record), self.table[record]), self.columns, self.texts)


def choose_columns(
    names: Sequence[str],
    image: str | None,
    text: str | None,
    key: str | None,
    *,
    where: str,
    texts: bool,
) -> tuple[str, str | None, str | None]:
    """Columns of image, text and key: those named, or the first usual ones that are there.

    Raises:
        ValueError: for a named column that is not there, no column of images, or none of texts
            where `texts` are needed.
    """
    for name in (image, text, key):
        if name is not None and name not in names:
            raise ValueError(f"'{where}' has no column '{name}'; it has {', '.join(names)}")
    image = image or next((name for name in IMAGE_COLUMNS if name in names), None)
    text = text or next((name for name in TEXT_COLUMNS if name in names), None)
    key = key or next((name for name in KEY_COLUMNS if name in names), None)
    for name, what in ((image, "image"), (text if texts else image, "text")):
        if name is None:
            raise ValueError(
                f"'{where}' has no column of {what}s by a usual name; name one of "
                f"{', '.join(names)} as {what}"
            )
    return image, text, key


def _key(record: tuple[str, dict], column: str | None) -> str:
    place, values = record
    value = values.get(column) if column else None
    return place if value is None else str(value)


def _sample(record: tuple[str, dict], columns: tuple, texts: bool) -> dict:
    image_column, text_column, key_column = columns
    key, values = _key(record, key_column), record[1]
    image = values[image_column]
    if isinstance(image, dict):
        image = image.get("bytes") or (Path(image["path"]) if image.get("path") else None)
    elif isinstance(image, str):
        image = Path(image)
    if not isinstance(image, (bytes, Path)):
        raise BadSample(f"its column '{image_column}' holds no image; mend or remove it")
    text = values[text_column] if text_column else None
    return pair(key, image, key, text, texts=texts)


def _parquet(file: str):
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"reading parquet needs pyarrow; {_INSTALL}") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot read '{file}': {reason}; write or download it again") from None


def _load(source: Any, split: str, config: str | None):
    try:
        import datasets
    except ImportError:
        raise ValueError(f"this needs the library datasets; {_INSTALL}") from None
    if not isinstance(source, (str, Path)):
        return source
    try:
        if is_saved_dataset(source):
            table = datasets.load_from_disk(str(source))
            table = table[split] if isinstance(table, datasets.DatasetDict) else table
        else:
            table = datasets.load_dataset(str(source), config, split=split)
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"cannot load the dataset '{source}', split '{split}': {reason}; check its name"
        ) from None
    return table


def is_saved_dataset(folder: str | Path) -> bool:
    """Whether the library's save_to_disk wrote this folder."""
    return any((Path(folder) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _undecoded(table, column: str):
    """Images as bytes: our own reading says in one line what is wrong with one."""
    import datasets

    if isinstance(table.features.get(column), datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table
