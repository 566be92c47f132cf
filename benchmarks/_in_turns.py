"""Candidates measured in turns in one run, each in a process of its own for its memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def serve(run: Callable[[], Any], facts: Callable[[Any], dict]) -> None:
    """In a child: `run` once for each line of stdin, answered by a line of JSON.

    It has "seconds", "peak" (MiB held at most, more than at the start), and what `facts` says of
    the result.
    """
    # What it holds now, not the peak while it was made.
    Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize() / 2**20
    for line in sys.stdin:
        if not line.strip():
            break
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "peak": _peak() - before, **facts(result)}
        del result
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _peak() -> float:
    """MiB that this process held at most since clear_refs was written to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def take_turns(names: Sequence[str], runs: int, options: Sequence[str]) -> dict[str, list[dict]]:
    """Start this script with `--child NAME` and `options` for each name; their answers."""
    # Large blocks go back to the system at once: the peak is what was asked for at one time, not
    # what the allocator keeps.
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    children = {
        name: subprocess.Popen(
            [sys.executable, sys.argv[0], "--child", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=surroundings,
        )
        for name in names
    }
    found: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(runs):
        for name, child in children.items():
            child.stdin.write("go\n")
            child.stdin.flush()
            found[name].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    return found


def best_and_peak(found: dict[str, list[dict]]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each name the least seconds, and the last peak in MiB."""
    best = {name: min(run["seconds"] for run in runs) for name, runs in found.items()}
    return best, {name: runs[-1]["peak"] for name, runs in found.items()}
