"""What benchmarks of drawings share: their options, drawing itself, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqrae.scripts._model import model_folder
from vqrae.scripts._progress import progress_bar
from vqrae.scripts._sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class DrawnBenchmark(Sampling):
    """Prompts to draw, once, on any number of ranks, before anything is judged."""

    model: str | None = None
    """Folder of the model; by default $VQRAE_MODEL or the one that ships."""
    pictures: str | None = None
    """Judge this folder instead of drawing."""
    draw_only: bool = False
    """Draw into OUT/pictures and judge nothing."""
    out: str
    """Where pictures, results.json and items.jsonl go; the same command again goes on."""
    images_per_prompt: int = 4
    """Drawings of each prompt."""
    seed: int = 0
    """Picture j of a prompt is drawn with seed + j."""
    batch_size: int = 64
    """Pictures drawn at once; on a CPU no picture depends on it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""

    def check_pictures(self) -> None:
        """ValueError where pictures are to be drawn and given."""
        if self.draw_only and self.pictures is not None:
            raise ValueError("--draw-only draws and --pictures does not; give one of them")

    def drawn(
        self,
        draw_prompts: Callable[..., Path],
        prompts: Sequence[Any],
        device: object,
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        """This rank's share by `draw_prompts`, draw_geneval or draw_dpg; back when all have theirs.

        facts: what the pictures depend on besides the model and how it samples.
        """
        from vqrae.eval._drawings import drawn_by
        from vqrae.eval._ranks import join_ranks
        from vqrae.generation import load_unified
        from vqrae.training._process import barrier

        folder = model_folder(self.model)
        rank, world = join_ranks()
        model, processor = load_unified(folder, device=device)
        draw, card = drawn_by(
            folder,
            model,
            processor,
            images_per_prompt=self.images_per_prompt,
            seed=self.seed,
            batch_size=self.batch_size,
            sampling=self.sampling(),
        )
        with progress_bar("prompts drawn") as progress:
            pictures = draw_prompts(
                prompts,
                self.out,
                draw,
                card | dict(facts or {}),
                images_per_prompt=self.images_per_prompt,
                batch=max(1, self.batch_size // self.images_per_prompt),
                rank=rank,
                world=world,
                progress=progress,
            )
        barrier()
        return pictures


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose columns but for the nameless one are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
