"""Where a benchmark's files lie: in a folder of your own or in the hub's cache. No downloads."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
_SPLIT_FILE = re.compile(r"[\w.]+-\d{5}-of-\d{5}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One table of a benchmark."""

    name: str
    """The benchmark's folder in the data folder."""
    hub: str
    """The dataset of the same files on the hub."""
    config: str
    split: str
    columns: tuple[str, ...]
    """What the table must have, besides images."""
    official: str = ""
    """Where the benchmark's own release comes from."""
    other_form: str = ""
    """The release's own form, as a pattern of files, where that is read too."""


def parquet_files(folder: Path, config: str, split: str) -> list[str]:
    """The parquet files of a config and a split under a folder laid out as on the hub.

    Files of other configs and splits are left out: those in other folders, and those named as the
    hub names a split's.
    """
    files = sorted(folder.rglob("*.parquet"))
    of_config = [file for file in files if config in file.relative_to(folder).parts[:-1]]
    files = of_config or [file for file in files if file.parent == folder]
    of_split = [file for file in files if file.name.startswith((f"{split}-", f"{split}."))]
    unnamed = [file for file in files if not _SPLIT_FILE.match(file.name)]
    return [str(file) for file in of_split or unnamed]


def read_table(source: Source, data: str | Path | None) -> Sequence[Row]:
    """Rows of a benchmark's parquet files; pictures stay encoded: {"bytes", "path"}.

    Args:
        data: a folder that holds a folder named like the benchmark; None for the hub's cache.

    Raises:
        ValueError: in one line, which file is expected where, or which column it lacks.
    """
    folder = _cached(source) if data is None else Path(data) / source.name
    files = parquet_files(folder, source.config, source.split) if folder else []
    if not files:
        raise ValueError(missing(source, data))
    from datasets import Image, load_dataset

    try:
        table = load_dataset("parquet", data_files=files, split="train")
    except Exception as error:
        # Of many types, and long; the first line says which file.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read '{files[0]}': {first}; copy it again") from None
    lacking = [name for name in source.columns if name not in table.column_names]
    if lacking:
        raise ValueError(
            f"'{files[0]}' has no column {lacking[0]!r}, which {source.name} needs; take the files "
            f"of the hub's {source.hub}"
        )
    for name, feature in table.features.items():
        many = getattr(feature, "feature", None)
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
        elif isinstance(many, Image):
            table = table.cast_column(name, type(feature)(Image(decode=False)))
    return table


def missing(source: Source, data: str | Path | None) -> str:
    """The line that says what is expected where."""
    folder = Path("DATA" if data is None else data) / source.name
    where = (
        f"'{folder}'" if data is not None else f"the hub's cache; or give --data with '{folder}'"
    )
    also = f", or {source.other_form}" if source.other_form else ""
    official = f" ({source.official})" if source.official else ""
    return (
        f"no data of {source.name} in {where}: expected are parquet files as in the hub's "
        f"{source.hub}, {source.config}/{source.split}-*.parquet{also}{official}"
    )


def _cached(source: Source) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source.hub, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None


# -- releases in their own form --------------------------------------------------------------


def official_files(source: Source, data: str | Path | None, pattern: str) -> list[Path]:
    """The benchmark's own files of that pattern, and none where parquet files stand beside them."""
    if data is None:
        return []
    folder = Path(data) / source.name
    if next(folder.rglob("*.parquet"), None):
        return []
    return sorted(folder.glob(pattern))


def read_json(path: Path) -> Any:
    """A JSON file, or one of JSON lines."""
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON ({error}); copy it again") from None


def read_tsv(path: Path) -> list[Row]:
    """Rows of a table with tabs, whose first line names the columns."""
    csv.field_size_limit(sys.maxsize)  # it holds whole pictures
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


class Docs(Sequence):
    """Rows in the benchmark's form, each turned into a question when it is asked for.

    Nothing is copied: a benchmark's pictures are gigabytes.

    Args:
        rows: of a table or a list.
        turn: a row, and what stands beside it in `order`, to a question.
        order: (row number, more) of each question; by default every row once.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        turn: Callable[..., dict[str, Any]],
        order: Sequence[tuple] | None = None,
    ):
        self.rows, self.turn = rows, turn
        self.order = [(number,) for number in range(len(rows))] if order is None else order
        # lm-eval asks a dataset for its columns.
        self.features = dict.fromkeys(self[0]) if self.order else {}

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, *more = self.order[index]
        return self.turn(self.rows[number], *more)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))
