"""`vqrae eval report A B ...`: one page of several results."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained page: scores with intervals, the paper's, pictures, differences."""

    results: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that `vqrae eval` wrote; those of one benchmark stand beside each other."""
    out: str = "report.html"
    """The page."""
    runs: tuple[str, ...] = ()
    """Training runs whose loss curves to show."""
    title: str = "VQRAE results"
    """Of the page."""
    resamples: int = 1000
    """Of the bootstrap that gives the intervals."""


def main(argv: list[str], prog: str = "vqrae eval report") -> None:
    config = tyro.cli(Report, args=argv, prog=prog)
    from vqrae.eval.runs_report import write_runs_report

    path = write_runs_report(
        config.results, config.out, runs=config.runs, title=config.title, count=config.resamples
    )
    sys.stdout.write(f"report: {path}\n")
