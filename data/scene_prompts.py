"""Prompts over the scenes world in GenEval's metadata form: its six categories, and some more."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from vqrae.data.scene_language import NUMBERS, PLURALS
from vqrae.data.scenes import (
    COLORS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    HELD_OUT_SHAPE_PAIRS,
    MIRROR,
    RELATIONS,
    SHAPES,
    Scene,
    clearly_related,
    is_held_out,
    place,
    relation_is_held_out,
    sample_background,
)

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# What the test prompts of a category hold out from training.
HELD_OUT_KIND = {
    "single_object": "nothing",
    "two_object": "shape pair",
    "counting": "nothing",
    "colors": "color-shape pair",
    "position": "relation",
    "color_attr": "color-shape pair",
}


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _single(shape: str) -> dict:
    return {"include": [{"class": shape, "count": 1}], "prompt": f"a photo of {_a(shape)}"}


def _two(a: str, b: str) -> dict:
    include = [{"class": a, "count": 1}, {"class": b, "count": 1}]
    return {"include": include, "prompt": f"a photo of {_a(a)} and {_a(b)}"}


def _counting(shape: str, count: int) -> dict:
    return {
        "include": [{"class": shape, "count": count}],
        "exclude": [{"class": shape, "count": count + 1}],
        "prompt": f"a photo of {NUMBERS[count]} {PLURALS[shape]}",
    }


def _colors(color: str, shape: str) -> dict:
    include = [{"class": shape, "count": 1, "color": color}]
    return {"include": include, "prompt": f"a photo of {_a(f'{color} {shape}')}"}


def _position(a: str, relation: str, b: str) -> dict:
    include = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
    return {"include": include, "prompt": f"a photo of {_a(a)} {relation} {_a(b)}"}


def _attribution(first: tuple[str, str], second: tuple[str, str]) -> dict:
    pairs = (first, second)
    include = [{"class": shape, "count": 1, "color": color} for color, shape in pairs]
    words = " and ".join(_a(f"{color} {shape}") for color, shape in pairs)
    return {"include": include, "prompt": f"a photo of {words}"}


def _pool(category: str, split: str) -> list[dict]:
    """Every prompt of a category in a split."""
    test = split == "test"
    shape_pairs = [
        (a, b)
        for a, b in permutations(SHAPES, 2)
        if (frozenset((a, b)) in HELD_OUT_SHAPE_PAIRS) == test
    ]
    held = sorted(HELD_OUT_PAIRS)
    seen = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS]
    match category:
        case "single_object":
            return [_single(shape) for shape in SHAPES]
        case "two_object":
            return [_two(a, b) for a, b in shape_pairs]
        case "counting":
            return [_counting(shape, n) for shape in SHAPES for n in (2, 3, 4)]
        case "colors":
            return [_colors(*pair) for pair in (held if test else seen)]
        case "position":
            if test:
                straight = sorted(HELD_OUT_RELATIONS)
                mirrored = [(b, MIRROR[relation], a) for a, relation, b in straight]
                return [_position(*triple) for triple in straight + mirrored]
            return [
                _position(a, relation, b)
                for a, b in shape_pairs
                for relation in RELATIONS
                if not relation_is_held_out(a, relation, b)
            ]
        case "color_attr":
            # As in GenEval, the two differ in class and in colour. Test: both pairs are held out,
            # yet the two shapes do meet in training.
            return [
                _attribution(first, second)
                for first, second in permutations(held if test else seen, 2)
                if first[0] != second[0]
                and first[1] != second[1]
                and frozenset((first[1], second[1])) not in HELD_OUT_SHAPE_PAIRS
            ]
    raise ValueError(f"unknown category {category!r}; use one of {list(CATEGORIES)}")


def geneval_prompts(
    rng: np.random.Generator | int | list[int], n_per_category: int, split: str
) -> list[dict]:
    """n prompts of each category, in the official metadata form.

    Each is {"tag", "include": [{"class", "count", "color"?, "position"?}], "exclude"?, "prompt",
    "held_out"}; `held_out` (ours) says what the category keeps from training. Prompts of the train
    split hold no held-out combination. Where a category has fewer than n different prompts (8 to
    48 in the test split) they repeat, each as often as any other.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; use 'train' or 'test'")
    rng = np.random.default_rng(rng)
    prompts = []
    for category in CATEGORIES:
        pool = _pool(category, split)
        order: list[int] = []
        while len(order) < n_per_category:
            order += rng.permutation(len(pool)).tolist()
        held_out = HELD_OUT_KIND[category] if split == "test" else "nothing"
        prompts += [
            {"tag": category, **pool[i], "held_out": held_out} for i in order[:n_per_category]
        ]
    return prompts


def more_prompts(rng: np.random.Generator | int | list[int], n_per_category: int) -> list[dict]:
    """What GenEval leaves out, in the same form: n prompts of each tag.

    "trained_combinations": GenEval's categories in turn, holding out nothing. "two_beside_one":
    "two red stars above a green circle", of colour-shape pairs that training knows;
    "two_beside_one_held_out": one of the pairs is held out.
    """
    rng = np.random.default_rng(rng)
    each = geneval_prompts(rng, -(-n_per_category // len(CATEGORIES)), "train")
    trained = [{**each[i], "tag": "trained_combinations"} for i in rng.permutation(len(each))]
    groups = [
        {"tag": tag, **_two_beside_one(rng, held_out), "held_out": kind}
        for tag, held_out, kind in (
            ("two_beside_one", 0, "nothing"),
            ("two_beside_one_held_out", 1, "color-shape pair"),
        )
        for _ in range(n_per_category)
    ]
    return trained[:n_per_category] + groups


def _two_beside_one(rng: np.random.Generator, held_out: int) -> dict:
    """Two colours and two shapes, `held_out` of the pairs held out."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    while True:
        many, one = (pairs[int(i)] for i in rng.choice(len(pairs), 2, replace=False))
        if (
            many[0] != one[0]
            and many[1] != one[1]
            and (many in HELD_OUT_PAIRS) + (one in HELD_OUT_PAIRS) == held_out
            and frozenset((many[1], one[1])) not in HELD_OUT_SHAPE_PAIRS
            and not relation_is_held_out(many[1], relation, one[1])
        ):
            break
    (color, shape), (other_color, other) = many, one
    words = relation if relation in ("above", "below") else f"to the {relation}"
    return {
        "include": [
            {"class": other, "count": 1, "color": other_color},
            {"class": shape, "count": 2, "color": color, "position": [relation, 0]},
        ],
        "exclude": [{"class": shape, "count": 3}, {"class": other, "count": 2}],
        "prompt": f"two {color} {PLURALS[shape]} {words} {_a(f'{other_color} {other}')}",
    }


def scene_for_prompt(meta: dict, rng: np.random.Generator) -> Scene:
    """A scene that satisfies the prompt and shows nothing else."""
    wanted = [item for item in meta["include"] for _ in range(item["count"])]
    position = next((item["position"] for item in wanted if "position" in item), None)
    colors = tuple(COLORS)
    while True:
        pairs = [
            (item.get("color") or colors[int(rng.integers(len(colors)))], item["class"])
            for item in wanted
        ]
        scene = Scene(place(rng, pairs), sample_background(rng))
        if position:
            target, *movers = scene.objects
            if not all(clearly_related(mover, position[0], target) for mover in movers):
                continue
        if meta.get("held_out", "nothing") == "nothing" and is_held_out(scene):
            continue
        return scene
