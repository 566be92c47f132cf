"""Do understanding and generation help or hurt each other? The paper leaves it open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vqrae.data._files import write_whole
from vqrae.recipes._grid import Cell, markdown_table, run_grid, write_csv
from vqrae.recipes._study_plots import bars_plot
from vqrae.recipes._study_unified import (
    UnifiedStudy,
    generation_row,
    only,
    train_unified,
    understanding_row,
)

_TASKS = {"understanding": ("vqa",), "generation": ("t2i",), "both": ("vqa", "t2i")}


@dataclass(frozen=True, kw_only=True)
class DirectionsStudy(UnifiedStudy):
    """Train understanding alone, generation alone, and both, with equal samples of each."""

    tokenizer: str
    """The VQRAE tokenizer of all three."""


def study_directions(config: DirectionsStudy) -> list[dict[str, Any]]:
    """Rows of the three; writes OUT/table.csv, OUT/table.md and OUT/plot.svg.

    All take the same number of steps. A step of "both" holds a batch of each direction, so that
    each direction sees what it sees alone, and costs the sum.

    Command: vqrae study directions --out runs/directions --data runs/scenes --tokenizer TOKENIZER
    Cost: about 35 minutes on one CPU core.
    """
    cells = [
        Cell(name, {"trained": name}, partial(_cell, config, tasks))
        for name, tasks in _TASKS.items()
    ]
    out = Path(config.out)
    rows = run_grid(cells, out, config)
    write_csv(out / "table.csv", rows)
    columns = [key for key in rows[-1] if key != "trained"]
    head = ("trained", *columns)
    table = markdown_table(head, [[row.get(key) for key in head] for row in rows])
    title = f"# Directions: {config.steps} steps, {config.batch_size} samples of each in a step\n\n"
    write_whole(out / "table.md", title + table)
    write_whole(out / "plot.svg", _plot(rows).decode())
    return rows


def _plot(rows: list[dict[str, Any]]) -> bytes:
    def groups(*names: str) -> dict[str, dict[str, float]]:
        return {
            name.removeprefix("geneval_"): {r["trained"]: r[name] for r in rows if name in r}
            for name in names
        }

    geneval = [name for name in rows[-1] if name.startswith("geneval")]
    return bars_plot(
        [
            ("Questions answered right, share", groups("vqa")),
            ("Validation loss of text to image, nats per code", groups("t2i_loss")),
            ("Drawings judged right, share", groups(*geneval)),
        ]
    )


def _cell(config: DirectionsStudy, tasks: tuple[str, ...], folder: Path) -> Mapping[str, Any]:
    size = config.batch_size * len(tasks)
    model = train_unified(config, folder, config.tokenizer, only(*tasks), size)
    row: dict[str, Any] = {}
    if "vqa" in tasks:
        row |= understanding_row(config, model)
    if "t2i" in tasks:
        row |= generation_row(config, model)
    return row
