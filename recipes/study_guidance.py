"""Does guidance help? One model's drawings judged at several guidance scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from vqrae.assets import nano_folder
from vqrae.data._files import write_whole
from vqrae.data.scenes import CELL, GRID, SHAPES
from vqrae.eval.text_to_image import CATEGORIES, evaluate_text_to_image
from vqrae.generation import draw, load_unified
from vqrae.recipes._grid import Cell, markdown_table, run_grid, write_csv
from vqrae.recipes._study_plots import lines_plot
from vqrae.recipes._study_unified import geneval_columns


@dataclass(frozen=True, kw_only=True)
class GuidanceStudy:
    """Draw the same prompts at several guidance scales; nothing is trained."""

    out: str
    """Folder of the study."""
    data: str
    """Folder written by `vqrae data scenes`."""
    model: str | None = None
    """Folder of a unified model; by default the one that ships."""
    scales: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """Guidance scales: 0 forgets the prompt, 1 is no guidance."""
    temperature: float = 1.0
    """Of the sampling, at every scale."""
    min_p: float | None = None
    """Of the sampling, at every scale; by default the model's own."""
    prompts_per_category: int = 25
    """GenEval prompts of each category."""
    images_per_prompt: int = 4
    """Drawings of each prompt."""
    seed: int = 0
    """Seed of every cell."""


def study_guidance(config: GuidanceStudy) -> list[dict[str, Any]]:
    """Rows of all scales; writes OUT/table.csv, OUT/table.md and OUT/plot.svg.

    Command: vqrae study guidance --out runs/guidance --data runs/scenes
    Cost: about 15 seconds a scale on 2 CPU cores.
    """
    cells = []
    for scale in config.scales:
        settings = {
            "guidance_scale": scale,
            "temperature": config.temperature,
            "min_p": config.min_p,
            "model": config.model or "nano",
            "seed": config.seed,
        }
        cells.append(Cell(f"scale-{scale:g}", settings, partial(_cell, config, scale)))
    out = Path(config.out)
    rows = run_grid(cells, out, config, varied=("scales",))
    write_csv(out / "table.csv", rows)
    names = [name for name in ("geneval", *(f"geneval_{c}" for c in CATEGORIES)) if name in rows[0]]
    head = ("guidance scale", *(name.removeprefix("geneval_") for name in names), "places of 16")
    table = markdown_table(
        head,
        [[row["guidance_scale"], *(row[name] for name in names), row["places"]] for row in rows],
    )
    text = (
        "# Guidance: share of drawings judged right\n\n"
        f"{config.images_per_prompt} drawings of each of "
        f"{config.prompts_per_category} prompts a category, temperature {config.temperature}, "
        f"min_p {'of the model' if config.min_p is None else config.min_p}\n\n"
    )
    write_whole(out / "table.md", text + table)
    ordered = sorted(rows, key=lambda row: row["guidance_scale"])
    scales = [row["guidance_scale"] for row in ordered]
    lines = {
        name.removeprefix("geneval_"): (scales, [row[name] for row in ordered]) for name in names
    }
    overall = {"overall": lines.pop("geneval")}
    lines["places, of 16"] = (scales, [row["places"] / GRID**2 for row in ordered])
    panels = [("GenEval, overall", overall), ("By category, and places that objects take", lines)]
    plot = lines_plot(panels, y="share", x="guidance scale")
    write_whole(out / "plot.svg", plot.decode())
    return rows


def _cell(config: GuidanceStudy, scale: float, folder: Path) -> Mapping[str, Any]:
    model, processor = load_unified(config.model or nano_folder())
    found = evaluate_text_to_image(
        model,
        processor,
        f"{config.data}/test/geneval.jsonl",
        images_per_prompt=config.images_per_prompt,
        prompts_per_category=config.prompts_per_category,
        guidance_scale=scale,
        temperature=config.temperature,
        min_p=config.min_p,
        seed=config.seed,
    )
    spread = place_spread(
        model,
        processor,
        guidance_scale=scale,
        temperature=config.temperature,
        min_p=config.min_p,
        seed=config.seed,
    )
    return {**geneval_columns(found), "places": spread}


def place_spread(model: Any, processor: Any, *, per_shape: int = 8, **sampling: Any) -> float:
    """In how many of the grid's 16 cells objects stand whose prompt names no place: exp of the
    entropy of their cells, over drawings of "a photo of a SHAPE". Guidance that is too strong draws
    an object as soon as it can, in the first cell.
    """
    from vqrae.eval.scenes_detector import detect

    prompts = [f"a photo of a {shape}" for shape in SHAPES]
    drawings = draw(model, processor, prompts, n=per_shape, **sampling)
    found = [detect(picture) for pictures in drawings for picture in pictures]
    cells = [tuple(int(c // CELL) for c in o.center) for objects in found for o in objects]
    counts = np.array(list(Counter(cells).values()), dtype=float)
    shares = counts / counts.sum() if len(counts) else np.ones(1)
    return float(np.exp(-(shares * np.log(shares)).sum()))
