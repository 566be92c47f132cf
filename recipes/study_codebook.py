"""Codebook dimension and codebook size, one factor at a time (paper: the codebook ablation)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vqrae.data import ShardDataset
from vqrae.data._files import write_whole
from vqrae.eval._pictures import preprocess_of
from vqrae.eval.paper_rows import CODEBOOK
from vqrae.eval.reconstruction import evaluate_reconstruction
from vqrae.recipes._grid import Cell, markdown_table, run_grid, write_csv
from vqrae.recipes._study_plots import lines_plot
from vqrae.recipes.scenes_tokenizer import ScenesTokenizer1, scenes_tokenizer_1
from vqrae.tokenizer import VQRAEImageProcessor, VQRAEModel

_PAPER_WIDTH = 1152


@dataclass(frozen=True, kw_only=True)
class CodebookStudy:
    """Train stage 1 at several code dimensions and codebook sizes."""

    out: str
    """Folder of the study."""
    data: str
    """Folder of training and test shards, such as `vqrae data scenes` writes."""
    vfm: str
    """The vision foundation model."""
    dims: tuple[int, ...] = (16, 64, 128, 192, 256)
    """Code dimensions e, at `size`."""
    sizes: tuple[int, ...] = (128, 256, 512, 2048)
    """Codebook sizes k, at `dim`."""
    dim: int = 192
    """The code dimension while sizes are compared."""
    size: int = 1024
    """The codebook size while dimensions are compared."""
    init: str = "pixels"
    """How stage 1 starts: pixels or isometry (k-means either way), or random codes."""
    steps: int = 800
    """Steps of each cell."""
    images: int = 2000
    """Test pictures to reconstruct."""
    seed: int = 0
    """Seed of every cell."""


def study_codebook(config: CodebookStudy) -> list[dict[str, Any]]:
    """Rows of all cells; writes OUT/table.csv, OUT/table.md beside the paper's, OUT/plot.svg.

    Command: vqrae study codebook --out runs/codebook --data runs/scenes --vfm runs/vfm/final
    Cost: about 1.5 minutes a cell on one CPU core.

    Raises:
        ValueError: for an unknown init.
    """
    if config.init not in ("pixels", "isometry", "random"):
        raise ValueError(f"init is {config.init!r}; choose pixels, isometry or random")
    pairs = [(config.size, e) for e in config.dims] + [(k, config.dim) for k in config.sizes]
    cells = [
        Cell(f"k{k}-e{e}", {"k": k, "e": e}, partial(_cell, config, k, e))
        for k, e in dict.fromkeys(pairs)
    ]
    out = Path(config.out)
    rows = run_grid(cells, out, config, varied=("dims", "sizes", "dim", "size"))
    _report(config, rows, out)
    return rows


def _cell(config: CodebookStudy, k: int, e: int, folder: Path) -> Mapping[str, Any]:
    recipe = ScenesTokenizer1(
        run=str(folder / "stage1"),
        data=config.data,
        vfm=config.vfm,
        codebook_size=k,
        code_dim=e,
    )
    loss = recipe.loss
    if config.init == "random":
        # As the paper has it: no start from data, nothing revived.
        loss = replace(loss, codebook_init="random", projection_init="isometry", revive_every=0)
        loss = replace(loss, collapse_below=0.0)
    else:
        loss = replace(loss, projection_init=config.init)
    train = replace(recipe.train, steps=config.steps, seed=config.seed)
    scenes_tokenizer_1(replace(recipe, loss=loss, train=train))
    return reconstruction_row(folder / "stage1" / "final", config.data, config.images)


def reconstruction_row(tokenizer: Path, data: str, images: int) -> dict[str, Any]:
    """PSNR, SSIM, utilisation and perplexity of a saved tokenizer on the test split."""
    model = VQRAEModel.from_pretrained(tokenizer).eval()
    processor = VQRAEImageProcessor(model.config.image_size)
    test = ShardDataset(f"{data}/test", seed=0, shuffle=0, epochs=1)
    pictures = (sample["image"] for _, sample in zip(range(images), test, strict=False))
    found = evaluate_reconstruction(model, pictures, preprocess=preprocess_of(processor))
    row = {name: float(found[name]) for name in ("psnr", "ssim", "usage", "perplexity")}
    return row | {"width": model.config.feature_dim}


def _report(config: CodebookStudy, rows: list[dict], out: Path) -> None:
    write_csv(out / "table.csv", rows)
    head = ("k", "e", "e / width", "PSNR (dB)", "SSIM", "utilisation", "perplexity")
    ours = [
        (r["k"], r["e"], r["e"] / r["width"], r["psnr"], r["ssim"], r["usage"], r["perplexity"])
        for r in rows
    ]
    theirs = [(k, e, e / _PAPER_WIDTH, *found, None) for (k, e), found in CODEBOOK.items()]
    text = "\n".join(
        (
            f"# Codebook study: {config.steps} steps of stage 1, init {config.init}\n",
            markdown_table(head, ours),
            "The paper's, on ImageNet-1K (e <= 256 does not converge):\n",
            markdown_table(head, theirs),
        )
    )
    write_whole(out / "table.md", text)
    by_dim = [r for r in rows if r["k"] == config.size]
    by_size = [r for r in rows if r["e"] == config.dim]
    by_dim.sort(key=lambda r: r["e"])
    by_size.sort(key=lambda r: r["k"])
    panels = [
        (
            f"PSNR by code dimension / encoder width (k = {config.size})",
            {
                "ours": ([r["e"] / r["width"] for r in by_dim], [r["psnr"] for r in by_dim]),
                "paper": _paper_line(lambda k, e: k == 16384, lambda k, e: e / _PAPER_WIDTH),
            },
        ),
        (
            f"PSNR by codebook size / chosen size (e = {config.dim})",
            {
                "ours": ([r["k"] / config.size for r in by_size], [r["psnr"] for r in by_size]),
                "paper": _paper_line(lambda k, e: e == 1536, lambda k, e: k / 16384),
            },
        ),
    ]
    write_whole(out / "plot.svg", lines_plot(panels, y="dB").decode())


def _paper_line(keep, x) -> tuple[list[float], list[float]]:
    points = sorted((x(k, e), found[0]) for (k, e), found in CODEBOOK.items() if keep(k, e))
    return [a for a, _ in points], [b for _, b in points]
