"""`vqrae train RECIPE --run DIR ...`: run or resume one recipe.

Launchers take this file, `-m vqrae.scripts.train` or the command `vqrae train`: docs/launching.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro
from vqrae.recipes import RECIPES, load_recipe


def main(argv: list[str], prog: str = "vqrae train") -> None:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"usage: {prog} RECIPE --run DIR [options]", "", "recipes:"]
        lines += [f"  {name:<20} {about}" for name, (_, _, about) in RECIPES.items()]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    config_class, recipe = load_recipe(argv[0])
    recipe(tyro.cli(config_class, args=argv[1:], prog=f"{prog} {argv[0]}"))


if __name__ == "__main__":
    from vqrae.scripts._command import run_command, without_local_rank

    # Started as a file, Python looks for every module in its folder first.
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    argv = without_local_rank(sys.argv[1:])
    sys.exit(run_command("train", argv, "python -m vqrae.scripts.train"))
