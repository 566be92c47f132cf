"""`vqrae eval dpg`: draws DPG-Bench's prompts and has a judge answer its questions about them."""

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
    from vqrae.eval.judges import Judge

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Dpg(DrawnBenchmark):
    """DPG-Bench: long prompts, judged by yes-or-no questions. torchrun spreads the work."""

    csv: str
    """The official dpg_bench.csv, or a file of its columns."""
    judge: str | None = None
    """Folder of a model that answers questions about pictures: BLIP, ViLT, any that chats, ours."""
    judge_url: str | None = None
    """Address of a judge that speaks OpenAI's API, as http://localhost:8000/v1."""
    judge_model: str | None = None
    """Its model's name there."""
    judge_template: str | None = None
    """What it is asked, with {question} in it; by default what suits the judge."""
    judge_parallel: int = 8
    """Questions at once to a judge by its address."""
    limit: int | None = None
    """The first so many prompts."""
    pictures: str | None = None
    """Judge this folder of ITEM_ID.png instead of drawing."""
    resolution: int | None = None
    """Side of each picture in a grid; by default half of it."""
    out: str = "runs/dpg"
    images_per_prompt: int = 4
    """Drawings of each prompt, in a 2 x 2 grid."""


def _check(config: Dpg) -> None:
    """What can be wrong is found before hours of drawing."""
    if not 1 <= config.images_per_prompt <= 4:
        raise ValueError(f"images per prompt must be 1 to 4, not {config.images_per_prompt}")
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"limit must be at least 1, not {config.limit}")
    config.check_pictures()
    if config.draw_only:
        return
    if (config.judge is None) == (config.judge_url is None):
        raise ValueError("give one judge: --judge FOLDER, or --judge-url with --judge-model")
    if config.judge_url is not None and config.judge_model is None:
        raise ValueError("--judge-url needs --judge-model, the model's name there")
    from vqrae.eval.judges import check_template, judge_type

    if config.judge is not None:
        judge_type(config.judge)
    if config.judge_template is not None:
        check_template(config.judge_template)


def _judge(config: Dpg, device: object) -> Judge:
    from vqrae.eval.judges import EndpointJudge, LocalJudge

    if config.judge is not None:
        return LocalJudge(config.judge, device=device, template=config.judge_template)
    return EndpointJudge(
        config.judge_url,
        config.judge_model,
        template=config.judge_template,
        parallel=config.judge_parallel,
    )


def main(argv: list[str], prog: str = "vqrae eval dpg") -> None:
    config = tyro.cli(Dpg, args=argv, prog=prog)
    _check(config)
    from vqrae.eval.dpg import comparison, draw_dpg, read_dpg, score_dpg
    from vqrae.eval.protocol import file_sha256
    from vqrae.training._process import pick_device

    prompts = read_dpg(config.csv, limit=config.limit)
    device = pick_device(config.device)
    if config.pictures:
        pictures = Path(config.pictures)
    else:
        # Of the whole file: --limit may grow.
        facts = {"csv sha256": file_sha256(config.csv)}
        pictures = config.drawn(draw_dpg, prompts, device, facts)
    if config.draw_only:
        logger.info("%s: %d prompts drawn", pictures, len(prompts))
        return
    judge = _judge(config, device)
    with progress_bar("prompts judged") as progress:
        result = score_dpg(
            pictures,
            config.out,
            prompts,
            judge,
            images_per_prompt=config.images_per_prompt,
            resolution=config.resolution,
            device=str(device),
            progress=progress,
        )
    if result is None:
        return
    print_table(f"DPG-Bench by {judge.name}, {len(prompts)} prompts", *comparison(result))
    details = result.details
    if details["unclear answers"]:
        sys.stdout.write(
            f"{details['unclear answers']} of {details['answers']} answers are neither yes nor no "
            "and count as no\n"
        )
    sys.stdout.write("no official numbers: these are of another judge, see the docs\n")
    sys.stdout.write(f"results: {Path(config.out) / 'results.json'}\n")
