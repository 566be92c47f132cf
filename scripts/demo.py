"""`vqrae demo`: the whole chain from nothing to a report."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro
from vqrae.recipes.demo import Demo, demo


def main(argv: list[str], prog: str = "vqrae demo") -> None:
    config = tyro.cli(Demo, args=argv, prog=prog)
    from rich.console import Console
    from vqrae.eval import build_table, rich_table

    results = demo(config)
    console = Console()
    console.print(rich_table(build_table(results), title="on the held-out split"))
    met = results["criteria"]
    model = Path(config.out) / "unified" / "final"
    sys.stdout.write(
        f"{met['met']} of {met['of']} criteria met\n"
        f'draw:   vqrae draw "two green stars" --model {model} -o out.png -n 4\n'
        f"chat:   vqrae chat {config.out}/data/test/images/test-000000.png --model {model}\n"
        f"report: {results['report']}\n"
    )
