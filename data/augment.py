"""Pictures moved and mirrored at random, so that few of them teach more than their places."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageOps


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What may happen to a picture; nothing by default.

    Only what leaves the texts true: no mirroring where they speak of left and right or of letters.
    """

    mirror: bool = False
    """Mirror half of the pictures left to right."""
    flip: bool = False
    """Turn half of them upside down."""
    crop: float | None = None
    """Cut a square out somewhere, of a side from this share of the shorter side to all of it; 1
    gives the largest square there is (paper: "random crop"), None leaves the picture whole."""
    shift: float = 0.0
    """Move it by up to this share of its width and height; its edge pixels fill the gap."""

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"crop is a share of the picture above 0 up to 1, not {self.crop}")
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift is a share of the picture from 0 to below 1, not {self.shift}")

    @property
    def changes(self) -> bool:
        """Whether anything can happen."""
        return self.mirror or self.flip or self.crop is not None or self.shift > 0

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A picture of the same mode, and of the same size but for `crop`."""
        if self.crop is not None:
            image = _square(image, self.crop, rng)
        if self.mirror and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        if self.flip and rng.random() < 0.5:
            image = ImageOps.flip(image)
        if self.shift:
            image = _moved(image, *(self._step(rng, side) for side in image.size))
        return image

    def _step(self, rng: random.Random, side: int) -> int:
        most = round(self.shift * side)
        return rng.randint(-most, most)


def _square(image: Image.Image, least: float, rng: random.Random) -> Image.Image:
    short = min(image.size)
    side = rng.randint(max(1, round(least * short)), short)
    left, top = (rng.randint(0, length - side) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _moved(image: Image.Image, dx: int, dy: int) -> Image.Image:
    """To the right by dx pixels and down by dy."""
    from torchvision.transforms import functional

    width, height = image.size
    # Left, top, right, bottom.
    room = [max(dx, 0), max(dy, 0), max(-dx, 0), max(-dy, 0)]
    padded = functional.pad(image, room, padding_mode="edge")
    left, top = room[2], room[3]
    return padded.crop((left, top, left + width, top + height))
