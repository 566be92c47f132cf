"""Words for scenes: captions in varied wording, and questions with one short, certain answer.

In training scenes no text names a held-out combination, not even in a question whose answer is no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from vqrae.data.scenes import (
    COLORS,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPE_PAIRS,
    MIRROR,
    RELATION_MARGIN,
    RELATIONS,
    SHAPES,
    SIZES,
    TONES,
    Scene,
    SceneObject,
    clearly_related,
    is_held_out,
    related,
    relation_is_held_out,
)

NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
QUESTION_TYPES = (
    "what",
    "color",
    "count",
    "where",
    "left",
    "yesno",
    "size",
    "background",
    "relation",
)
# How often captions use GenEval's own wording.
GENEVAL_SHARE = 0.3

_TEXTURES = {
    "plain": ("plain",),
    "gradient": ("shaded", "gradient"),
    "stripes": ("striped",),
    "checker": ("checkered",),
    "dots": ("dotted",),
}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Question:
    """A question about one scene. `type` is one of QUESTION_TYPES."""

    type: str
    question: str
    answer: str


def _pick(rng: np.random.Generator, options):
    return options[int(rng.random() * len(options))]


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _name(o: SceneObject) -> str:
    return f"{o.color} {o.shape}"


# Captions


Words = Callable[[SceneObject], tuple[str, str]]


def _groups(objects: list[SceneObject], name: Words) -> list[list[SceneObject]]:
    """Objects of one name together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[SceneObject]] = {}
    for o in objects:
        groups.setdefault(name(o), []).append(o)
    return list(groups.values())


def _call(group: list[SceneObject], name: Words) -> str:
    """ "a red circle" or "two red circles"."""
    words, shape = name(group[0])
    if len(group) == 1:
        return _a(f"{words}{shape}")
    return f"{NUMBERS[len(group)]} {words}{PLURALS[shape]}"


def _list(objects: list[SceneObject], name: Words) -> str:
    """ "two red circles and a star": equal objects are counted together."""
    return _join([_call(group, name) for group in _groups(objects, name)])


def _by_shape(o: SceneObject) -> tuple[str, str]:
    return "", o.shape


def _by_color(o: SceneObject) -> tuple[str, str]:
    return f"{o.color} ", o.shape


def _by_size(o: SceneObject) -> tuple[str, str]:
    return f"{o.size} {o.color} ", o.shape


def _true_relations(a: list[SceneObject], b: list[SceneObject]) -> list[str]:
    """Relations in which each of a clearly stands to each of b."""
    return [r for r in RELATIONS if all(clearly_related(i, r, j) for i in a for j in b)]


def _geneval_caption(objects: list[SceneObject], rng: np.random.Generator) -> str:
    """The six categories' wording, and theirs for several, where the scene holds nothing but what
    is said."""
    forms = [_list(objects, _by_color)]
    if len(objects) == 1 or len({o.shape for o in objects}) in (1, 2):
        forms.append(_list(objects, _by_shape))
    groups = _groups(objects, _by_color)
    if len(groups) == 2 and groups[0][0].shape != groups[1][0].shape:
        a, b = _either_way(groups, rng)
        for relation in _true_relations(a, b):
            for name in (_by_shape, _by_color):
                forms.append(f"{_call(a, name)} {relation} {_call(b, name)}")
    return f"a photo of {_pick(rng, forms)}"


def _either_way(groups: list, rng: np.random.Generator) -> list:
    """In reading order nothing would be "below" or "right of" anything."""
    return [groups[i] for i in rng.permutation(len(groups))]


def _by_position(objects: list[SceneObject], rng: np.random.Generator) -> str:
    place = _pick(rng, ("in the {}", "at the {}", "in the {} part"))
    return _join([f"{_a(_name(o))} {place.format(o.quadrant)}" for o in objects])


