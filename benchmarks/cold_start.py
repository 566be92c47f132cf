"""How long a command takes from a fresh process, and how much of it is ours rather than imports.

Run: python benchmarks/cold_start.py

`imports` is a process that imports what the command imports of others' modules, in the same order,
and does nothing: Python's own start and end are in it. The rest is ours: our modules, loading the
model, drawing, writing. Both are the best of several runs, in turns, since disks and neighbours
make single ones slow.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 4
_LINE = re.compile(r"import time:\s+\d+ \|\s+\d+ \|\s*(\S+)")
_IMPORT_ALL = """
import importlib, sys
for name in open(sys.argv[1]).read().split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass
"""


def imported(command: list[str]) -> list[str]:
    """Others' modules that a vqrae command imports, in order."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
    )
    return [name for name in _LINE.findall(done.stderr) if name.partition(".")[0] != "vqrae"]


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture, names = str(Path(folder) / "out.png"), Path(folder) / "names"
        commands = {
            "vqrae --help": ["--help"],
            "vqrae draw": ["draw", "two red stars above a green circle", "-o", picture],
            "vqrae chat": ["chat", picture, "How many stars are there?"],
        }
        print(f"{'':<14}{'seconds':>9}{'imports':>9}{'ours':>7}{'share of ours':>15}")
        for name, arguments in commands.items():
            command = ["-m", "vqrae.scripts.main", *arguments]
            names.write_text("\n".join(imported(command)))
            alone = ["-c", _IMPORT_ALL, str(names)]
            runs = [(seconds(command), seconds(alone)) for _ in range(RUNS)]
            whole, others = (min(column) for column in zip(*runs, strict=True))
            ours = max(0.0, whole - others)
            print(f"{name:<14}{whole:9.2f}{others:9.2f}{ours:7.2f}{ours / whole:15.0%}")


if __name__ == "__main__":
    main()
