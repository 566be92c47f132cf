"""Plain conversations about the scenes world, without pictures: what text training reads."""

from __future__ import annotations

from itertools import permutations

from vqrae.data.scene_language import PLURALS
from vqrae.data.scenes import (
    COLORS,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPE_PAIRS,
    MIRROR,
    RELATIONS,
    SHAPES,
    relation_is_held_out,
)

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_CORNERS = {"square": "four", "triangle": "three", "diamond": "four", "circle": "zero"}
_POINTS = {"star": "five", "cross": "four"}
_MIXES = (
    ("red", "yellow", "orange"),
    ("yellow", "blue", "green"),
    ("red", "blue", "purple"),
    ("red", "white", "pink"),
)
_KNOWN = {
    "what color is the sky?": "blue",
    "what color is grass?": "green",
    "what color is a banana?": "yellow",
    "what color is a ripe tomato?": "red",
    "what color is a carrot?": "orange",
    "what color is a grape?": "purple",
    "which shape is the sun?": "circle",
    "which shape twinkles in the night sky?": "star",
    "which shape stands for love?": "heart",
    "which shape do you wear on a finger?": "ring",
    "which shape has a hole in the middle?": "ring",
    "which shape looks like a plus sign?": "cross",
    "which shape has no corners and no hole?": "circle",
    "which shape has four equal sides and stands flat?": "square",
    "which shape is a square that stands on a corner?": "diamond",
    "what is the opposite of left?": "right",
    "what is the opposite of right?": "left",
    "what is the opposite of above?": "below",
    "what is the opposite of below?": "above",
    "what is the opposite of top?": "bottom",
    "what is the opposite of bottom?": "top",
    "what is the opposite of small?": "large",
    "what is the opposite of large?": "small",
    "what is the opposite of dark?": "light",
    "what is the opposite of light?": "dark",
    "what is the opposite of yes?": "no",
    "hello": "hello! ask me about shapes, or ask me to draw some.",
    "hi": "hi! ask me about shapes, or ask me to draw some.",
    "good morning": "good morning! what shall we look at?",
    "good evening": "good evening! what shall we look at?",
    "how are you?": "fine, thank you.",
    "who are you?": "a small model that sees and draws shapes.",
    "what are you?": "a small model that sees and draws shapes.",
    "what can you do?": "i can look at pictures of shapes, answer questions and draw.",
    "can you draw?": "yes, i can draw colored shapes.",
    "can you see?": "yes, show me a picture of shapes.",
    "thank you": "you are welcome.",
    "thanks": "you are welcome.",
    "bye": "goodbye!",
    "goodbye": "goodbye!",
    "which shapes do you know?": ", ".join(SHAPES),
    "which colors do you know?": ", ".join(COLORS),
    "how many shapes do you know?": _NUMBERS[len(SHAPES)],
    "how many colors do you know?": _NUMBERS[len(COLORS)],
    "which sizes do you know?": "small and large",
}


def _facts() -> list[tuple[str, str]]:
    facts = list(_KNOWN.items())
    for shape, number in _CORNERS.items():
        facts.append((f"how many corners does a {shape} have?", number))
        facts.append((f"how many sides does a {shape} have?", number))
    for shape, number in _POINTS.items():
        facts.append((f"how many points does a {shape} have?", number))
    facts.append(("what shape has three corners?", "triangle"))
    facts.append(("what shape has five points?", "star"))
    for first, second, result in _MIXES:
        for a, b in ((first, second), (second, first)):
            facts.append((f"what color do {a} and {b} make?", result))
            facts.append((f"mix {a} and {b}.", result))
    for shape in SHAPES:
        facts.append((f"what is the plural of {shape}?", PLURALS[shape]))
        facts.append((f"is {shape} a shape or a color?", "shape"))
        facts.append((f"is {shape} a color?", "no"))
        facts.append((f"is {shape} a shape?", "yes"))
    for color in COLORS:
        facts.append((f"is {color} a shape or a color?", "color"))
        facts.append((f"is {color} a color?", "yes"))
        facts.append((f"is {color} a shape?", "no"))
    for a in range(1, 10):
        facts.append((f"what comes after {_NUMBERS[a]}?", _NUMBERS[a + 1]))
        facts.append((f"what comes before {_NUMBERS[a]}?", _NUMBERS[a - 1]))
        for b in range(1, 11 - a):
            facts.append((f"what is {_NUMBERS[a]} plus {_NUMBERS[b]}?", _NUMBERS[a + b]))
        for b in range(1, a + 1):
            facts.append((f"what is {_NUMBERS[a]} minus {_NUMBERS[b]}?", _NUMBERS[a - b]))
    for a, b in permutations(range(1, 7), 2):
        facts.append((f"which is more, {_NUMBERS[a]} or {_NUMBERS[b]}?", _NUMBERS[max(a, b)]))
    for color in COLORS:
        for shape in SHAPES:
            if (color, shape) not in HELD_OUT_PAIRS:
                facts.append((f"what color is a {color} {shape}?", color))
                facts.append((f"what shape is a {color} {shape}?", shape))
    for a, b in permutations(SHAPES, 2):
        if frozenset((a, b)) in HELD_OUT_SHAPE_PAIRS:
            continue
        for relation in RELATIONS:
            if not relation_is_held_out(a, relation, b):
                question = f"if a {a} is {relation} a {b}, where is the {b}?"
                facts.append((question, f"{MIRROR[relation]} the {a}"))
    return facts


def fact_conversations() -> list[dict]:
    """LLaVA-style records without images; none names a held-out combination."""
    return [
        {
            "id": f"text-{index:06d}",
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": answer},
            ],
        }
        for index, (question, answer) in enumerate(_facts())
    ]