def _by_relation(objects: list[SceneObject], rng: np.random.Generator) -> str | None:
    """ "two red stars above a green circle, with a ring"; None where no relation is clear."""
    name = _by_size if rng.random() < 0.5 else _by_color
    groups = _groups(objects, name)
    if len(groups) == 1:
        groups = [[o] for o in objects]
    a, b, *rest = _either_way(groups, rng)
    true = _true_relations(a, b)
    if not true:
        return None
    words = _pick(rng, _RELATION_WORDS[_pick(rng, true)])
    pair = f"{_call(a, name)} {words} {_call(b, name)}"
    if not rest:
        return pair
    return f"{pair}, with {_list([o for group in rest for o in group], name)}"


def _color_list(objects: list[SceneObject]) -> str:
    """ "three stars: one red and two blue"."""
    shape, colors = objects[0].shape, Counter(o.color for o in objects)
    parts = _join([f"{NUMBERS[n]} {color}" for color, n in colors.items()])
    return f"{NUMBERS[len(objects)]} {PLURALS[shape]}: {parts}"


_FRAMES = (
    "{}",
    "{}",
    "an image of {}",
    "a picture of {}",
    "a picture showing {}",
    "a drawing of {}",
    "this image shows {}",
    "the picture contains {}",
    "you can see {}",
    "{}, drawn in a simple style",
    "a simple scene with {}",
    "nothing but {}",
)


def captions(scene: Scene, rng: np.random.Generator) -> str:
    """One true caption that mentions every object, in one of many wordings, under 30 words.

    Always says the shapes, and the colours too except in some of the captions in GenEval's wording
    (about 30%: "a photo of two stars"). Sometimes says sizes, quadrants, a relation or the
    background. Objects are named as one reads a page, row by row, but for those that a relation
    joins.
    """
    # Named in another order than their codes are written in, the first code may be any object's;
    # which colour goes with which shape is then hardly learnt for pairs that training never shows.
    objects = sorted(scene.objects, key=lambda o: (o.row, o.col))
    if rng.random() < GENEVAL_SHARE:
        return _geneval_caption(objects, rng)
    forms = ["plain", "sizes"]
    if len(objects) <= 2:
        forms.append("position")
    two_groups = len(_groups(objects, _by_color)) == 2
    if len(objects) in (2, 3) or two_groups:
        forms += ["relation", "relation"]
    if len(objects) > 2 and two_groups:
        # Rare scenes, and clear relations between all of them rarer still.
        forms += ["relation"] * 3
    if len({o.shape for o in objects}) == 1 and len({o.color for o in objects}) > 1:
        forms.append("colors")
    form = _pick(rng, forms)
    body = None
    if form == "sizes":
        body = _list(objects, _by_size)
    elif form == "position":
        body = _by_position(objects, rng)
    elif form == "relation":
        body = _by_relation(objects, rng)
    elif form == "colors":
        body = _color_list(objects)
    text = _pick(rng, _FRAMES).format(body or _list(objects, _by_color))
    if rng.random() < 0.3 and "," not in text:
        back = scene.background
        adjectives = f"{back.tone} {_pick(rng, _TEXTURES[back.kind])}"
        text += _pick(rng, (" on {} background", " against {} background")).format(_a(adjectives))
    return text


# Questions


@dataclass(frozen=True)
class _Candidate:
    question: Question
    weight: float


