"""The scenes world: 64x64 pictures of coloured shapes, each with an exact description.

A scene has one to four objects, each in a cell of its own of a 4x4 grid, on a background of low
saturation. Objects never stand in cells that share a side, so that no two of them touch. The train
and test splits differ by COMBINATION: some colour-shape pairs, some pair relations and some pairs
of shapes are never trained, and every test scene contains at least one of them.

Lengths are in pixels of the 64x64 picture; x grows to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np

IMAGE_SIZE = 64
GRID = 4
CELL = IMAGE_SIZE // GRID

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
# Three hues and what a turn of the RGB channels makes of them, so that a picture with its channels
# turned is a picture of this world again.
_HUES = (
    (("red", "green", "blue"), (225, 25, 30)),
    (("orange", "mint", "purple"), (255, 135, 0)),
    (("yellow", "cyan", "pink"), (250, 240, 40)),
)
COLORS: dict[str, tuple[int, int, int]] = {
    name: (*rgb[3 - turn :], *rgb[: 3 - turn])
    for names, rgb in _HUES
    for turn, name in enumerate(names)
}
SIZES = {"small": 12, "large": 16}

KINDS = ("plain", "gradient", "stripes", "checker", "dots")
TONES = {"dark": 42, "grey": 126, "light": 222}
# Like the hues, closed under a turn of the channels.
TINTS = {"neutral": (0, 0, 0), "rosy": (6, -3, -3), "leafy": (-3, 6, -3), "icy": (-3, -3, 6)}
PHASES = 4

RELATIONS = ("left of", "right of", "above", "below")
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Two objects stand in a relation when their centres are at least this far apart along its axis.
RELATION_MARGIN = CELL / 2

COUNT_WEIGHTS = (0.30, 0.35, 0.25, 0.10)

# Each shape once and no colour twice.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "star"),
        ("orange", "heart"),
        ("yellow", "circle"),
        ("green", "diamond"),
        ("cyan", "triangle"),
        ("blue", "square"),
        ("purple", "ring"),
        ("pink", "cross"),
    }
)
# (a, relation, b): no training scene has an a in this relation to a b. Each shape once per axis;
# the mirrored wording ("b right of a") is the same relation.
HELD_OUT_RELATIONS: frozenset[tuple[str, str, str]] = frozenset(
    {
        ("circle", "left of", "star"),
        ("square", "left of", "ring"),
        ("heart", "left of", "triangle"),
        ("diamond", "left of", "cross"),
        ("star", "above", "square"),
        ("ring", "above", "diamond"),
        ("triangle", "above", "circle"),
        ("cross", "above", "heart"),
    }
)
# Shapes that never share a training scene. Each shape once.
HELD_OUT_SHAPE_PAIRS: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in (
        ("circle", "heart"),
        ("square", "cross"),
        ("triangle", "ring"),
        ("star", "diamond"),
    )
)

_COUNTS = [n for n, weight in enumerate(COUNT_WEIGHTS, 1) for _ in range(round(20 * weight))]
_ALL_ALIKE = ("shape", "both")
# Of the other scenes of three and four, those in which two objects are equal.
_TWO_ALIKE = 0.5
_SORTED_PAIRS = sorted(HELD_OUT_PAIRS)
_SORTED_RELATIONS = sorted(HELD_OUT_RELATIONS)
_SORTED_SHAPES = sorted(tuple(sorted(pair)) for pair in HELD_OUT_SHAPE_PAIRS)
_SUPERSAMPLE = 8


@dataclass(frozen=True)
class SceneObject:
    """One shape in cell (row, col); (dx, dy) moves its centre from the cell's centre."""

    shape: str
    color: str
    size: str
    row: int
    col: int
    dx: float = 0.0
    dy: float = 0.0

    def __post_init__(self) -> None:
        for field, value, valid in (
            ("shape", self.shape, SHAPES),
            ("color", self.color, COLORS),
            ("size", self.size, SIZES),
        ):
            if value not in valid:
                raise ValueError(f"unknown {field} {value!r} in a scene; use one of {list(valid)}")
        if not (0 <= self.row < GRID and 0 <= self.col < GRID):
            raise ValueError(f"cell ({self.row}, {self.col}) is outside the {GRID}x{GRID} grid")
        slack = (CELL - self.extent) / 2
        if max(abs(self.dx), abs(self.dy)) > slack:
            raise ValueError(
                f"offset ({self.dx}, {self.dy}) moves a {self.size} object out of its cell; "
                f"keep it within {slack} px"
            )

    @property
    def extent(self) -> int:
        """Width and height in pixels."""
        return SIZES[self.size]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return (self.col + 0.5) * CELL + self.dx, (self.row + 0.5) * CELL + self.dy

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels; x1 and y1 are the far edges."""
        (x, y), half = self.center, self.extent / 2
        return x - half, y - half, x + half, y + half

    @property
    def quadrant(self) -> str:
        """ "top left", "top right", "bottom left" or "bottom right"."""
        vertical = "top" if self.row < GRID // 2 else "bottom"
        return f"{vertical} {'left' if self.col < GRID // 2 else 'right'}"


@dataclass(frozen=True)
class Background:
    """A texture of low contrast and low saturation; `phase` shifts or turns its pattern."""

    kind: str = "plain"
    tone: str = "light"
    tint: str = "neutral"
    phase: int = 0

    def __post_init__(self) -> None:
        for field, value, valid in (
            ("kind", self.kind, KINDS),
            ("tone", self.tone, TONES),
            ("tint", self.tint, TINTS),
            ("phase", self.phase, range(PHASES)),
        ):
            if value not in valid:
                raise ValueError(
                    f"unknown background {field} {value!r} in a scene; use one of {list(valid)}"
                )


@dataclass(frozen=True)
class Scene:
    """Objects in cells of their own, on a background."""

    objects: tuple[SceneObject, ...]
    background: Background = Background()

    def __post_init__(self) -> None:
        if len({(o.row, o.col) for o in self.objects}) != len(self.objects):
            raise ValueError("two objects share a cell in a scene; give each a cell of its own")

    def to_dict(self) -> dict:
        """A JSON-ready description; `from_dict` reads it back."""
        return {
            "objects": [dict(vars(o)) for o in self.objects],
            "background": dict(vars(self.background)),
        }

    @classmethod
    def from_dict(cls, spec: dict) -> Scene:
        """Reads what `to_dict` wrote. Raises ValueError where the description is not a scene."""
        try:
            objects = tuple(SceneObject(**o) for o in spec["objects"])
            return cls(objects, Background(**spec["background"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a scene description: {error}; write scenes anew") from None


def related(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Whether a's centre lies in that direction from b's, by at least half a cell."""
    (ax, ay), (bx, by) = a.center, b.center
    offset = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
    return offset[relation] >= RELATION_MARGIN


