"""Every odd kind of image file gives the right picture or one clear line."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from vqrae.data import ImageError, open_image

RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 40, height: int = 24) -> Image.Image:
    """Red on the left, green on the right; noisy, so that it cannot compress to nothing."""
    pixels = np.zeros((height, width, 3), dtype=np.int16)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, (20, 160, 60)
    pixels += np.random.default_rng(0).integers(-12, 12, pixels.shape, dtype=np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def near(image: Image.Image, xy: tuple[int, int], color: tuple[int, int, int], within: int = 3):
    assert image.mode == "RGB"
    assert max(abs(a - b) for a, b in zip(image.getpixel(xy), color, strict=True)) <= within


def test_plain_path_and_bytes_agree(tmp_path):
    path = tmp_path / "a.png"
    photo().save(path)
    assert np.array_equal(open_image(path), photo())
    assert np.array_equal(open_image(str(path)), open_image(path.read_bytes()))


def test_transparency_lies_on_white():
    rgba = Image.new("RGBA", (4, 4), (*RED, 0))
    rgba.putpixel((0, 0), (*RED, 255))
    rgba.putpixel((1, 0), (*RED, 128))
    image = open_image(encoded(rgba, "PNG"))
    near(image, (0, 0), RED, 0)
    near(image, (1, 0), (227, 142, 147), 2)
    near(image, (2, 2), (255, 255, 255), 0)


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, 10, 20, 30])
    palette.putpixel((1, 1), 1)
    near(open_image(encoded(palette, "PNG")), (0, 0), RED, 0)
    clear = open_image(encoded(palette, "PNG", transparency=0))
    near(clear, (0, 0), (255, 255, 255), 0)
    near(clear, (1, 1), (10, 20, 30), 0)


def test_grey_kinds():
    near(open_image(encoded(Image.new("L", (3, 3), 77), "PNG")), (1, 1), (77, 77, 77), 0)
    near(open_image(encoded(Image.new("LA", (3, 3), (77, 0)), "PNG")), (1, 1), (255,) * 3, 0)
    near(open_image(encoded(Image.new("1", (3, 3), 1), "PNG")), (1, 1), (255,) * 3, 0)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")]
)
def test_16_bits_are_scaled_not_clipped(dtype, kind):
    ramp = np.array([[0, 257 * 10, 257 * 100, 65535]], dtype=dtype)
    image = open_image(encoded(Image.fromarray(ramp), kind))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 10, 100, 255]


def test_float_tiff():
    ramp = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    image = open_image(encoded(Image.fromarray(ramp), "TIFF"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_cmyk_jpeg():
    image = open_image(encoded(photo().convert("CMYK"), "JPEG", quality=95))
    near(image, (5, 12), RED, 30)
    near(image, (35, 12), (20, 160, 60), 30)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    image = open_image(encoded(photo(), "JPEG", exif=exif, quality=95))
    assert image.size == (24, 40)
    near(image, (12, 3), RED, 30)  # what was left is now on top


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    near(open_image(data), (4, 4), RED, 1)


def message(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_cannot_be_read_says_why_in_one_line(tmp_path):
    missing = tmp_path / "gone.png"
    assert message(missing) == (
        f"cannot read image '{missing}': there is no such file; check the path"
    )
    assert "it is a directory" in message(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "it is empty" in message(tmp_path / "empty.png")
    (tmp_path / "words.png").write_text("this is no picture")
    text = message(tmp_path / "words.png")
    assert "words.png" in text and "not an image" in text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files(kind, share):
    data = encoded(photo(160, 120), kind)
    text = message(data[: int(len(data) * share)], name="x.file")
    assert text.startswith("cannot read image 'x.file': it is ")
    if kind == "JPEG":
        assert text == "cannot read image 'x.file': it is truncated; save it again or remove it"


def test_damaged_bytes_never_escape_as_another_error():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF"):
        data = np.frombuffer(encoded(photo(), kind), dtype=np.uint8)
        for _ in range(60):
            broken = data.copy()
            at = rng.integers(0, len(data), 6)
            broken[at] = rng.integers(0, 256, 6)
            with contextlib.suppress(ImageError):
                assert open_image(broken.tobytes()).mode == "RGB"


def test_too_many_pixels_are_refused_before_decoding(recwarn):
    assert "more than 100 pixels" in message(encoded(photo(), "PNG"), max_pixels=100)
    huge = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert "more than 100000000 pixels" in message(huge)
    assert not recwarn.list