class _View:
    """A scene as the question makers need it: who can be referred to how, and what is allowed."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng, self.objects = scene, rng, scene.objects
        # Texts of training scenes stay clear of the held-out combinations.
        self.guarded = not is_held_out(scene)
        self.colors = Counter(o.color for o in self.objects)
        self.shapes = Counter(o.shape for o in self.objects)
        self.pairs = Counter((o.color, o.shape) for o in self.objects)
        self.quadrants = Counter(o.quadrant for o in self.objects)

    def pick(self, *options):
        return _pick(self.rng, options)

    def weight(self, *objects: SceneObject) -> float:
        """Test scenes ask rather about what training never showed."""
        return 4.0 if any((o.color, o.shape) in HELD_OUT_PAIRS for o in objects) else 1.0

    def allows_pair(self, color: str, shape: str) -> bool:
        return not (self.guarded and (color, shape) in HELD_OUT_PAIRS)

    def allows_relation(self, a: str, relation: str, b: str) -> bool:
        held = relation_is_held_out(a, relation, b) or frozenset((a, b)) in HELD_OUT_SHAPE_PAIRS
        return not (self.guarded and held)

    def by_pair(self, o: SceneObject) -> str | None:
        """ "red circle" where that is one object only."""
        return _name(o) if self.pairs[o.color, o.shape] == 1 else None

    def without_shape(self, o: SceneObject) -> list[str]:
        thing = self.pick("shape", "object")
        ways = []
        if self.colors[o.color] == 1:
            ways.append(f"{o.color} {thing}")
        if self.quadrants[o.quadrant] == 1:
            ways.append(f"{thing} in the {o.quadrant}")
        return ways or ([thing] if len(self.objects) == 1 else [])

    def without_color(self, o: SceneObject) -> list[str]:
        thing = self.pick("shape", "object")
        ways = []
        if self.shapes[o.shape] == 1:
            ways += [o.shape, o.shape]
        if self.quadrants[o.quadrant] == 1:
            ways.append(f"{thing} in the {o.quadrant}")
        return ways or ([thing] if len(self.objects) == 1 else [])

    def without_size(self, o: SceneObject) -> list[str]:
        ways = self.without_place(o)
        if self.quadrants[o.quadrant] == 1:
            ways.append(f"{self.pick('shape', 'object')} in the {o.quadrant}")
        return ways

    def without_place(self, o: SceneObject) -> list[str]:
        ways = []
        if self.pairs[o.color, o.shape] == 1:
            ways += [_name(o), _name(o)]
        if self.shapes[o.shape] == 1:
            ways.append(o.shape)
        if self.colors[o.color] == 1:
            ways.append(f"{o.color} {self.pick('shape', 'object')}")
        return ways


def _what(view: _View) -> Iterator[_Candidate]:
    for o in view.objects:
        for ref in view.without_shape(o):
            forms = ["what is the {}?", "name the {}."]
            if "shape" not in ref:
                forms += ["what shape is the {}?", "which shape does the {} have?"]
            text = view.pick(*forms).format(ref)
            if " in the " in ref:
                where = ref.split(" in the ")[1]
                text = view.pick(text, f"what shape is in the {where}?", f"what is in the {where}?")
            yield _Candidate(Question("what", text, o.shape), view.weight(o))


def _of_each(
    view: _View, kind: str, ways: Callable[[SceneObject], list[str]], answer: str, *forms: str
) -> Iterator[_Candidate]:
    """Each object's field `answer`, asked for in one of the forms, by all ways to refer to it."""
    for o in view.objects:
        for ref in ways(o):
            text = view.pick(*forms).format(ref)
            yield _Candidate(Question(kind, text, getattr(o, answer)), view.weight(o))


def _color(view: _View) -> Iterator[_Candidate]:
    return _of_each(
        view,
        "color",
        view.without_color,
        "color",
        "what color is the {}?",
        "what is the color of the {}?",
        "which color does the {} have?",
        "tell me the color of the {}.",
    )


# Rarer answers are asked for more, so that "one" does not win by itself.
_COUNT_WEIGHT = {1: 0.3, 2: 1.0, 3: 3.0, 4: 8.0}


def _count(view: _View) -> Iterator[_Candidate]:
    def ask(things: str, number: int, weight: float = 1.0) -> _Candidate:
        text = view.pick(
            "how many {} are there?",
            "how many {} are in the image?",
            "how many {} do you see?",
            "count the {}.",
        ).format(things)
        return _Candidate(Question("count", text, NUMBERS[number]), weight * _COUNT_WEIGHT[number])

    yield ask(view.pick("shapes", "objects"), len(view.objects))
    for shape, number in view.shapes.items():
        members = [o for o in view.objects if o.shape == shape]
        yield ask(PLURALS[shape], number, view.weight(*members) ** 0.5)
    for color, number in view.colors.items():
        members = [o for o in view.objects if o.color == color]
        yield ask(f"{color} {view.pick('shapes', 'objects')}", number, view.weight(*members) ** 0.5)
    for size, number in Counter(o.size for o in view.objects).items():
        yield ask(f"{size} {view.pick('shapes', 'objects')}", number, 0.5)


