"""`vqrae eval compare A B`: differences with intervals, between results that can be compared."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from vqrae.eval.compare import Comparison, ScoreRow


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Lay two results of one benchmark beside each other; refused where their protocols differ."""

    a: Annotated[str, tyro.conf.Positional]
    """Folder of the first result."""
    b: Annotated[str, tyro.conf.Positional]
    """Folder of the second."""
    allow: tuple[str, ...] = ()
    """Fields of the protocol that may differ, such as sampling.guidance_scale."""
    level: float = 0.95
    """Of the intervals."""
    resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""
    json: str | None = None
    """File for the comparison as JSON."""


def main(argv: list[str], prog: str = "vqrae eval compare") -> None:
    config = tyro.cli(Compare, args=argv, prog=prog)
    from vqrae.data._files import write_whole
    from vqrae.eval.compare import compare

    found = compare(
        config.a,
        config.b,
        allow=config.allow,
        level=config.level,
        count=config.resamples,
        seed=config.seed,
    )
    if config.json:
        text = json.dumps(found.to_dict(), indent=1, ensure_ascii=False)
        write_whole(config.json, text + "\n")
    sys.stdout.write(_head(found, config))
    # Not in a frame that fits the terminal: numbers would be cut.
    head = ("score", "A", "B", "B - A", f"{found.level:.0%} interval", "")
    lines = [head, *map(_cells, found.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:5], widths[1:5], strict=True)]
        sys.stdout.write("  ".join([*cells, line[5]]).rstrip() + "\n")
    sys.stdout.write(
        f"intervals: {found.resamples} resamples of {found.units} units, the same for both; a "
        "score without one is of the whole set; ↓: lower is better\n"
    )
    for name, values in found.environment.items():
        sys.stdout.write(f"note: {name} was {values[0]} for A, {values[1]} for B\n")


def _head(found: Comparison, config: Compare) -> str:
    lines = [found.benchmark, f"A: {config.a} ({found.models[0]})"]
    lines += [f"B: {config.b} ({found.models[1]})"]
    lines += [
        f"allowed to differ: {name} is {values[0]} in A, {values[1]} in B"
        for name, values in found.allowed.items()
    ]
    return "\n".join(lines) + "\n"


def _cells(row: ScoreRow) -> tuple[str, ...]:
    name = row.score
    if row.higher_is_better is False:
        name += " ↓"

    from vqrae.eval.compare import number

    interval = ""
    if row.interval is not None and row.verdict != "the same":
        interval = f"[{', '.join(number(end, '+') for end in row.interval)}]"
    cells = (number(row.a), number(row.b), number(row.difference, "+"))
    return (name, *cells, interval, row.verdict)