def clearly_related(a: SceneObject, relation: str, b: SceneObject) -> bool:
    """Like `related`, and within 60 degrees of the relation's axis, as GenEval asks for."""
    (ax, ay), (bx, by) = a.center, b.center
    along = abs(ax - bx) if relation in ("left of", "right of") else abs(ay - by)
    # A little above GenEval's 0.5, because its margin shrinks the offset before the test.
    return related(a, relation, b) and along > 0.62 * float(np.hypot(ax - bx, ay - by))


def relation_is_held_out(shape_a: str, relation: str, shape_b: str) -> bool:
    """Whether "a RELATION b" is held out, in either wording."""
    return (shape_a, relation, shape_b) in HELD_OUT_RELATIONS or (
        shape_b,
        MIRROR[relation],
        shape_a,
    ) in HELD_OUT_RELATIONS


def is_held_out(scene: Scene) -> bool:
    """Whether the scene contains a combination that training never shows."""
    objects = scene.objects
    if _mixes_unseen([(o.color, o.shape) for o in objects]):
        return True
    return any(
        (a.shape, relation, b.shape) in HELD_OUT_RELATIONS and related(a, relation, b)
        for a, b in permutations(objects, 2)
        for relation in ("left of", "above")
    )


def _polygon(points: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Even-odd test of the points (u, v) against a closed polygon (P, 2)."""
    inside = np.zeros(u.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > v) != (y1 > v)
        inside ^= crosses & (u < (x1 - x0) * (v - y0) / (y1 - y0) + x0)
    return inside


def _fill_box(points: np.ndarray) -> np.ndarray:
    """Stretches points to span [-1, 1] in both directions."""
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / (high - low) * 2 - 1


def _star_points() -> np.ndarray:
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.44)
    return _fill_box(np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1))


def _heart_points() -> np.ndarray:
    # The notch (last term) is cut deeper than in the usual curve, to survive at 12 px.
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 6 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    return _fill_box(np.stack([x, y], axis=1))


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Membership of points in the shape, in coordinates where its box is [-1, 1] squared."""
    radius = np.hypot(u, v)
    match shape:
        case "circle":
            return radius <= 1
        case "square":
            return np.maximum(abs(u), abs(v)) <= 1
        case "triangle":
            return (abs(u) <= (v + 1) / 2) & (v <= 1)
        case "diamond":
            return abs(u) + abs(v) <= 1
        case "star":
            return _polygon(_star_points(), u, v)
        case "cross":
            return (np.minimum(abs(u), abs(v)) <= 0.34) & (np.maximum(abs(u), abs(v)) <= 1)
        case "ring":
            return (radius <= 1) & (radius >= 0.54)
        case "heart":
            return _polygon(_heart_points(), u, v)
    raise ValueError(f"unknown shape {shape!r}; use one of {list(SHAPES)}")


@lru_cache(maxsize=8192)
def shape_mask(shape: str, extent: float, x0: float, y0: float, canvas: int = CELL) -> np.ndarray:
    """Coverage in [0, 1], float32 (canvas, canvas), of a shape whose box starts at (x0, y0).

    Antialiased by supersampling. The array is shared: do not write to it.
    """
    step = (np.arange(canvas * _SUPERSAMPLE) + 0.5) / _SUPERSAMPLE
    u = (step - x0) / extent * 2 - 1
    v = (step - y0) / extent * 2 - 1
    inside = _inside(shape, *np.meshgrid(u, v))
    mask = inside.reshape(canvas, _SUPERSAMPLE, canvas, _SUPERSAMPLE).mean(axis=(1, 3))
    mask = mask.astype(np.float32)
    mask.setflags(write=False)
    return mask


@lru_cache(maxsize=512)
def _background_pixels(background: Background) -> np.ndarray:
    """Float32 (64, 64, 3). Patterns repeat every 16 px, so that all cells look alike."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    phase = background.phase
    match background.kind:
        case "plain":
            level = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
        case "gradient":
            along = (x, y, IMAGE_SIZE - 1 - x, IMAGE_SIZE - 1 - y)[phase]
            level = along / (IMAGE_SIZE - 1) * 32 - 16
        case "stripes":
            along = (x if phase < 2 else y) + 4 * (phase % 2)
            level = np.where(along % 8 < 4, 9, -9)
        case "checker":
            level = np.where(((x + 4 * phase) // 8 + y // 8) % 2 == 0, 9, -9)
        case _:
            shift = 2 * phase
            radius = np.hypot((x + shift) % 8 - 3.5, (y + shift) % 8 - 3.5)
            level = 16 * np.clip(3.0 - radius, 0, 1) - 6
    base = TONES[background.tone] + np.array(TINTS[background.tint])
    pixels = (base + level[..., None]).astype(np.float32)
    pixels.setflags(write=False)
    return pixels


def render(scene: Scene) -> np.ndarray:
    """Draws the scene: uint8 (64, 64, 3), antialiased, the same bytes for the same scene."""
    pixels = _background_pixels(scene.background).copy()
    for o in scene.objects:
        half = (CELL - o.extent) / 2
        mask = shape_mask(o.shape, o.extent, half + o.dx, half + o.dy)[..., None]
        window = pixels[o.row * CELL : (o.row + 1) * CELL, o.col * CELL : (o.col + 1) * CELL]
        window += mask * (np.array(COLORS[o.color], dtype=np.float32) - window)
    return (pixels + 0.5).astype(np.uint8)


def _pick(rng: np.random.Generator, options):
    """One of a sequence, evenly. (Generator.choice is slow and turns strings into NumPy's.)"""
    return options[int(rng.random() * len(options))]


def sample_background(rng: np.random.Generator) -> Background:
    """Any of the backgrounds, evenly by kind, tone, tint and phase."""
    kind, tone = _pick(rng, KINDS), _pick(rng, tuple(TONES))
    tint = _pick(rng, tuple(TINTS))
    return Background(kind, tone, tint, _pick(rng, range(PHASES)))


def place(
    rng: np.random.Generator,
    pairs: list[tuple[str, str]],
    *,
    sizes: list[str] | None = None,
    jitter: float = 0.0,
) -> tuple[SceneObject, ...]:
    """Puts (color, shape) pairs into random cells that share no side, off centre by +-jitter px."""
    free = [(row, col) for row in range(GRID) for col in range(GRID)]
    objects = []
    for index, (color, shape) in enumerate(pairs):
        row, col = _pick(rng, free)
        free = [(r, c) for r, c in free if abs(r - row) + abs(c - col) > 1]
        size = sizes[index] if sizes else _pick(rng, tuple(SIZES))
        limit = min(jitter, (CELL - SIZES[size]) / 2)
        # Steps of a whole pixel keep the box on pixel edges.
        steps = [float(step) for step in range(-int(limit), int(limit) + 1)]
        dx, dy = _pick(rng, steps), _pick(rng, steps)
        objects.append(SceneObject(shape, color, size, row, col, dx, dy))
    return tuple(objects)


def _sample_pairs(
    rng: np.random.Generator, count: int, alike: str, planted: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """(color, shape) of `count` objects, the planted ones first.

    alike: all are alike in "shape" or "both", or the first has its equal ("two"), or "".
    """
    colors = tuple(COLORS)
    pairs = planted or [(_pick(rng, colors), _pick(rng, SHAPES))]
    if alike == "two":
        pairs = [*pairs, pairs[0]]
    while len(pairs) < count:
        color = pairs[0][0] if alike == "both" else _pick(rng, colors)
        shape = pairs[0][1] if alike in _ALL_ALIKE else _pick(rng, SHAPES)
        pairs = [*pairs, (color, shape)]
    return pairs


def _plant(rng: np.random.Generator, count: int, alike: str) -> list[tuple[str, str]]:
    """Pairs that make a test scene what it is: held out by its pair, a relation or its shapes."""
    what = (
        "pair"
        if count == 1 or alike in _ALL_ALIKE
        else _pick(rng, ("pair", "pair", "relation", "shapes"))
    )
    if what == "pair":
        return [_pick(rng, _SORTED_PAIRS)]
    shapes = (
        _pick(rng, _SORTED_RELATIONS)[::2] if what == "relation" else _pick(rng, _SORTED_SHAPES)
    )
    return [(_pick(rng, tuple(COLORS)), shape) for shape in shapes]


def _mixes_unseen(pairs: list[tuple[str, str]]) -> bool:
    """Whether (color, shape) pairs are held out wherever they stand."""
    shapes = {shape for _, shape in pairs}
    return any(pair in HELD_OUT_PAIRS for pair in pairs) or any(
        unseen <= shapes for unseen in HELD_OUT_SHAPE_PAIRS
    )


def sample_scene(
    rng: np.random.Generator,
    *,
    split: str,
    count: int | None = None,
    same_shape: float = 0.25,
    jitter: float = 0.0,
) -> Scene:
    """A random scene of a split.

    Args:
        rng: the only source of chance.
        split: "train" (never a held-out combination) or "test" (always at least one).
        count: number of objects, 1 to 4; by default drawn with weights .3, .35, .25, .1.
        same_shape: share of the scenes with several objects in which all have one shape.
        jitter: largest offset of an object from its cell's centre, in pixels.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; use 'train' or 'test'")
    if count is None:
        count = _pick(rng, _COUNTS)
    elif not 1 <= count <= 4:
        raise ValueError(f"a scene cannot have {count} objects; ask for 1 to 4")
    # Settled before anything is drawn again, so that what is held out does not skew the share.
    alike = "" if count == 1 or rng.random() >= same_shape else _pick(rng, _ALL_ALIKE)
    if not alike and count > 2 and rng.random() < _TWO_ALIKE:
        alike = "two"
    test = split == "test"
    while True:
        pairs = _sample_pairs(rng, count, alike, _plant(rng, count, alike) if test else [])
        if not test and _mixes_unseen(pairs):
            continue
        if test:  # which object comes first must not tell which one was planted
            pairs = [pairs[i] for i in rng.permutation(count)]
        scene = Scene(place(rng, pairs, jitter=jitter), sample_background(rng))
        if is_held_out(scene) == test:
            return scene