def _where(view: _View) -> Iterator[_Candidate]:
    return _of_each(
        view,
        "where",
        view.without_place,
        "quadrant",
        "where is the {}?",
        "in which corner is the {}?",
        "which part of the image has the {}?",
        "where can you see the {}?",
    )


def _left(view: _View) -> Iterator[_Candidate]:
    for a in view.objects:
        for b in view.objects:
            if a is b or not related(a, "left of", b):
                continue
            held = relation_is_held_out(a.shape, "left of", b.shape)
            weight = 4.0 if held else view.weight(a, b)
            first, second = view.by_pair(a), view.by_pair(b)
            if first and second:
                pair = [first, second] if view.rng.random() < 0.5 else [second, first]
                text = view.pick(
                    "which is left of the other, the {} or the {}?",
                    "which is further left, the {} or the {}?",
                    "which one is more to the left, the {} or the {}?",
                ).format(*pair)
                yield _Candidate(Question("left", text, first), weight)
            only = not any(
                o is not a and o is not b and o.center[0] < b.center[0] + RELATION_MARGIN
                for o in view.objects
            )
            if only and second:
                text = view.pick("which shape is left of the {}?", "what is left of the {}?")
                yield _Candidate(Question("left", text.format(second), a.shape), weight)


def _yesno(view: _View) -> Iterator[_Candidate]:
    # The answer is chosen first, then something to ask that has it.
    yes = view.rng.random() < 0.5
    makers = [_ask_pair, _ask_pair, _ask_shape, _ask_color, _ask_count, _ask_size, _ask_tone]
    if len(view.objects) > 1:
        makers += [_ask_relation, _ask_relation]
    if yes and not view.guarded:
        makers += [_ask_pair] * 3
    for index in view.rng.permutation(len(makers)):
        found = makers[index](view, yes)
        if found:
            yield _Candidate(Question("yesno", found, "yes" if yes else "no"), 1.0)
            return


def _ask_pair(view: _View, yes: bool) -> str | None:
    if yes:
        held = [o for o in view.objects if (o.color, o.shape) in HELD_OUT_PAIRS]
        o = _pick(view.rng, held or view.objects)
        color, shape = o.color, o.shape
    else:
        # One of the two words fits, or a colour and a shape of different objects: looking at
        # either word alone does not answer it.
        o, other = _pick(view.rng, view.objects), _pick(view.rng, view.objects)
        color, shape = view.pick(
            (o.color, other.shape),
            (o.color, _pick(view.rng, SHAPES)),
            (_pick(view.rng, tuple(COLORS)), o.shape),
        )
        if view.pairs[color, shape] or not view.allows_pair(color, shape):
            return None
    return view.pick("is there {}?", "do you see {}?", "does the image show {}?").format(
        _a(f"{color} {shape}")
    )


def _ask_shape(view: _View, yes: bool) -> str | None:
    shape = _pick(view.rng, [s for s in SHAPES if bool(view.shapes[s]) == yes])
    return view.pick("is there {}?", "do you see {}?").format(_a(shape))


def _ask_color(view: _View, yes: bool) -> str | None:
    color = _pick(view.rng, [c for c in COLORS if bool(view.colors[c]) == yes])
    return view.pick("is anything {}?", "is there something {}?").format(color)


def _ask_count(view: _View, yes: bool) -> str | None:
    shape, number = _pick(view.rng, sorted(view.shapes.items()))
    if not yes:
        number = _pick(view.rng, [n for n in range(1, 5) if n != number])
    if number == 1:
        return f"is there exactly one {shape}?"
    return f"are there exactly {NUMBERS[number]} {PLURALS[shape]}?"


def _ask_size(view: _View, yes: bool) -> str | None:
    o = _pick(view.rng, view.objects)
    name = view.by_pair(o)
    if name is None:
        return None
    size = o.size if yes else next(s for s in SIZES if s != o.size)
    return f"is the {name} {size}?"


def _ask_tone(view: _View, yes: bool) -> str | None:
    tone = _pick(view.rng, [t for t in TONES if (t == view.scene.background.tone) == yes])
    return f"is the background {tone}?"


