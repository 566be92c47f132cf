"""Between PIL pictures and pixel tensors. Legend: B batch, H W pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor
    from vqrae.tokenizer import VQRAEImageProcessor

    Preprocess = Callable[[Sequence[Image.Image]], Tensor]


def to_pixels(images: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] of images that are all of one size already.

    Raises ValueError where sizes differ: resizing is an image processor's work.
    """
    arrays = [
        np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        for image in images
    ]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"images of {len(shapes)} sizes in one batch; give an image processor")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """PIL images of (B, 3, H, W) pixels in [0, 1], clipped and rounded to 8 bit."""
    array = pixels.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(image) for image in array.permute(0, 2, 3, 1).contiguous().numpy()]


def preprocess_of(processor: VQRAEImageProcessor) -> Preprocess:
    """What gives a tokenizer's pictures as it wants them: (B, 3, H, W) float32 in [0, 1]."""
    return lambda some: processor(list(some))["pixel_values"]


def pixel_batches(
    images: Iterable, batch_size: int, preprocess: Preprocess | None = None
) -> Iterator[Tensor]:
    """(B, 3, H, W) batches in [0, 1] of PIL images, arrays, (3, H, W) or (B, 3, H, W) tensors.

    Ready-made batches are cut and joined to batch_size too, so that a result cannot depend on how
    the images came. preprocess: the model's image processor for what is not a tensor.
    """
    preprocess = preprocess or to_pixels
    waiting: list = []

    def emit() -> Tensor:
        if isinstance(waiting[0], torch.Tensor):
            batch = torch.stack(waiting)
        else:
            batch = preprocess(list(waiting))
        waiting.clear()
        return batch

    for item in images:
        members = item if isinstance(item, torch.Tensor) and item.ndim == 4 else [item]
        for member in members:
            waiting.append(member)
            if len(waiting) == batch_size:
                yield emit()
    if waiting:
        yield emit()


def strip(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures of one size beside each other, so many white pixels apart."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for column, picture in enumerate(pictures):
        sheet.paste(picture, (column * (width + gap), 0))
    return sheet


def pair_sheet(examples: Sequence[dict]) -> Image.Image:
    """Originals above reconstructions; examples: of evaluate_reconstruction, at least one."""
    rows = [strip([pair[name] for pair in examples]) for name in ("original", "reconstruction")]
    sheet = Image.new("RGB", (rows[0].width, 2 * rows[0].height))
    sheet.paste(rows[0], (0, 0))
    sheet.paste(rows[1], (0, rows[0].height))
    return sheet


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without any."""
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device
