"""`vqrae eval dpg`: draws DPG-Bench's prompts and has a judge answer its questions about them."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from vqrae.scripts._model import model_folder
from vqrae.scripts._progress import progress_bar
from vqrae.scripts._sampling import Sampling

if TYPE_CHECKING:
    from vqrae.eval.dpg import Prompt
    from vqrae.eval.judges import Judge

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Dpg(Sampling):
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
    model: str | None = None
    """Folder of the model; by default $VQRAE_MODEL or the one that ships."""
    pictures: str | None = None
    """Judge this folder of ITEM_ID.png instead of drawing."""
    resolution: int | None = None
    """Side of each picture in a grid; by default half of it."""
    draw_only: bool = False
    """Draw into OUT/pictures and judge nothing."""
    out: str = "runs/dpg"
    """Where pictures, results.json and items.jsonl go; the same command again goes on."""
    images_per_prompt: int = 4
    """Drawings of each prompt, in a 2 x 2 grid."""
    seed: int = 0
    """Picture j of a prompt is drawn with seed + j."""
    batch_size: int = 64
    """Pictures drawn at once; on a CPU no picture depends on it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""


def _check(config: Dpg) -> None:
    """What can be wrong is found before hours of drawing."""
    if not 1 <= config.images_per_prompt <= 4:
        raise ValueError(f"images per prompt must be 1 to 4, not {config.images_per_prompt}")
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"limit must be at least 1, not {config.limit}")
    if config.draw_only and config.pictures is not None:
        raise ValueError("--draw-only draws and --pictures does not; give one of them")
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
    from vqrae.eval.dpg import comparison, read_dpg, score_dpg
    from vqrae.training._process import pick_device

    prompts = read_dpg(config.csv, limit=config.limit)
    device = pick_device(config.device)
    pictures = Path(config.pictures) if config.pictures else _draw(config, prompts, device)
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
    from rich.console import Console
    from rich.table import Table

    head, rows = comparison(result)
    table = Table(title=f"DPG-Bench by {judge.name}, {len(prompts)} prompts")
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    details = result.details
    if details["unclear answers"]:
        sys.stdout.write(
            f"{details['unclear answers']} of {details['answers']} answers are neither yes nor no "
            "and count as no\n"
        )
    sys.stdout.write("no official numbers: these are of another judge, see the docs\n")
    sys.stdout.write(f"results: {Path(config.out) / 'results.json'}\n")


def _draw(config: Dpg, prompts: list[Prompt], device: object) -> Path:
    from vqrae.eval._drawings import drawn_by
    from vqrae.eval._ranks import join_ranks
    from vqrae.eval.dpg import draw_dpg
    from vqrae.eval.protocol import file_sha256
    from vqrae.generation import load_unified
    from vqrae.training._process import barrier

    folder = model_folder(config.model)
    rank, world = join_ranks()
    model, processor = load_unified(folder, device=device)
    draw, card = drawn_by(
        folder,
        model,
        processor,
        images_per_prompt=config.images_per_prompt,
        seed=config.seed,
        batch_size=config.batch_size,
        sampling=config.sampling(),
    )
    with progress_bar("prompts drawn") as progress:
        pictures = draw_dpg(
            prompts,
            config.out,
            draw,
            # Of the whole file: --limit may grow.
            card | {"csv sha256": file_sha256(config.csv)},
            images_per_prompt=config.images_per_prompt,
            batch=max(1, config.batch_size // config.images_per_prompt),
            rank=rank,
            world=world,
            progress=progress,
        )
    barrier()
    return pictures
