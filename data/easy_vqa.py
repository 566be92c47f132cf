"""The easy-vqa data set (package `easy-vqa`, MIT) in the formats that training reads.

64x64 pictures of one circle, triangle or rectangle in one of eight colours, with questions: a small
world that is not ours.
"""

from __future__ import annotations

import importlib
import logging
import re
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from vqrae.data._writing import add_member, conversation, png_bytes, whole_folder, write_json

logger = logging.getLogger(__name__)

_TURNS = 4  # questions of one training conversation
SHAPES = ("circle", "triangle", "rectangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def question_type(answer: str) -> str:
    """ "yesno", "shape" or "color", by the answer."""
    if answer in ("yes", "no"):
        return "yesno"
    return "shape" if answer in SHAPES else "color"


def write_easy_vqa(out: str | Path) -> Path:
    """Write both splits of the installed package to a folder and return it.

    ::

        train/shard-000000.tar      KEY.png, KEY.txt ("a blue circle", from the questions' answers)
        train/images/KEY.png        the same pictures
        train/vqa.json              LLaVA-style conversations, four questions in each
        test/...                    likewise

    The folder appears whole or not at all; where it is there already nothing is done.

    Raises:
        ValueError: if the package is not installed, or the folder holds something else.
    """
    try:
        package = importlib.import_module("easy_vqa")
    except ModuleNotFoundError:
        raise ValueError("the easy-vqa data are not here; pip install easy-vqa") from None
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        if (out / "easy_vqa").is_file():
            return out
        raise ValueError(f"'{out}' holds something other than easy-vqa; choose another folder")
    with whole_folder(out) as aside:
        for split in ("train", "test"):
            questions = getattr(package, f"get_{split}_questions")()
            paths = getattr(package, f"get_{split}_image_paths")()
            _write_split(aside / split, split, paths, questions)
        (aside / "easy_vqa").write_text("written from the package easy-vqa\n")
    logger.info("wrote easy-vqa to '%s'", out)
    return out


def _write_split(folder: Path, split: str, paths: dict, questions: tuple) -> None:
    (folder / "images").mkdir(parents=True)
    asked: dict[int, list[tuple[str, str, str]]] = defaultdict(list)
    for text, answer, image in zip(*questions, strict=True):
        asked[image].append((text, answer, question_type(answer)))
    records = []
    with tarfile.open(folder / "shard-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for image in sorted(paths):
            key = f"{split}-{image:06d}"
            pixels = np.asarray(Image.open(paths[image]).convert("RGB"))
            png = png_bytes(pixels)
            add_member(tar, f"{key}.png", png)
            add_member(tar, f"{key}.txt", _caption(asked[image]).encode())
            (folder / "images" / f"{key}.png").write_bytes(png)
            for start in range(0, len(asked[image]), _TURNS):
                turns = asked[image][start : start + _TURNS]
                records.append(conversation(f"{key}-{start}", turns, key))
    write_json(folder / "vqa.json", records)


def _caption(asked: list[tuple[str, str, str]]) -> str:
    """What the answers say of the picture: "a blue circle", or less where nobody asked."""
    found = {kind: answer for _, answer, kind in asked if kind != "yesno"}
    for text, answer, kind in asked:
        if kind == "shape":
            named = re.search(r"what is the (\w+) shape", text)
            found.setdefault("color", named.group(1) if named else "")
        elif kind == "color":
            named = re.search(rf"({'|'.join(SHAPES)})", text)
            found.setdefault("shape", named.group(1) if named else "")
        elif answer == "yes" and " not " not in text:
            for word in re.findall(r"\w+", text):
                for kind, words in (("shape", SHAPES), ("color", COLORS)):
                    if word in words:
                        found.setdefault(kind, word)
    words = [found.get("color"), found.get("shape") or "shape"]
    return "a " + " ".join(word for word in words if word)
