"""End to end or two stages, with distillation or without (paper: the training strategy table)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from vqrae.data._files import write_whole
from vqrae.eval._pictures import preprocess_of
from vqrae.eval.paper_rows import STRATEGY
from vqrae.eval.zero_shot import zero_shot_beside_teacher
from vqrae.recipes._grid import Cell, markdown_table, run_grid, write_csv
from vqrae.recipes._study_plots import bars_plot
from vqrae.recipes._study_unified import UnifiedStudy, only, train_unified, understanding_row
from vqrae.recipes.scenes_tokenizer import (
    ScenesTokenizer1,
    ScenesTokenizer2,
    scenes_tokenizer_1,
    scenes_tokenizer_2,
)
from vqrae.recipes.study_codebook import reconstruction_row
from vqrae.tokenizer import VQRAEImageProcessor, VQRAEModel


@dataclass(frozen=True, kw_only=True)
class StrategyStudy(UnifiedStudy):
    """Train a tokenizer in three ways, then a language model to answer on each."""

    vfm: str
    """The vision foundation model."""
    codebook_size: int = 1024
    """K."""
    code_dim: int = 192
    """E."""
    tokenizer_steps: int = 1600
    """Steps of each tokenizer; two stages take half of them each."""
    encoder_lr: float = 1e-3
    """Encoder's rate where it is trained: high enough that a run this short can spoil it."""


def study_strategy(config: StrategyStudy) -> list[dict[str, Any]]:
    """Rows of the three ways; writes OUT/table.csv, OUT/table.md beside the paper's, OUT/plot.svg.

    Command: vqrae study strategy --out runs/strategy --data runs/scenes --vfm runs/vfm/final
    Cost: about 40 minutes on 1 CPU core.
    """
    ways = ("end-to-end", "end-to-end-distilled", "two-stages")
    cells = [
        Cell(way, {"strategy": name}, partial(_cell, config, way))
        for way, name in zip(ways, STRATEGY, strict=True)
    ]
    out = Path(config.out)
    rows = run_grid(cells, out, config)
    write_csv(out / "table.csv", rows)
    kinds = [key for key in rows[0] if key.startswith("vqa")]
    own = ("psnr", "ssim", "usage", *(key for key in rows[0] if key == "zero_shot"))
    head = ("strategy", *own, *kinds)
    text = "\n".join(
        (
            f"# Training strategy: {config.tokenizer_steps} tokenizer steps, then {config.steps} "
            "steps of questions\n",
            markdown_table(head, [[row[key] for key in head] for row in rows]),
            "The paper's, on ImageNet and real benchmarks:\n",
            markdown_table(
                ("strategy", "psnr", "ssim", "MME-P", "MMB", "AI2D", "TQA"),
                [(name, *found) for name, found in STRATEGY.items()],
            ),
        )
    )
    write_whole(out / "table.md", text)
    write_whole(out / "plot.svg", _plot(rows).decode())
    return rows


def _plot(rows: list[dict[str, Any]]) -> bytes:
    """What the three ways give, ours and the paper's; MME-P, out of 2000, as a share too."""
    names = [row["strategy"] for row in rows]
    psnr = {
        "ours": {row["strategy"]: row["psnr"] for row in rows},
        "paper": {name: STRATEGY[name][0] for name in names},
    }
    reading = {"ours, VQA": {row["strategy"]: row["vqa"] for row in rows}}
    if "zero_shot" in rows[0]:
        reading["ours, zero-shot"] = {row["strategy"]: row["zero_shot"] for row in rows}
    for title, index, most in (
        ("MME-P", 2, 2000),
        ("MMB", 3, 100),
        ("AI2D", 4, 100),
        ("TQA", 5, 100),
    ):
        reading[f"paper, {title}"] = {name: STRATEGY[name][index] / most for name in names}
    return bars_plot(
        [("Reconstruction: PSNR in dB", psnr), ("Understanding: share of the full score", reading)]
    )


def _cell(config: StrategyStudy, way: str, folder: Path) -> Mapping[str, Any]:
    tokenizer = _two_stages(config, folder) if way == "two-stages" else None
    if tokenizer is None:
        tokenizer = _end_to_end(config, folder, 2.0 if way.endswith("distilled") else 0.0)
    row = reconstruction_row(tokenizer, config.data, config.images)
    row |= _zero_shot_row(tokenizer, config.vfm)
    model = train_unified(config, folder, str(tokenizer), only("vqa"), config.batch_size)
    return row | understanding_row(config, model)


def _zero_shot_row(tokenizer: Path, vfm: str) -> dict[str, float]:
    """How well the encoder still fits the texts of the foundation model that it was, and how well
    that does; nothing where it has no text tower."""
    if AutoConfig.from_pretrained(vfm).model_type != "siglip":
        return {}
    model = VQRAEModel.from_pretrained(tokenizer).eval()
    processor = VQRAEImageProcessor(model.config.image_size)
    found = zero_shot_beside_teacher(model, vfm, preprocess=preprocess_of(processor))
    return {
        "zero_shot": found["encoder"]["accuracy"],
        "zero_shot_teacher": found["teacher"]["accuracy"],
    }


def _first(config: StrategyStudy, run: Path, steps: int) -> ScenesTokenizer1:
    recipe = ScenesTokenizer1(
        run=str(run),
        data=config.data,
        vfm=config.vfm,
        codebook_size=config.codebook_size,
        code_dim=config.code_dim,
    )
    return replace(recipe, train=replace(recipe.train, steps=steps, seed=config.seed))


def _two_stages(config: StrategyStudy, folder: Path) -> Path:
    half = config.tokenizer_steps // 2
    scenes_tokenizer_1(_first(config, folder / "stage1", half))
    second = ScenesTokenizer2(
        run=str(folder / "stage2"),
        data=config.data,
        stage1=str(folder / "stage1" / "final"),
        perceptual_vfm=config.vfm,
    )
    loss = replace(second.loss, encoder_lr=config.encoder_lr, adversarial_start=None)
    train = replace(second.train, steps=half, seed=config.seed)
    scenes_tokenizer_2(replace(second, loss=loss, train=train))
    return folder / "stage2" / "final"


def _end_to_end(config: StrategyStudy, folder: Path, distillation: float) -> Path:
    recipe = _first(config, folder / "end-to-end", config.tokenizer_steps)
    loss = replace(
        recipe.loss,
        stage=2,
        end_to_end=True,
        distillation_weight=distillation,
        encoder_lr=config.encoder_lr,
    )
    scenes_tokenizer_1(replace(recipe, loss=loss))
    return folder / "end-to-end" / "final"
