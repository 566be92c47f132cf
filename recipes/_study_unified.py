"""What the studies of the unified model share: one run on chosen tasks, and its row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqrae.data import ShardDataset
from vqrae.eval.code_loss import code_loss
from vqrae.eval.text_to_image import evaluate_text_to_image
from vqrae.eval.vqa import evaluate_vqa
from vqrae.generation import load_unified
from vqrae.mllm.sequences import TASKS
from vqrae.recipes.scenes_unified import MixtureConfig, ScenesUnified, scenes_unified


@dataclass(frozen=True, kw_only=True)
class UnifiedStudy:
    """Options of every study that trains the unified model."""

    out: str
    """Folder of the study."""
    data: str
    """Folder written by `vqrae data scenes`."""
    steps: int = 1000
    """Steps of each unified run."""
    batch_size: int = 32
    """Samples of one direction in a step."""
    questions: int = 1000
    """Test questions."""
    prompts_per_category: int = 25
    """GenEval prompts of each category."""
    images: int = 1000
    """Test pictures of the validation loss, and of reconstructions."""
    guidance_scale: float = 1.5
    """Of the drawings."""
    seed: int = 0
    """Seed of every cell."""


def only(*tasks: str) -> MixtureConfig:
    """Equal shares of the tasks named, nothing of the others."""
    return MixtureConfig(**{task: float(task in tasks) for task in TASKS})


def train_unified(
    study: UnifiedStudy,
    folder: Path,
    tokenizer: str,
    mixture: MixtureConfig,
    batch_size: int,
    **fields: Any,
) -> Path:
    """One run of scenes-unified in `folder`; returns the folder of its model."""
    recipe = ScenesUnified(
        run=str(folder / "unified"),
        data=study.data,
        tokenizer=tokenizer,
        mixture=mixture,
        **fields,
    )
    train = replace(
        recipe.train,
        steps=study.steps,
        batch_size=batch_size,
        warmup=min(recipe.train.warmup, study.steps // 5),
        seed=study.seed,
    )
    scenes_unified(replace(recipe, train=train))
    return folder / "unified" / "final"


def understanding_row(study: UnifiedStudy, model_folder: Path) -> dict[str, Any]:
    """VQA accuracy, overall and by type."""
    model, processor = load_unified(model_folder)
    found = evaluate_vqa(
        model, processor, f"{study.data}/test/vqa.json", limit=study.questions, examples=0
    )
    return {"vqa": found["overall"], **{f"vqa_{k}": v for k, v in found["types"].items()}}


def generation_row(study: UnifiedStudy, model_folder: Path) -> dict[str, Any]:
    """Validation loss over codes, and GenEval overall and by category."""
    model, processor = load_unified(model_folder)
    test = ShardDataset(f"{study.data}/test", seed=0, shuffle=0, epochs=1)
    found = evaluate_text_to_image(
        model,
        processor,
        f"{study.data}/test/geneval.jsonl",
        prompts_per_category=study.prompts_per_category,
        guidance_scale=study.guidance_scale,
        seed=study.seed,
    )
    row = {"t2i_loss": code_loss(model, processor, test, limit=study.images)}
    return row | geneval_columns(found)


def geneval_columns(found: dict[str, Any]) -> dict[str, float]:
    """GenEval overall and by category, from what evaluate_text_to_image returns."""
    scores = {f"geneval_{name}": value for name, value in found["categories"].items()}
    return {"geneval": found["overall"], **scores}
