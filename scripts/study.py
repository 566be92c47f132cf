"""`vqrae study NAME --out DIR ...`: run or resume a grid of trainings and tabulate it."""

from __future__ import annotations

import importlib
import sys

import tyro

# name: (module, config class, function, what it compares)
STUDIES = {
    "codebook": ("study_codebook", "CodebookStudy", "code dimensions and codebook sizes"),
    "strategy": ("study_strategy", "StrategyStudy", "end to end or two stages, distilled or not"),
    "llm": ("study_llm", "LLMStudy", "sizes of the language model, with a fitted power law"),
    "guidance": ("study_guidance", "GuidanceStudy", "guidance scales of one model's drawings"),
    "directions": ("study_directions", "DirectionsStudy", "seeing, drawing, and both together"),
}


def main(argv: list[str], prog: str = "vqrae study") -> None:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"usage: {prog} NAME --out DIR [options]", "", "studies:"]
        lines += [f"  {name:<11} {about}" for name, (_, _, about) in STUDIES.items()]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    if argv[0] not in STUDIES:
        known = ", ".join(STUDIES)
        raise ValueError(f"there is no study {argv[0]!r}; choose one of {known}")
    place, config_class, _ = STUDIES[argv[0]]
    module = importlib.import_module(f"vqrae.recipes.{place}")
    config = tyro.cli(getattr(module, config_class), args=argv[1:], prog=f"{prog} {argv[0]}")
    getattr(module, place)(config)
    sys.stdout.write(f"table: {config.out}/table.md\n")
