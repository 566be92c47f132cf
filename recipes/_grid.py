"""Studies as grids: every cell is trained once, and the tables are made from what is there.

A cell's folder holds its runs and, when it is finished, `row.json`. A study called again goes on
with the cells that have none; a cell that was interrupted goes on inside its own runs.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqrae.data._files import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One training of a grid."""

    name: str
    """Of its folder."""
    settings: dict[str, Any]
    """What sets it apart: the first columns of its row."""
    run: Callable[[Path], Mapping[str, Any]]
    """Trains and measures inside a folder; gives the other columns."""


def run_grid(
    cells: Sequence[Cell], out: Path, study: Any = None, *, varied: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows of all cells, in their order; only those without a row are trained.

    Args:
        study: the study's options, a dataclass, which finished cells must share.
        varied: names of those that may differ from one call to the next, beside `out`: the axes.

    Raises:
        ValueError: for a finished cell of the same name with other settings, naming what differs.
    """
    rows = []
    options = {} if study is None else json.loads(json.dumps(asdict(study)))
    common = {key: value for key, value in options.items() if key not in ("out", *varied)}
    for number, cell in enumerate(cells, 1):
        folder = out / "cells" / cell.name
        path = folder / "row.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            row, found = kept["row"], {**kept["study"], **kept["row"]}
            wanted = {**common, **cell.settings}
            other = [key for key, value in wanted.items() if found.get(key) != value]
            if other:
                raise ValueError(
                    f"'{folder}' was run with "
                    + ", ".join(f"{key} {found.get(key)!r}, not {wanted[key]!r}" for key in other)
                    + "; choose another --out"
                )
            logger.info("[%d/%d] %s is finished", number, len(cells), cell.name)
        else:
            logger.info("[%d/%d] %s", number, len(cells), cell.name)
            row = {**cell.settings, **cell.run(folder)}
            write_whole(path, json.dumps({"row": row, "study": common}, indent=1) + "\n")
        rows.append(row)
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every column that some row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, buffer.getvalue())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of cells that are text already or numbers; None stays empty."""

    def text(value: Any) -> str:
        if not isinstance(value, float):
            return "" if value is None else str(value)
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(text, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
