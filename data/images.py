"""Reading any image file into RGB, or saying in one line why not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_DEEP_MODES = ("I", "F")
# Of JPEG, PNG, GIF and TIFF: a file that begins so and cannot be told is too short to be.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")


class ImageError(ValueError):
    """An image that cannot be read. The message is one line: the name, the cause and the mend."""


def open_image(
    source: str | Path | bytes, *, name: str | None = None, max_pixels: int = 100_000_000
) -> Image.Image:
    """Reads an image as RGB, the way a viewer would show it.

    The EXIF rotation is applied; transparency lies on white; 16-bit samples are scaled to 8 bits;
    of an animation the first frame is taken.

    Args:
        source: a path, or the file's bytes.
        name: what errors call it; by default the path.
        max_pixels: the most pixels that are decoded.

    Raises:
        ImageError: no such file, a directory, empty, not an image, truncated, damaged or too large.
    """
    if name is None:
        name = "<bytes>" if isinstance(source, bytes) else str(source)

    def error(cause: str) -> ImageError:
        return ImageError(f"cannot read image '{name}': {cause}")

    if isinstance(source, bytes):
        data = source
    else:
        path = Path(source)
        if not path.exists():
            raise error("there is no such file; check the path")
        if path.is_dir():
            raise error("it is a directory; give a file")
        try:
            data = path.read_bytes()
        except OSError as failure:
            raise error(f"{failure.strerror}; check its permissions") from None
    if not data:
        raise error("it is empty; save it again or remove it")

    too_large = f"it has more than {max_pixels} pixels; make it smaller"
    try:
        with warnings.catch_warnings():
            # Size is our own check; damaged metadata does not matter for the picture.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_pixels:
                raise error(too_large)
            image.load()
            return to_rgb(_upright(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise error(too_large) from None
    except UnidentifiedImageError:
        if data.startswith(_BEGINNINGS):
            raise error("it is truncated; save it again or remove it") from None
        raise error("it is not an image that Pillow knows; save it as PNG or JPEG") from None
    except (OSError, EOFError) as failure:
        if isinstance(failure, EOFError) or "truncated" in str(failure):
            raise error("it is truncated; save it again or remove it") from None
        raise error("it is damaged; save it again or remove it") from None
    except (SyntaxError, ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error):
        raise error("it is damaged; save it again or remove it") from None
    except MemoryError:
        raise error("it does not fit in memory; make it smaller") from None


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF rotation; unreadable EXIF counts as none."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of a picture in memory; see `open_image`."""
    if image.mode.startswith(_DEEP_MODES):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey samples of 16 or 32 bits or floats, scaled (Pillow's own conversion clips them)."""
    values = np.nan_to_num(values.astype(np.float64))
    top = float(values.max(initial=0.0))
    if top <= 1.0:
        full = 1.0  # floats in [0, 1]; integers that are 0 or 1 are a mask
    elif top <= 65535:
        full = 65535.0
    else:
        full = top
    return np.clip(values / full * 255 + 0.5, 0, 255).astype(np.uint8)