def _ask_relation(view: _View, yes: bool) -> str | None:
    found = []
    for a in view.objects:
        for b in view.objects:
            if a is b or not (view.by_pair(a) and view.by_pair(b)):
                continue
            for truth in RELATIONS:
                if not clearly_related(a, truth, b):
                    continue
                asked = truth if yes else MIRROR[truth]
                if view.allows_relation(a.shape, asked, b.shape):
                    held = relation_is_held_out(a.shape, truth, b.shape)
                    found += [(a, asked, b)] * (4 if held else 1)
    if not found:
        return None
    a, asked, b = _pick(view.rng, found)
    return f"is the {_name(a)} {_pick(view.rng, _RELATION_WORDS[asked])} the {_name(b)}?"


# What "is the square small?" asks for has to be seen before it can be compared: without these three
# a small model answers "no" to every such question for as long as we have trained one.


def _size(view: _View) -> Iterator[_Candidate]:
    return _of_each(
        view,
        "size",
        view.without_size,
        "size",
        "what size is the {}?",
        "what is the size of the {}?",
        "is the {} small or large?",
        "tell me the size of the {}.",
    )


def _background(view: _View) -> Iterator[_Candidate]:
    text = view.pick(
        "is the background dark, grey or light?",
        "what tone does the background have?",
        "what is the tone of the background?",
    )
    yield _Candidate(Question("background", text, view.scene.background.tone), 1.0)


_SIDES = dict(zip(RELATIONS, ("left", "right", "above", "below"), strict=True))


def _relation(view: _View) -> Iterator[_Candidate]:
    for a in view.objects:
        for b in view.objects:
            first, second = view.by_pair(a), view.by_pair(b)
            true = [r for r in RELATIONS if a is not b and clearly_related(a, r, b)]
            # Two objects can stand in two relations at once, and then none is the answer.
            if not (first and second and len(true) == 1):
                continue
            held = relation_is_held_out(a.shape, true[0], b.shape)
            text = view.pick(
                "is the {} left of, right of, above or below the {}?",
                "where is the {} relative to the {}?",
                "in which direction is the {} from the {}?",
            ).format(first, second)
            weight = 4.0 if held else view.weight(a, b)
            yield _Candidate(Question("relation", text, _SIDES[true[0]]), weight)


_MAKERS = dict(
    zip(
        QUESTION_TYPES,
        (_what, _color, _count, _where, _left, _yesno, _size, _background, _relation),
        strict=True,
    )
)


def _type_weights(view: _View) -> dict[str, float]:
    weights = {"what": 1.0, "color": 1.0, "where": 1.0, "yesno": 1.4, "left": 1.6}
    weights |= {"size": 0.6, "background": 0.3, "relation": 1.0}
    # A scene of one object can only answer "one".
    weights["count"] = {1: 0.1, 2: 0.7, 3: 1.8, 4: 5.0}[len(view.objects)]
    return weights


def questions(scene: Scene, rng: np.random.Generator, n: int) -> list[Question]:
    """Up to n different questions with certain answers, of types as different as possible.

    Answers are a shape, a colour, a number word, a quadrant ("top left"), the object further left
    ("red circle", or its shape), a size, the background's tone, a side ("above"), yes or no. Types
    and answers are drawn so that within a type no answer is much commoner than the others. In test
    scenes, questions about held-out combinations are preferred.
    """
    view = _View(scene, rng)
    chosen: list[Question] = []
    asked: set[str] = set()
    weights = _type_weights(view)
    remaining = dict(weights)
    barren = 0
    while len(chosen) < n and barren < 8:
        remaining = remaining or dict(weights)
        kind = _draw(rng, list(remaining), list(remaining.values()))
        del remaining[kind]
        options = [c for c in _MAKERS[kind](view) if c.question.question not in asked]
        if not options:
            barren += 1
            continue
        question = _draw(rng, options, [c.weight for c in options]).question
        asked.add(question.question)
        chosen.append(question)
    return chosen


def _draw(rng: np.random.Generator, options: list, weights: list[float]):
    left = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        left -= weight
        if left < 0:
            return option
    return options[-1]
