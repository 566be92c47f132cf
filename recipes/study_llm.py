"""Language models of several sizes against the validation loss of text to image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from vqrae.data._files import write_whole
from vqrae.generation import load_unified
from vqrae.recipes._grid import Cell, markdown_table, run_grid, write_csv
from vqrae.recipes._study_plots import lines_plot
from vqrae.recipes._study_unified import UnifiedStudy, generation_row, only, train_unified


@dataclass(frozen=True, kw_only=True)
class LLMStudy(UnifiedStudy):
    """Train text to image with language models of several widths."""

    tokenizer: str
    """The VQRAE tokenizer of all."""
    widths: tuple[int, ...] = (32, 64, 96, 128, 192)
    """Widths; heads have 32 channels, MLPs are three times as wide."""
    depth: int = 4
    """Layers of all."""


def power_law(sizes: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Least squares of log loss on log size: loss = scale * size ** -exponent, and its R^2.

    Raises:
        ValueError: for fewer than two sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError("a power law needs at least two sizes")
    x, y = np.log(sizes), np.log(losses)
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (slope * x + intercept)
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1.0 - float((residual**2).sum()) / spread if spread > 0 else 1.0
    return {"scale": math.exp(intercept), "exponent": -float(slope), "r2": r2}


def study_llm(config: LLMStudy) -> list[dict[str, Any]]:
    """Rows of all widths; writes OUT/table.csv, OUT/table.md and OUT/plot.svg.

    Command: vqrae study llm --out runs/llm --data runs/scenes --tokenizer TOKENIZER
    Cost: about 35 minutes on one CPU core.

    Raises:
        ValueError: for a width that heads of 32 channels do not divide.
    """
    for width in config.widths:
        if width % 32:
            raise ValueError(f"width {width} is not a multiple of 32; heads have 32 channels")
    cells = [
        Cell(f"width-{w}", {"width": w, "depth": config.depth}, partial(_cell, config, w))
        for w in config.widths
    ]
    out = Path(config.out)
    rows = run_grid(cells, out, config, varied=("widths",))
    write_csv(out / "table.csv", rows)
    sizes, losses = [r["parameters"] for r in rows], [r["t2i_loss"] for r in rows]
    head = ("width", "depth", "parameters", "t2i_loss", "geneval")
    text = "# Size of the language model and text to image\n\n"
    text += f"{config.steps} steps of {config.batch_size} pictures; parameters without embeddings."
    text += "\n\n" + markdown_table(head, [[row[key] for key in head] for row in rows])
    lines = {"measured": (sizes, losses)}
    if len(set(sizes)) > 1:
        law = power_law(sizes, losses)
        text += (
            f"\nFitted: loss = {law['scale']:.3g} * parameters^-{law['exponent']:.3g} "
            f"(R² {law['r2']:.3f})\n"
        )
        ends = (min(sizes), max(sizes))
        fitted = [law["scale"] * size ** -law["exponent"] for size in ends]
        lines["fitted power law"] = (ends, fitted)
    write_whole(out / "table.md", text)
    plot = lines_plot(
        [("Validation loss of text to image", lines)],
        y="nats per code",
        x="parameters without embeddings",
        log=True,
    )
    write_whole(out / "plot.svg", plot.decode())
    return rows


def _cell(config: LLMStudy, width: int, folder: Path) -> Mapping[str, Any]:
    model = train_unified(
        config,
        folder,
        config.tokenizer,
        only("t2i"),
        config.batch_size,
        width=width,
        depth=config.depth,
        heads=width // 32,
        mlp_width=3 * width,
    )
    loaded, _ = load_unified(model)
    decoder = loaded.language_model.get_decoder()
    embeddings = loaded.get_input_embeddings().weight.numel()
    count = sum(p.numel() for p in decoder.parameters()) - embeddings
    return {"parameters": count, **generation_row(config, model)}
