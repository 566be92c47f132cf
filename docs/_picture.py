"""Draws docs/images/drawings.png with the model that ships: `python docs/_picture.py`."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from vqrae.assets import nano_folder
from vqrae.generation import codes_to_images, load_unified, sample_codes

PROMPTS = (
    "a red circle above a blue star",
    "three yellow hearts",
    "a green ring left of a pink square",
    "two orange diamonds",
)
SIDE, GAP, TOP = 192, 16, 24
WIDTH = len(PROMPTS) * (SIDE + GAP) - GAP


def main() -> None:
    model, processor = load_unified(nano_folder(), device="cpu")
    prompts = [processor.encode_draw(prompt) for prompt in PROMPTS]
    blank = processor.encode_draw(unconditional=True)
    codes = sample_codes(model, prompts, blank, seeds=0)
    sheet = Image.new("RGB", (WIDTH, TOP + 2 * SIDE + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pictures = codes_to_images(model, processor, codes)
    for place, (prompt, row, picture) in enumerate(
        zip(PROMPTS, codes.tolist(), pictures, strict=True)
    ):
        left = place * (SIDE + GAP)
        pen.text((left, 2), prompt, "black", ImageFont.load_default(12))
        _codes(pen, left, TOP, row)
        sheet.paste(
            picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, TOP + SIDE + GAP)
        )
    out = Path(__file__).parent / "images" / "drawings.png"
    sheet.quantize(256).save(out, optimize=True)


def _codes(pen: ImageDraw.ImageDraw, left: int, top: int, codes: list[int]) -> None:
    """The numbers, each where its patch is."""
    side = round(len(codes) ** 0.5)
    step = SIDE // side
    for place, code in enumerate(codes):
        x, y = left + place % side * step, top + place // side * step
        pen.rectangle((x, y, x + step - 2, y + step - 2), fill="#eceff1")
        middle = (x + step / 2, y + step / 2)
        pen.text(middle, str(code), "#263238", ImageFont.load_default(14), anchor="mm")


if __name__ == "__main__":
    main()
