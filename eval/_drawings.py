"""Folders of drawings that are drawn once: killed, the same call goes on where it was.

Two forms, each the official one of its benchmark: GenEval's numbered folders with one file for each
picture, and DPG-Bench's one file for each prompt with its pictures in a 2 x 2 grid.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from vqrae.data._files import write_whole
from vqrae.eval.benchmark_result import flat
from vqrae.eval.protocol import model_card, model_dtype

CARD = "drawings.json"
"""Beside the pictures: which model drew them, and how."""

Draw = Callable[[list[str]], list[list[Image.Image]]]


class Drawings(Protocol):
    """Pictures of prompts by their numbers, on disk."""

    root: Path
    prompts: Sequence[str]

    def missing(self, number: int) -> bool:
        """Whether any picture of this prompt is not there."""

    def save(self, number: int, pictures: Sequence[Image.Image]) -> None:
        """Write those of a prompt's pictures that are missing, each file whole or not at all."""


class SampleFolders:
    """GenEval's form: 00000/metadata.jsonl and 00000/samples/0000.png."""

    def __init__(self, root: str | Path, metadata: Sequence[dict], per_prompt: int) -> None:
        self.root, self.metadata, self.per_prompt = Path(root), metadata, per_prompt
        self.prompts = [one["prompt"] for one in metadata]

    def folder(self, number: int) -> Path:
        return self.root / f"{number:05d}"

    def path(self, number: int, picture: int) -> Path:
        return self.folder(number) / "samples" / f"{picture:04d}.png"

    def missing(self, number: int) -> bool:
        paths = [self.path(number, picture) for picture in range(self.per_prompt)]
        return not all(p.is_file() for p in [self.folder(number) / "metadata.jsonl", *paths])

    def save(self, number: int, pictures: Sequence[Image.Image]) -> None:
        line = json.dumps(self.metadata[number], ensure_ascii=False)
        write_whole(self.folder(number) / "metadata.jsonl", line + "\n")
        for index, picture in enumerate(pictures):
            if not self.path(number, index).is_file():
                save_picture(picture, self.path(number, index))


class Grids:
    """DPG-Bench's form: NAME.png, up to four pictures in a 2 x 2 grid; one alone fills the file."""

    def __init__(
        self, root: str | Path, names: Sequence[str], prompts: Sequence[str], per_prompt: int
    ) -> None:
        if not 1 <= per_prompt <= 4:
            raise ValueError(f"a grid holds 1 to 4 pictures of a prompt, not {per_prompt}")
        self.root, self.names, self.prompts = Path(root), names, prompts
        self.per_prompt = per_prompt

    def path(self, number: int) -> Path:
        return self.root / f"{self.names[number]}.png"

    def missing(self, number: int) -> bool:
        return not self.path(number).is_file()

    def save(self, number: int, pictures: Sequence[Image.Image]) -> None:
        save_picture(grid_of(pictures), self.path(number))


def grid_of(pictures: Sequence[Image.Image]) -> Image.Image:
    """Up to four pictures of one size, row by row; one alone as it is."""
    if len(pictures) == 1:
        return pictures[0]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % 2 * width, index // 2 * height))
    return sheet


def cut_grid(
    sheet: Image.Image, per_prompt: int, resolution: int | None = None
) -> list[Image.Image]:
    """The pictures of a grid, row by row.

    resolution: the side of each picture; by default half of the sheet, all of it for one picture.
    """
    if resolution is not None:
        width = height = resolution
    elif per_prompt == 1:
        return [sheet]
    else:
        width, height = sheet.width // 2, sheet.height // 2
    corners = [(x * width, y * height) for y in (0, 1) for x in (0, 1)][:per_prompt]
    return [sheet.crop((x, y, x + width, y + height)) for x, y in corners]


def save_picture(picture: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            picture.save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def drawn_by(
    folder: str | Path,
    model: Any,
    processor: Any,
    *,
    images_per_prompt: int,
    seed: int = 0,
    batch_size: int = 64,
    sampling: Mapping[str, Any],
) -> tuple[Draw, dict[str, Any]]:
    """What draws prompts with a unified model, and the card that says how.

    sampling: options of `vqrae.generation.draw`; None takes the model's own.
    """
    from vqrae.eval.text_to_image import draw_with
    from vqrae.generation import own_sampling

    scale, min_p = own_sampling(model, sampling.get("guidance_scale"), sampling.get("min_p"))
    sampling = dict(sampling) | {"guidance_scale": scale, "min_p": min_p}
    draw = draw_with(
        model,
        processor,
        images_per_prompt=images_per_prompt,
        seed=seed,
        batch_size=batch_size,
        **sampling,
    )
    how = {"seed": seed, "dtype": model_dtype(model), "sampling": sampling}
    return draw, {"model": model_card({"model": folder}), "drawn": how}


def draw_missing(
    drawings: Drawings,
    draw: Draw,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Draw what this rank's share of the prompts lacks; return how many prompts that were.

    draw: prompts to pictures; what it draws must depend on the prompt alone. batch: prompts at
    once. progress: called with (prompts done, of all that were missing).
    """
    share = range(rank, len(drawings.prompts), world)
    numbers = [number for number in share if drawings.missing(number)]
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        drawn = draw([drawings.prompts[number] for number in some])
        for number, pictures in zip(some, drawn, strict=True):
            drawings.save(number, pictures)
        if progress:
            progress(start + len(some), len(numbers))
    return len(numbers)


def agree_card(root: Path, card: Mapping[str, Any]) -> None:
    """Say in the folder how its pictures are drawn, or see that those there were drawn so.

    Raises:
        ValueError: where they were drawn otherwise, naming what differs.
    """
    there = read_card(root)
    if there is None:
        write_whole(root / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        return
    ours, theirs = flat(json.loads(json.dumps(card))), flat(there)
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"the pictures in '{root}' were drawn with {name} {theirs.get(name)!r}, not "
                f"{ours.get(name)!r}; choose another folder or remove them"
            )


def read_card(root: Path) -> dict[str, Any] | None:
    """What drew the pictures of a folder, None where nothing says it."""
    path = root / CARD
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"'{path}' is broken; remove it and the pictures beside it") from None
