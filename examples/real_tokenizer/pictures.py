"""Real pictures that packages carry: photographs to train on and to be measured on, and stamps.

Photographs come with scikit-image and scikit-learn (pip) and, where they are installed, from
Debian's mate-backgrounds, gnome-backgrounds and plasma-workspace-wallpapers; small pictures with a
class each from its tuxpaint-stamps-default. Whole photographs are held out, and so all their crops.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

# Where the JPEGs are photographs and the rest is drawn.
_BACKGROUNDS = (
    "/usr/share/backgrounds/mate/nature/*.jpg",
    "/usr/share/wallpapers/*/contents/images/*.jpg",
    "/usr/share/backgrounds/gnome/wood-*.webp",
)
STAMPS = Path("/usr/share/tuxpaint/stamps")
# Of scikit-image's own files those that are photographs.
_PHOTOGRAPHS = {
    *("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "ihc", "moon", "motorcycle_left", "retina", "rocket"),
}
_HELD_OUT = {
    *("brick", "chelsea", "coffee", "flower", "rocket"),
    *("Dune", "EveningGlow", "FreshFlower", "GreenMeadow"),
}
_CLASSES = {
    "bird": "animals/birds",
    "mammal": "animals/mammals",
    "fish": "animals/fish",
    "insect": "animals/insects",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "vehicle": "vehicles",
    "tool": "household/tools",
}


def photographs(extra: list[str]) -> dict[str, Path]:
    """All photographs, by name; `extra`: more folders of them."""
    found: list[Path] = []
    for module, names in (("skimage", _PHOTOGRAPHS), ("sklearn", {"china", "flower"})):
        for folder in _folders(module):
            found += [file for file in sorted(folder.iterdir()) if file.stem in names]
    for pattern in _BACKGROUNDS:
        found += sorted(Path("/").glob(pattern.lstrip("/")))
    for folder in extra:
        files = sorted(Path(folder).rglob("*"))
        found += [f for f in files if f.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    whole = {}
    for file in found:
        # One file of a wallpaper in several sizes, the rest may be links to nothing.
        name = file.parts[-4] if "wallpapers" in file.parts else file.stem
        try:
            with Image.open(file) as image:
                if min(image.size) >= 200:
                    whole[name] = file
        except OSError:
            continue
    return whole


def _folders(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return []
    data = Path(spec.origin).parent / ("data" if module == "skimage" else "datasets/images")
    return [data] if data.is_dir() else []


def write_crops(out: Path, *, size: int, crops: int, extra: list[str]) -> None:
    """OUT/train with `crops` square crops, OUT/test with crops of held-out photographs.

    Those named above are held out, and every fifth of `extra`. A crop's side is at random from
    `size` to the whole picture; then it is resized to `size`.
    """
    files = photographs(extra)
    if len(files) < 10:
        raise ValueError(
            f"only {len(files)} photographs; pip install scikit-image scikit-learn, or name "
            "folders of your own with --pictures"
        )
    names = sorted(files)
    own = [name for name in names if any(files[name].is_relative_to(f) for f in extra)]
    held = [name for name in names if name in _HELD_OUT] + own[::5]
    rng = np.random.default_rng(0)
    for split, chosen, count in (
        ("train", [n for n in names if n not in held], crops),
        ("test", held, 240),
    ):
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(chosen):
            with Image.open(files[name]) as opened:
                image = opened.convert("RGB")
            image.thumbnail((2000, 2000))
            for number in range(count // len(chosen) + (index < count % len(chosen))):
                short = min(image.size)
                # Evenly in the logarithm: as many small parts as large ones.
                side = round(size * (short / size) ** rng.random()) if short > size else short
                left = int(rng.integers(image.width - side + 1))
                top = int(rng.integers(image.height - side + 1))
                crop = image.crop((left, top, left + side, top + side))
                crop = crop.resize((size, size), Image.Resampling.BICUBIC)
                crop.save(folder / f"{name}-{number:04d}.png")


def stamps() -> Iterator[tuple[Image.Image, str]]:
    """Small pictures on white, each with its class; none where Debian's package is not there."""
    for label, folder in _CLASSES.items():
        for file in sorted((STAMPS / folder).rglob("*.png")):
            if "cartoon" in file.parts or "toys" in file.parts:
                continue
            with Image.open(file) as opened:
                image = opened.convert("RGBA")
            side = max(image.size)
            square = Image.new("RGBA", (side, side), "white")
            square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
            yield square.convert("RGB"), label
