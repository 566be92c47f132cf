"""GenEval's prompts over COCO's 80 classes, made from a seed.

Seed 43 with 100 prompts a category gives the official 553 (prompts/evaluation_metadata.jsonl of
djghosh13/geneval): the sentences, the classes' names and the order of the draws are theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""In COCO's order, in GenEval's words."""
COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below")

OFFICIAL_SEED = 43
OFFICIAL_SHA256 = "94bc1c23d27e1ac4aa6d9415ac49a6e72263694e5149eb1d895cf61f9da1c083"
"""prompts_sha256 of the official 553."""

_NUMBERS = ("two", "three", "four")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _many(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def _two_objects(rng: np.random.Generator) -> dict:
    a, b = (CLASSES[i] for i in rng.choice(len(CLASSES), size=2, replace=False))
    return _prompt("two_object", [_one(a), _one(b)], f"{_a(a)} and {_a(b)}")


def _counting(rng: np.random.Generator) -> dict:
    name = CLASSES[rng.choice(len(CLASSES))]
    number = int(rng.integers(2, 4, endpoint=True))
    more = [{"class": name, "count": number + 1}]
    words = f"{_NUMBERS[number - 2]} {_many(name)}"
    return _prompt("counting", [{"class": name, "count": number}], words, exclude=more)


def _colors(rng: np.random.Generator) -> dict:
    # Class 0, a person, has no colour.
    name = CLASSES[rng.choice(len(CLASSES) - 1) + 1]
    color = COLORS[rng.choice(len(COLORS))]
    return _prompt("colors", [_one(name, color=color)], f"{_a(color)} {name}")


def _position(rng: np.random.Generator) -> dict:
    a, b = (CLASSES[i] for i in rng.choice(len(CLASSES), size=2, replace=False))
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    include = [_one(b), _one(a, position=[relation, 0])]
    return _prompt("position", include, f"{_a(a)} {relation} {_a(b)}")


def _attribution(rng: np.random.Generator) -> dict:
    a, b = (CLASSES[i + 1] for i in rng.choice(len(CLASSES) - 1, size=2, replace=False))
    of_a, of_b = (COLORS[i] for i in rng.choice(len(COLORS), size=2, replace=False))
    include = [_one(a, color=of_a), _one(b, color=of_b)]
    return _prompt("color_attr", include, f"{_a(of_a)} {a} and {_a(of_b)} {b}")


def _one(name: str, **more: object) -> dict:
    return {"class": name, "count": 1, **more}


def _prompt(tag: str, include: list[dict], words: str, **more: object) -> dict:
    return {"tag": tag, "include": include, **more, "prompt": f"a photo of {words}"}


_DRAWN: tuple[Callable[[np.random.Generator], dict], ...] = (
    _two_objects, _counting, _colors, _position, _attribution,
)  # fmt: skip


def coco_prompts(seed: int = OFFICIAL_SEED, per_category: int = 100) -> list[dict]:
    """Prompts of all six categories, in GenEval's metadata form.

    At most `per_category` of each, for one that is drawn twice is kept once; of single objects at
    most 80, each class once.

    Raises:
        ValueError: where per_category is below 1.
    """
    if per_category < 1:
        raise ValueError(f"prompts per category must be at least 1, not {per_category}")
    rng = np.random.default_rng(seed)
    number = min(per_category, len(CLASSES))
    order = rng.choice(len(CLASSES), size=number, replace=False)
    prompts = [_prompt("single_object", [_one(CLASSES[i])], _a(CLASSES[i])) for i in order]
    for drawn in _DRAWN:
        prompts += [drawn(rng) for _ in range(per_category)]
    once: dict[str, dict] = {}
    for prompt in prompts:
        once.setdefault(_canonical(prompt), prompt)
    return list(once.values())


def first_of_each(prompts: Iterable[dict], most: int) -> list[dict]:
    """The first `most` prompts of each category, in their order."""
    taken: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        taken[prompt["tag"]] += 1
        if taken[prompt["tag"]] <= most:
            found.append(prompt)
    return found


def prompts_sha256(prompts: Iterable[dict]) -> str:
    """Of what the prompts say and ask, in their order, however their file writes it."""
    text = "\n".join(map(_canonical, prompts))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(prompt: dict) -> str:
    """The parts of a prompt that GenEval reads, in one spelling."""
    read = {key: prompt[key] for key in ("tag", "include", "exclude", "prompt") if key in prompt}
    return json.dumps(read, sort_keys=True)
