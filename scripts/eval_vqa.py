"""`vqrae eval vqa`: POPE, GQA, TextVQA, MMBench, MME, SEED-Bench, AI2D and lm-eval's own tasks."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

import tyro
from vqrae.scripts._model import model_folder


@dataclass(frozen=True, kw_only=True)
class VQA:
    """Ask a unified model the questions of public benchmarks. torchrun spreads them over ranks."""

    tasks: tuple[str, ...] = ()
    """Benchmarks, or tasks and groups of lm-eval such as mmmu_val; left out, ours are listed."""
    data: str | None = None
    """Folder that holds a folder for each benchmark; by default the hub's cache."""
    model: str | None = None
    """Folder of the model; by default $VQRAE_MODEL or the one that ships."""
    out: str = "runs/vqa"
    """Where results.json and items.jsonl go."""
    limit: int | None = None
    """The first so many questions of each task; by default all."""
    batch_size: int = 16
    """Questions at once; no number depends on it."""
    seed: int = 0
    """Of the guesses that MMMU's rule makes for answers that it cannot read."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""


def main(argv: list[str], prog: str = "vqrae eval vqa") -> None:
    config = tyro.cli(VQA, args=argv, prog=prog)
    if not config.tasks:
        sys.stdout.write(_listing(prog))
        return
    from vqrae.eval.vqa_tasks import comparison, run

    for noisy in ("lm_eval", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    result = run(
        model_folder(config.model),
        config.tasks,
        data=config.data,
        out=config.out,
        limit=config.limit,
        batch_size=config.batch_size,
        device=config.device,
        seed=config.seed,
    )
    if result is None:
        return
    from rich.console import Console
    from rich.table import Table

    asked = sum(card["questions"] for card in result.protocol["tasks"].values())
    table = Table(
        title=f"{result.model['name']}: {asked} questions, in percent (MME: points)",
        caption="The paper's numbers, not ours: (a) SigLIP2-512 with Vicuna-13B, (b) InternViT "
        "with Qwen2.5-7B",
    )
    table.add_column("", overflow="fold")
    for head in ("this model", "paper (a)", "paper (b)"):
        table.add_column(head, justify="right", no_wrap=True, min_width=len(head))
    for row in comparison(result):
        table.add_row(*row)
    Console().print(table)
    sys.stdout.write(f"results: {config.out}/results.json\n")


def _listing(prog: str) -> str:
    from vqrae.eval.vqa_tasks import our_tasks

    lines = [f"{'task':<12} {'in --data':<42} what it asks"]
    lines += [f"{name:<12} {t['data']:<42} {t['about']}" for name, t in our_tasks().items()]
    lines += [
        "",
        f"`{prog} --tasks pope gqa --data DIR`; lm-eval's own, such as mmmu_val, run too.",
    ]
    return "\n".join(lines) + "\n"
