"""`vqrae eval geneval`: draws GenEval's prompts and judges them, or judges given pictures."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from vqrae.scripts._drawn_benchmark import DrawnBenchmark, print_table
from vqrae.scripts._progress import progress_bar

if TYPE_CHECKING:
    from vqrae.eval.geneval_benchmark import Detector

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenEval(DrawnBenchmark):
    """GenEval: six categories of prompts, judged by a detector. torchrun spreads the work."""

    detector: str | None = None
    """Folder of a Mask2Former for COCO instances, or "scenes" for pictures of the scenes world."""
    clip: str | None = None
    """Folder of a CLIP model, for colours; official is OpenAI's ViT-L/14."""
    prompts: str | None = None
    """File like evaluation_metadata.jsonl; by default the prompts are made from --prompt-seed."""
    prompt_seed: int = 43
    """Seed of the prompts; 43 gives the official 553."""
    prompts_per_category: int | None = None
    """The first so many of each category; by default all of a file, or 100 made."""
    pictures: str | None = None
    """Judge this folder in GenEval's form instead of drawing."""
    out: str = "runs/geneval"


def _prompts(config: GenEval) -> list[dict] | None:
    """None: those of the given pictures."""
    from vqrae.eval.geneval_prompts import coco_prompts, first_of_each
    from vqrae.eval.text_to_image import read_prompts

    if config.prompts is not None:
        return read_prompts(config.prompts, per_category=config.prompts_per_category)
    if config.pictures is not None:
        return None
    if config.detector == "scenes":
        raise ValueError(
            "the scenes detector knows shapes only; give --prompts of scenes, such as "
            "test/geneval.jsonl of `vqrae data scenes`"
        )
    most = config.prompts_per_category
    prompts = coco_prompts(config.prompt_seed, max(100, most or 0))
    return prompts if most is None else first_of_each(prompts, most)


def _detector(config: GenEval, device: object) -> Detector:
    if config.detector == "scenes":
        from vqrae.eval.geneval_benchmark import ScenesDetector

        return ScenesDetector()
    if config.detector is None or config.clip is None:
        raise ValueError(
            "give --detector and --clip, the folders of a Mask2Former and a CLIP model (or "
            "--detector scenes, or --draw-only)"
        )
    from vqrae.eval.mask2former import Mask2FormerDetector

    return Mask2FormerDetector(config.detector, config.clip, device=device)


def main(argv: list[str], prog: str = "vqrae eval geneval") -> None:
    config = tyro.cli(GenEval, args=argv, prog=prog)
    if config.images_per_prompt < 1:
        raise ValueError(f"images per prompt must be at least 1, not {config.images_per_prompt}")
    if config.prompts_per_category is not None and config.prompts_per_category < 1:
        raise ValueError(
            f"prompts per category must be at least 1, not {config.prompts_per_category}"
        )
    config.check_pictures()
    prompts = _prompts(config)
    from vqrae.eval.geneval_benchmark import comparison, draw_geneval, score_geneval
    from vqrae.training._process import pick_device

    device = pick_device(config.device)
    # A detector that cannot be read is found before hours of drawing.
    detector = None if config.draw_only else _detector(config, device)
    if config.pictures:
        pictures = Path(config.pictures)
    else:
        pictures = config.drawn(draw_geneval, prompts or [], device)
    if detector is None:
        logger.info("%s: %d prompts drawn", pictures, len(prompts or ()))
        return
    with progress_bar("prompts judged") as progress:
        result = score_geneval(
            pictures,
            config.out,
            detector,
            prompts=prompts,
            device=str(device),
            progress=progress,
        )
    if result is None:
        return
    print_table(f"GenEval by {detector.name}, {len(result.items)} pictures", *comparison(result))
    sys.stdout.write("no official numbers: these are of another detector, see the docs\n")
    sys.stdout.write(f"results: {Path(config.out) / 'results.json'}\n")
