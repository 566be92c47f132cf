"""`vqrae eval BENCHMARK`: looks a benchmark up and runs it; `scenes` where none is named.

`vqrae eval compare` and `vqrae eval report` read what benchmarks have left.
"""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS: dict[str, tuple[str, str]] = {
    "scenes": ("eval_scenes", "the scenes world, all directions; the default"),
    "geneval": (
        "eval_geneval",
        "drawing: GenEval by Mask2Former and CLIP, or by the scenes detector",
    ),
    "dpg": ("eval_dpg", "drawing: DPG-Bench by a local or a remote judge"),
    "reconstruction": ("reconstruct", "rFID, PSNR, SSIM, LPIPS on any pictures"),
    "vqa": ("eval_vqa", "POPE, GQA, TextVQA, MMBench, MME, SEED-Bench, AI2D, lm-eval's own"),
}

READERS: dict[str, tuple[str, str]] = {
    "compare": (
        "eval_compare",
        "two results: differences and intervals; unlike protocols are refused",
    ),
    "report": ("eval_report", "one page of several results, beside the paper's"),
}


def _usage(prog: str) -> str:
    lines = [f"usage: {prog} [BENCHMARK] [options]", "", "benchmarks:"]
    lines += [f"  {name:<15} {about}" for name, (_, about) in BENCHMARKS.items()]
    lines += ["", "results that are there:"]
    lines += [f"  {name:<15} {about}" for name, (_, about) in READERS.items()]
    lines += ["", f"`{prog} BENCHMARK --help` lists its options."]
    return "\n".join(lines) + "\n"


def main(argv: list[str], prog: str = "vqrae eval") -> None:
    if argv and argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage(prog))
        return
    name, rest = ("scenes", argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    known = BENCHMARKS | READERS
    if name not in known:
        raise ValueError(f"there is no benchmark {name!r}; choose one of {', '.join(known)}")
    import_module(f"vqrae.scripts.{known[name][0]}").main(rest, f"{prog} {name}")
