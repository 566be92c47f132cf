"""The exact detector of the scenes world: what stands where in a picture, drawn or generated.

Backgrounds are nearly grey and objects are not, so saturated pixels are objects. Each connected
patch of them takes the palette colour that explains it best and the shape whose rendered mask, of
the renderer's own, fits its coverage best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage
from vqrae.data.scenes import CELL, COLORS, IMAGE_SIZE, SHAPES, SIZES, shape_mask

# A pixel belongs to an object from this chroma (largest minus smallest channel, of 255) on.
_MIN_CHROMA = 48
# Smaller patches are specks. The smallest true object, a small star, covers about 45 pixels.
_MIN_AREA = 16
# A patch that no shape explains at least this well (Dice overlap) is not an object.
_MIN_SCORE = 0.6
# No object is longer than this; a longer patch is several objects that touch.
_MAX_LENGTH = CELL + 3
# Side of the window in which a patch is compared with the shapes.
_WINDOW = 24

# Standard deviation, in pixels, of the blur that half of the templates have.
_BLUR = 1.2

_EIGHT = np.ones((3, 3), dtype=bool)
_NAMES = tuple(COLORS)
_PALETTE = np.array([COLORS[name] for name in _NAMES], dtype=np.float32)


@dataclass(frozen=True)
class Detected:
    """One object. `box` is (x0, y0, x1, y1) in pixels; `score` in [0, 1] is the fit of its shape
    times the share of its pixels that have its colour."""

    class_: str
    color: str
    box: tuple[float, float, float, float]
    score: float
    size: str = ""

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class _Templates:
    """Every shape in both sizes, sharp and blurred, centroid at and around the window's centre."""

    masks: np.ndarray  # (T, WINDOW * WINDOW)
    energy: np.ndarray  # (T,) sum of squares
    labels: list[tuple[str, str, float, float]]  # shape, size, x0 and y0 of the box


@lru_cache(maxsize=1)
def _templates() -> _Templates:
    masks, labels = [], []
    grid = np.arange(_WINDOW) + 0.5
    offsets = (-1.0, -0.5, 0.0, 0.5, 1.0)
    for shape in SHAPES:
        for size, extent in SIZES.items():
            start = (_WINDOW - extent) / 2
            plain = shape_mask(shape, extent, start, start, _WINDOW)
            # The box is moved so that the centroid lies in the centre.
            move_x = _WINDOW / 2 - float((plain.sum(0) * grid).sum() / plain.sum())
            move_y = _WINDOW / 2 - float((plain.sum(1) * grid).sum() / plain.sum())
            for dy in offsets:
                for dx in offsets:
                    x0, y0 = start + move_x + dx, start + move_y + dy
                    sharp = shape_mask(shape, extent, x0, y0, _WINDOW)
                    # A blurred twin, for generated pictures.
                    for mask in (sharp, ndimage.gaussian_filter(sharp, _BLUR)):
                        masks.append(mask.ravel())
                        labels.append((shape, size, x0, y0))
    stacked = np.stack(masks)
    return _Templates(stacked, (stacked**2).sum(axis=1), labels)


def detect(image: np.ndarray | Image.Image) -> list[Detected]:
    """Finds the objects of a scene, best score first.

    Robust to the mild blur and noise of a generated picture. Specks, and patches that look like no
    shape, are not objects.

    Args:
        image: a picture, or uint8 (64, 64, 3).

    Raises:
        ValueError: another size or type.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"the detector reads uint8 pictures of shape ({IMAGE_SIZE}, {IMAGE_SIZE}, 3), not "
            f"{image.dtype} {image.shape}; resize the picture first"
        )
    pixels = image.astype(np.float32)
    chroma = image.max(axis=2).astype(np.int16) - image.min(axis=2)
    saturated = chroma > _MIN_CHROMA
    if not saturated.any() or saturated.all():
        return []
    grey = pixels[~saturated]
    background = np.median(grey, axis=0)
    found = [_recognise(pixels, *patch, background) for patch in _patches(saturated)]
    return sorted((d for d in found if d), key=lambda d: -d.score)


def _patches(saturated: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(ys, xs, core) of each connected patch with its soft rim of one pixel, which is not core.

    A patch that is too long is cut along the grid of cells.
    """
    labels, number = ndimage.label(saturated)
    patches = []
    for index, (rows, cols) in enumerate(ndimage.find_objects(labels, number), 1):
        top, left = max(rows.start - 1, 0), max(cols.start - 1, 0)
        around = labels[top : rows.stop + 1, left : cols.stop + 1]
        core = around == index
        if np.count_nonzero(core) < _MIN_AREA:
            continue
        rim = ndimage.binary_dilation(core, _EIGHT) & (around == 0)
        ys, xs = np.nonzero(core | rim)
        patch = ys + top, xs + left, core[ys, xs]
        if max(rows.stop - rows.start, cols.stop - cols.start) <= _MAX_LENGTH:
            patches.append(patch)
            continue
        cells = patch[0] // CELL * IMAGE_SIZE + patch[1] // CELL
        for cell in np.unique(cells[patch[2]]):
            part = tuple(values[cells == cell] for values in patch)
            if np.count_nonzero(part[2]) >= _MIN_AREA:
                patches.append(part)
    return patches


def _recognise(
    pixels: np.ndarray, ys: np.ndarray, xs: np.ndarray, core: np.ndarray, background: np.ndarray
) -> Detected | None:
    """The object that a patch is, if any."""
    # Each pixel lies between the background and a colour: how far, and how near to that line.
    offset = pixels[ys, xs] - background
    lines = _PALETTE - background
    cover = np.clip(offset @ lines.T / (lines**2).sum(axis=1), 0, 1)
    inner, inner_cover = offset[core], cover[core]
    miss = ((inner[:, None] - inner_cover[..., None] * lines) ** 2).sum(axis=2)
    weights = inner_cover.max(axis=1)
    votes = np.bincount(miss.argmin(axis=1), weights=weights, minlength=len(_NAMES))
    color = int(votes.argmax())
    alpha = cover[:, color]

    # A window with the patch's centroid near its centre.
    left = round(float((xs + 0.5) @ alpha / alpha.sum()) - _WINDOW / 2)
    top = round(float((ys + 0.5) @ alpha / alpha.sum()) - _WINDOW / 2)
    wx, wy = xs - left, ys - top
    inside = (wx >= 0) & (wx < _WINDOW) & (wy >= 0) & (wy < _WINDOW)
    window = np.zeros((_WINDOW, _WINDOW), dtype=np.float32)
    window[wy[inside], wx[inside]] = alpha[inside]
    window = window.ravel()

    templates = _templates()
    dice = 2 * (templates.masks @ window) / (templates.energy + window @ window)
    best = int(dice.argmax())
    if dice[best] < _MIN_SCORE:
        return None
    shape, size, x0, y0 = templates.labels[best]
    x0, y0, extent = x0 + left, y0 + top, SIZES[size]
    score = float(dice[best] * votes[color] / votes.sum())
    return Detected(shape, _NAMES[color], (x0, y0, x0 + extent, y0 + extent), round(score, 4), size)
