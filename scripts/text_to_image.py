"""`vqrae draw "a red circle above a blue star" -o out.png -n 4`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

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
    compile: bool = False
    """Compile the steps first, on a GPU as CUDA graphs."""
    engine: str | None = None
    """Address of a vLLM or SGLang that serves --exported, such as http://127.0.0.1:8000: it gives
    the codes, without guidance, and --model is not used."""
    engine_kind: Literal["vllm", "sglang"] = "vllm"
    """Which one it is."""
    exported: str | None = None
    """Folder that `vqrae export` wrote, for --engine."""
    api_key: str | None = None
    """The engine's key; by default $VQRAE_API_KEY, and without it none."""


def main(argv: list[str], prog: str = "vqrae draw") -> None:
    config = tyro.cli(Draw, args=argv, prog=prog)
    out = Path(config.out)
    _check_output(out)
    if config.enlarge < 1:
        raise ValueError(f"enlarge must be at least 1, not {config.enlarge}")
    if not config.prompt.strip():
        raise ValueError("the prompt is empty; write what to draw")
    [pictures] = _through_engine(config) if config.engine or config.exported else _here(config)
    pictures = [p.resize([side * config.enlarge for side in p.size], 0) for p in pictures]
    out.parent.mkdir(parents=True, exist_ok=True)
    if len(pictures) == 1:
        pictures[0].save(out)
    else:
        _side_by_side(pictures).save(out)
        for number, picture in enumerate(pictures, 1):
            picture.save(out.with_stem(f"{out.stem}-{number}"))
    logger.info("%s: %d picture%s", out, len(pictures), "s" * (len(pictures) > 1))


def _here(config: Draw) -> list:
    model, processor = config.load(to_compile=config.compile)
    from vqrae.generation import compile_decoding, draw

    if config.compile:
        compile_decoding(model)
    with progress_bar("codes") as progress:
        return draw(
            model,
            processor,
            config.prompt,
            n=config.n,
            seed=config.seed,
            progress=progress,
            **config.sampling(),
        )


def _through_engine(config: Draw) -> list:
    if not (config.engine and config.exported):
        raise ValueError("--engine ADDRESS and --exported FOLDER belong together; give both")
    from vqrae.generation import RemoteModel

    remote = RemoteModel(
        config.exported,
        config.engine,
        engine=config.engine_kind,
        api_key=config.api_key or os.environ.get("VQRAE_API_KEY"),
    )
    own = remote.known["guidance_scale"]
    if config.guidance_scale is None and own != 1:
        logger.info("an engine draws without guidance; this model draws best at %g", own)
    with progress_bar("codes") as progress:
        return remote.draw(
            config.prompt,
            n=config.n,
            seed=config.seed,
            guidance_scale=1.0 if config.guidance_scale is None else config.guidance_scale,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            progress=progress,
        )


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
