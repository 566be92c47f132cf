"""`vqrae nano`: train the model that ships with the package."""

from __future__ import annotations

import sys

import tyro
from vqrae.recipes.nano import Nano, nano


def main(argv: list[str], prog: str = "vqrae nano") -> None:
    config = tyro.cli(Nano, args=argv, prog=prog)
    from rich.console import Console
    from vqrae.eval import build_table, rich_table

    results = nano(config)
    Console().print(rich_table(build_table(results), title="on the held-out split"))
    sys.stdout.write(f"report: {results['report']}\nmodel:  {results['packed']}\n")
