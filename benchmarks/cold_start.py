"""How long a command takes from a fresh process, and how much of it is ours rather than imports.

Run: python benchmarks/cold_start.py

Imports are what `python -X importtime` counts for modules that are not vqrae's, and the start of
Python itself; the rest is ours: our modules, loading the model, drawing, writing. The best of
several runs, since disks and neighbours make single ones slow.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 3
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)")


def once(arguments: list[str]) -> tuple[float, float]:
    """Seconds in all, and seconds in imports of others, of one `vqrae ARGUMENTS`."""
    line = [sys.executable, "-X", "importtime", "-m", "vqrae.scripts.main", *arguments]
    start = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    others = sum(
        int(own) for own, name in _LINE.findall(done.stderr) if not name.startswith("vqrae")
    )
    return seconds, others / 1e6


def bare_python() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - start


def main() -> None:
    python = min(bare_python() for _ in range(RUNS))
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "out.png")
        commands = {
            "vqrae --help": ["--help"],
            "vqrae draw": ["draw", "two red stars above a green circle", "-o", picture],
            "vqrae chat": ["chat", picture, "How many stars are there?"],
        }
        print(f"{'':<14}{'seconds':>9}{'imports':>9}{'ours':>7}{'share of ours':>15}")
        for name, arguments in commands.items():
            seconds, others = min(once(arguments) for _ in range(RUNS))
            ours = max(0.0, seconds - others - python)
            print(f"{name:<14}{seconds:9.2f}{others:9.2f}{ours:7.2f}{ours / seconds:15.0%}")


if __name__ == "__main__":
    main()
