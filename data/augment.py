"""Pictures moved and mirrored at random, so that few of them teach more than their places."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageOps


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What may happen to a picture that is read; nothing by default.

    Only what leaves the texts true: no flips where they speak of left and right or of letters.
    """

    flips: bool = False
    """Mirror it left to right, upside down, both, or not at all, with equal chances."""
    shift: float = 0.0
    """Move it by up to this share of its width and height; its edge pixels fill the gap."""

    def __post_init__(self) -> None:
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift is a share of the picture from 0 to below 1, not {self.shift}")

    @property
    def changes(self) -> bool:
        """Whether anything can happen."""
        return self.flips or self.shift > 0

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A picture of the same size and mode."""
        if self.flips:
            if rng.random() < 0.5:
                image = ImageOps.mirror(image)
            if rng.random() < 0.5:
                image = ImageOps.flip(image)
        if self.shift:
            image = _moved(image, *(self._step(rng, side) for side in image.size))
        return image

    def _step(self, rng: random.Random, side: int) -> int:
        most = round(self.shift * side)
        return rng.randint(-most, most)


def _moved(image: Image.Image, dx: int, dy: int) -> Image.Image:
    """To the right by dx pixels and down by dy."""
    from torchvision.transforms import functional

    width, height = image.size
    # Left, top, right, bottom.
    room = [max(dx, 0), max(dy, 0), max(-dx, 0), max(-dy, 0)]
    padded = functional.pad(image, room, padding_mode="edge")
    left, top = room[2], room[3]
    return padded.crop((left, top, left + width, top + height))
