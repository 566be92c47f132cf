"""`vqrae eval scenes`: the scenes world; prints the table, writes results and report.html."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from vqrae.assets import nano_folder
from vqrae.scripts._model import model_folder
from vqrae.scripts._sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Evaluate(Sampling):
    """Measure a unified model, or a tokenizer alone, on a test split."""

    model: str | None = None
    """Folder of the model; by default $VQRAE_MODEL or the one that ships."""
    data: str | None = None
    """Folder written by `vqrae data scenes`; by default OUT/data, written if it is not there."""
    out: str = "runs/eval"
    """Where results.json, items.jsonl, report.html and pictures go."""
    stage1: str | None = None
    """Folder of the stage-1 tokenizer, to stand beside."""
    teacher: str | None = None
    """Folder of the pretrained SigLIP model, for zero-shot accuracy before and after."""
    images: int | None = None
    """Test pictures to reconstruct; by default all."""
    questions: int = 1000
    """Questions to ask."""
    prompts_per_category: int = 25
    """GenEval prompts of each category."""
    images_per_prompt: int = 4
    """Drawings of each prompt."""
    lpips_weights: str | None = None
    """File of LPIPS weights; without it LPIPS is not measured."""
    seed: int = 0
    """Seed of the drawings."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""


def _default_data(out: Path) -> Path:
    """The test split that the shipped model's card was measured on, and a little to train on, from
    which the baselines are made."""
    from vqrae.data import write_scenes

    return write_scenes(out / "data", train=2000, test=5000)


def main(argv: list[str], prog: str = "vqrae eval scenes") -> None:
    config = tyro.cli(Evaluate, args=argv, prog=prog)
    from rich.console import Console
    from vqrae.eval import build_table, evaluate, rich_table

    model, teacher = model_folder(config.model), config.teacher
    if teacher is None and model == str(nano_folder()):
        teacher = str(nano_folder("vfm"))
    results = evaluate(
        model,
        config.data or _default_data(Path(config.out)),
        config.out,
        stage1_tokenizer=config.stage1,
        teacher=teacher,
        images=config.images,
        questions=config.questions,
        prompts_per_category=config.prompts_per_category,
        images_per_prompt=config.images_per_prompt,
        **config.sampling(),
        lpips_weights=config.lpips_weights,
        seed=config.seed,
        device=config.device,
    )
    Console().print(rich_table(build_table(results), title=results["model"]["name"]))
    sys.stdout.write(f"report: {results['report']}\n")
