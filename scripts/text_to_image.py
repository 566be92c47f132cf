"""`vqrae draw "a red circle above a blue star" -o out.png -n 4`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from vqrae.scripts._model import Loading
from vqrae.scripts._progress import progress_bar
from vqrae.scripts._sampling import Sampling

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Draw(Loading, Sampling):
    """Draw pictures of a prompt."""

    prompt: tyro.conf.Positional[str]
    """What to draw."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "out.png"
    """Picture file to write. With -n above 1 it shows all of them side by side, and each is also
    written on its own: out-1.png, out-2.png ..."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """How many pictures."""
    seed: int = 0
    """Picture j is drawn with seed + j."""
    enlarge: int = 1
    """Write the pictures this many times larger, pixel by pixel."""


def main(argv: list[str], prog: str = "vqrae draw") -> None:
    config = tyro.cli(Draw, args=argv, prog=prog)
    out = Path(config.out)
    _check_output(out)
    if config.enlarge < 1:
        raise ValueError(f"enlarge must be at least 1, not {config.enlarge}")
    if not config.prompt.strip():
        raise ValueError("the prompt is empty; write what to draw")
    model, processor = config.load()
    from vqrae.generation import draw

    with progress_bar("codes") as progress:
        [pictures] = draw(
            model,
            processor,
            config.prompt,
            n=config.n,
            seed=config.seed,
            progress=progress,
            **config.sampling(),
        )
    pictures = [p.resize([side * config.enlarge for side in p.size], 0) for p in pictures]
    out.parent.mkdir(parents=True, exist_ok=True)
    if len(pictures) == 1:
        pictures[0].save(out)
    else:
        _side_by_side(pictures).save(out)
        for number, picture in enumerate(pictures, 1):
            picture.save(out.with_stem(f"{out.stem}-{number}"))
    logger.info("%s: %d picture%s", out, len(pictures), "s" * (len(pictures) > 1))


def _check_output(out: Path) -> None:
    from PIL import Image

    Image.init()
    suffix = out.suffix.lower()
    if Image.EXTENSION.get(suffix) not in Image.SAVE:
        raise ValueError(f"cannot write a picture named {str(out)!r}; end it in .png")
    if out.is_dir():
        raise ValueError(f"{str(out)!r} is a folder; give a file name ending in .png")


def _side_by_side(pictures: list):
    from PIL import Image

    width, height = pictures[0].size
    gap = max(2, width // 32)
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * (width + gap), 0))
    return sheet
