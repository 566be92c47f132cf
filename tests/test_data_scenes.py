"""The scenes world: geometry, the split by combination, captions, questions and prompts."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import permutations

import numpy as np
import pytest
from vqrae.data import (
    CATEGORIES,
    COLORS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    HELD_OUT_SHAPE_PAIRS,
    QUESTION_TYPES,
    SHAPES,
    Background,
    Scene,
    SceneObject,
    captions,
    geneval_prompts,
    is_held_out,
    more_prompts,
    questions,
    render,
    sample_scene,
    scene_for_prompt,
)
from vqrae.data._scene_facts import fact_conversations
from vqrae.data.scenes import (
    CELL,
    PHASES,
    SIZES,
    TINTS,
    TONES,
    clearly_related,
    related,
    shape_mask,
)

NUMBER = {"one": 1, "two": 2, "three": 3, "four": 4}


def scenes(split: str, number: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split=split) for _ in range(number)]


def names_held_out(text: str) -> str | None:
    """What held-out combination a text names, found by its words alone."""
    for color, shape in HELD_OUT_PAIRS:
        if re.search(rf"\b{color} {shape}", text):
            return f"{color} {shape}"
    color = f"(?:(?:{'|'.join(SIZES)}) )?(?:(?:{'|'.join(COLORS)}) )?"
    some = "(?:an?|the|two|three)"
    for a, relation, b in HELD_OUT_RELATIONS:
        forward = {"left of": "(?:to the )?left of", "above": "(?:above|over)"}[relation]
        mirrored = {"left of": "(?:to the )?right of", "above": "(?:below|under)"}[relation]
        for first, words, second in ((a, forward, b), (b, mirrored, a)):
            if re.search(
                rf"{first}(?:e?s)? (?:is )?{words} {some} {color}{second}(?:e?s)?\b", text
            ):
                return f"{first} {words} {second}"
    for pair in HELD_OUT_SHAPE_PAIRS:
        if all(re.search(rf"\b{shape}(?:e?s)?\b", text) for shape in pair):
            return " with ".join(sorted(pair))
    return None


def test_the_text_check_itself():
    assert names_held_out("a red star")
    assert names_held_out("is the blue circle to the left of the red star?")
    assert names_held_out("a star right of a circle")
    assert names_held_out("two small blue stars to the right of a circle")
    assert names_held_out("a circle and two hearts")
    assert not names_held_out("a star left of a circle and a red circle")


def test_held_out_lists_are_balanced():
    assert len({c for c, _ in HELD_OUT_PAIRS}) == len(HELD_OUT_PAIRS) == len(COLORS) - 1
    assert sorted(s for _, s in HELD_OUT_PAIRS) == sorted(SHAPES)
    assert len(HELD_OUT_RELATIONS) == 8
    assert all(
        a != b and frozenset((a, b)) not in HELD_OUT_SHAPE_PAIRS for a, _, b in HELD_OUT_RELATIONS
    )
    assert sorted(s for pair in HELD_OUT_SHAPE_PAIRS for s in pair) == sorted(SHAPES)


def test_splits_differ_by_combination():
    train, test = scenes("train", 2000), scenes("test", 1000)
    assert not any(is_held_out(scene) for scene in train)
    assert all(is_held_out(scene) for scene in test)
    # The same by counting, without is_held_out.
    for scene in train:
        assert not {(o.color, o.shape) for o in scene.objects} & HELD_OUT_PAIRS
        for a, b in permutations(scene.objects, 2):
            assert frozenset((a.shape, b.shape)) not in HELD_OUT_SHAPE_PAIRS
            if a.center[0] + CELL / 2 <= b.center[0]:
                assert (a.shape, "left of", b.shape) not in HELD_OUT_RELATIONS
            if a.center[1] + CELL / 2 <= b.center[1]:
                assert (a.shape, "above", b.shape) not in HELD_OUT_RELATIONS
    # Everything else is trained.
    seen = {(o.color, o.shape) for scene in train for o in scene.objects}
    assert len(seen) == len(COLORS) * len(SHAPES) - len(HELD_OUT_PAIRS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_sampled_scenes_are_varied_and_even(split):
    many = scenes(split, 2000)
    counts = Counter(len(scene.objects) for scene in many)
    for number, share in zip(range(1, 5), (0.30, 0.35, 0.25, 0.10), strict=True):
        assert abs(counts[number] / len(many) - share) < 0.04
    objects = [o for scene in many for o in scene.objects]
    # Test scenes are made around held-out pairs, and one colour is in none of them.
    colors = sorted(c for c, _ in HELD_OUT_PAIRS) if split == "test" else list(COLORS)
    for values, found in (
        (SHAPES, Counter(o.shape for o in objects)),
        (colors, Counter(o.color for o in objects)),
    ):
        counts = [found[value] for value in values]
        assert min(counts) > 0 and max(counts) < 1.35 * min(counts)
    alike = [len({o.shape for o in s.objects}) == 1 for s in many if len(s.objects) > 2]
    assert 0.15 < np.mean(alike) < 0.45
    for scene in many:
        cells = [(o.row, o.col) for o in scene.objects]
        assert all(abs(r - s) + abs(c - d) > 1 for (r, c), (s, d) in permutations(cells, 2))


def test_sampling_options():
    rng = np.random.default_rng(0)
    assert len(sample_scene(rng, split="train", count=4).objects) == 4
    wide = [sample_scene(rng, split="train", jitter=2.0) for _ in range(200)]
    assert max(abs(o.dx) for s in wide for o in s.objects) > 1
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        sample_scene(rng, split="dev")
    with pytest.raises(ValueError, match="cannot have 5 objects"):
        sample_scene(rng, split="train", count=5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("extent", SIZES.values())
def test_masks_fill_their_box_exactly(shape, extent):
    mask = shape_mask(shape, extent, 2, 3, 24)
    ys, xs = np.nonzero(mask > 0.02)
    assert (xs.min(), ys.min()) == (2, 3)
    assert (xs.max() + 1, ys.max() + 1) == (2 + extent, 3 + extent)
    assert mask.max() == 1 and mask.min() == 0


def test_rendering_stays_in_cells_and_is_repeatable():
    for kind_scene in scenes("train", 50):
        image = render(kind_scene)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert np.array_equal(image, render(kind_scene))
        bare = render(Scene((), kind_scene.background))
        changed = (image != bare).any(axis=2).reshape(4, CELL, 4, CELL).any(axis=(1, 3))
        assert set(zip(*np.nonzero(changed), strict=True)) == {
            (o.row, o.col) for o in kind_scene.objects
        }


def test_backgrounds_are_nearly_grey_and_all_different():
    seen = set()
    for kind in ("plain", "gradient", "stripes", "checker", "dots"):
        for tone in TONES:
            for tint in TINTS:
                for phase in range(PHASES):
                    image = render(Scene((), Background(kind, tone, tint, phase))).astype(int)
                    assert (image.max(axis=2) - image.min(axis=2)).max() <= 14
                    assert image.std(axis=(0, 1)).max() < 12
                    seen.add(image.tobytes())
    assert len(seen) > 100
    palette = np.array(list(COLORS.values()), dtype=float)
    apart = np.linalg.norm(palette[:, None] - palette[None], axis=2) + 1e9 * np.eye(9)
    assert apart.min() > 95
    turned = {tuple(np.roll(color, 1)) for color in COLORS.values()}
    assert turned == set(COLORS.values())


def test_scene_round_trip_and_bad_descriptions():
    for scene in scenes("test", 50):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    spec = scenes("test", 1)[0].to_dict()
    with pytest.raises(ValueError, match="not a scene description"):
        Scene.from_dict({"objects": spec["objects"]})
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        Scene.from_dict(spec | {"objects": [spec["objects"][0] | {"shape": "blob"}]})
    with pytest.raises(ValueError, match="out of its cell"):
        SceneObject("circle", "red", "large", 0, 0, 3.0, 0.0)
    with pytest.raises(ValueError, match="outside the 4x4 grid"):
        SceneObject("circle", "red", "large", 4, 0)
    one = SceneObject("circle", "red", "large", 0, 0)
    with pytest.raises(ValueError, match="share a cell"):
        Scene((one, one))


# Language


def stated_objects(text: str) -> Counter:
    """Shapes a caption states, with their numbers."""
    found: Counter = Counter()
    adjectives = "|".join((*COLORS, *SIZES))
    for shape in SHAPES:
        pattern = rf"\b(an?|one|two|three|four) (?:(?:{adjectives}) )*{shape}(?:e?s)?\b"
        for number in re.findall(pattern, text):
            found[shape] += NUMBER.get(number, 1)
    return found


@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_state_exactly_what_the_scene_holds(split):
    rng = np.random.default_rng(3)
    shares = Counter()
    wordings = set()
    several = 0
    for scene in scenes(split, 1500):
        text = captions(scene, rng)
        assert len(text.split()) < 30
        assert stated_objects(text) == Counter(o.shape for o in scene.objects), text
        colors = {c for c in COLORS if re.search(rf"\b{c}\b", text)}
        photo = text.startswith("a photo of")
        assert colors == {o.color for o in scene.objects} or (photo and not colors), text
        for relation in ("left of", "right of", "above", "below"):
            found = re.search(rf"(\w+) (?:to the )?{relation} an? (?:(\w+) )?(\w+)\b", text)
            if found and found[1] in SHAPES and found[3] in SHAPES:
                assert any(
                    related(a, relation, b)
                    for a, b in permutations(scene.objects, 2)
                    if (a.shape, b.shape) == (found[1], found[3])
                ), text
        many = re.search(
            r"\btwo (?:small |large )?(?:(\w+) )?(\w+?)(?:e?s) (?:to the )?"
            r"(left of|right of|above|below) an? (?:small |large )?(?:(\w+) )?(\w+)\b",
            text,
        )
        if many and many[2] in SHAPES and ", with" not in text:
            several += 1
            first = [
                o for o in scene.objects if (many[1] or o.color, many[2]) == (o.color, o.shape)
            ]
            [one] = [o for o in scene.objects if many[5] == o.shape and o not in first]
            assert len(first) == 2 and all(clearly_related(o, many[3], one) for o in first), text
        if split == "train":
            assert not names_held_out(text), text
        shares[photo] += 1
        for word in (*COLORS, *SHAPES):
            text = re.sub(rf"\b{word}(e?s)?\b", "_", text)
        wordings.add(text)
    assert 0.25 < shares[True] / 1500 < 0.35
    assert several > 10
    assert len(wordings) > 100


def test_captions_name_objects_in_reading_order():
    """But relations are told either way, or nothing would be "below"."""
    rng = np.random.default_rng(4)
    in_order, relations = [], Counter()
    for scene in scenes("train", 1500):
        text = captions(scene, rng)
        told = [r for r in ("left of", "right of", "above", "over", "below", "under") if r in text]
        relations.update(told)
        objects = sorted(scene.objects, key=lambda o: (o.row, o.col))
        names = [f"{o.color} {o.shape}" for o in objects]
        if not told and len(set(names)) == len(names) == 3 and all(n in text for n in names):
            places = [text.index(name) for name in names]
            in_order.append(places == sorted(places))
    assert len(in_order) > 80 and all(in_order)
    below = relations["below"] + relations["under"]
    assert 0.8 < below / (relations["above"] + relations["over"]) < 1.25


def check_answer(scene: Scene, kind: str, question: str, answer: str) -> None:
    """An answer worked out a second time, from the question's words."""
    colors = [c for c in COLORS if re.search(rf"\b{c}\b", question)]
    shapes = [s for s in SHAPES if re.search(rf"\b{s}(e?s)?\b", question)]
    sizes = [s for s in SIZES if re.search(rf"\b{s}\b", question)]
    quadrant = re.search(r"(top|bottom) (left|right)", question)
    if kind == "background":
        assert "background" in question and answer == scene.background.tone
    elif kind == "relation":
        a, b = (
            next(o for o in scene.objects if f"{o.color} {o.shape}" == name)
            for name in re.findall(rf"(?:{'|'.join(COLORS)}) \w+", question)
        )
        assert Counter((o.color, o.shape) for o in scene.objects)[a.color, a.shape] == 1
        (x, y), (u, v) = a.center, b.center
        if abs(x - u) > abs(y - v):
            assert answer == ("left" if x < u else "right")
        else:
            assert answer == ("above" if y < v else "below")
    elif kind in ("what", "color", "count", "where", "size"):
        fitting = [
            o
            for o in scene.objects
            if (not colors or o.color == colors[0])
            and (not shapes or o.shape == shapes[0])
            and (not sizes or kind == "size" or o.size == sizes[0])
            and (not quadrant or o.quadrant == quadrant[0])
        ]
        if kind == "count":
            assert NUMBER[answer] == len(fitting)
            return
        assert len(fitting) == 1, "ambiguous"
        field = {"what": "shape", "color": "color", "where": "quadrant", "size": "size"}[kind]
        assert getattr(fitting[0], field) == answer
    elif kind == "left":
        named = [o for o in scene.objects if f"{o.color} {o.shape}" in question]
        if len(named) == 2:
            assert answer == "{0.color} {0.shape}".format(min(named, key=lambda o: o.center[0]))
        else:
            assert len(named) == 1
            left = [o for o in scene.objects if o.center[0] < named[0].center[0] - 3]
            assert [o.shape for o in left] == [answer]
    else:
        assert answer in ("yes", "no")
        truth = None
        if "background" in question:
            truth = scene.background.tone in question
        elif "exactly" in question:
            number = NUMBER[re.search(r"exactly (\w+)", question)[1]]
            truth = sum(o.shape == shapes[0] for o in scene.objects) == number
        elif sizes:
            named = [o for o in scene.objects if (o.color, o.shape) == (colors[0], shapes[0])]
            assert len(named) == 1
            truth = named[0].size == sizes[0]
        elif question.startswith("is the "):
            a, words, b = re.match(r"is the (\w+ \w+) (.*) the (\w+ \w+)\?", question).groups()
            by_name = {f"{o.color} {o.shape}": o for o in scene.objects}
            words = words.replace("to the ", "").replace("over", "above").replace("under", "below")
            truth = related(by_name[a], words, by_name[b])
        else:
            truth = any(
                (not colors or o.color == colors[0]) and (not shapes or o.shape == shapes[0])
                for o in scene.objects
            )
        assert truth == (answer == "yes")


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_are_certain_and_balanced(split):
    rng = np.random.default_rng(4)
    answers = defaultdict(Counter)
    about_new = 0
    many = scenes(split, 1500)
    for scene in many:
        asked = questions(scene, rng, 4)
        assert len({q.question for q in asked}) == len(asked) >= 2
        for q in asked:
            check_answer(scene, q.type, q.question, q.answer)
            assert len(q.answer.split()) <= 2
            answers[q.type][q.answer] += 1
            new = names_held_out(q.question)
            about_new += bool(new)
            if split == "train":
                assert not new, q.question
    assert set(answers) == set(QUESTION_TYPES)
    limit = {"what": 0.2, "color": 0.2, "count": 0.45, "where": 0.32, "left": 0.1, "yesno": 0.55}
    limit |= {"size": 0.58, "background": 0.45, "relation": 0.35}
    for kind, found in answers.items():
        assert sum(found.values()) > 200
        assert found.most_common(1)[0][1] / sum(found.values()) < limit[kind], kind
    assert set(answers["count"]) == set(NUMBER)
    if split == "test":
        assert about_new > 0.15 * len(many)


def test_facts_are_many_and_hold_nothing_back():
    records = fact_conversations()
    assert len({r["conversations"][0]["value"] for r in records}) == len(records) >= 300
    for record in records:
        for turn in record["conversations"]:
            listing = turn["value"].count(",") > 3  # "which shapes do you know?"
            assert listing or not names_held_out(turn["value"]), turn


# Prompts


@pytest.mark.parametrize("split", ["train", "test"])
def test_prompts_have_the_official_form(split):
    prompts = geneval_prompts(0, 20, split)
    assert Counter(p["tag"] for p in prompts) == dict.fromkeys(CATEGORIES, 20)
    assert prompts == geneval_prompts(np.random.default_rng(0), 20, split)
    for p in prompts:
        assert p["prompt"].startswith("a photo of")
        held = names_held_out(p["prompt"]) is not None
        assert held == (split == "test" and p["held_out"] != "nothing"), p
        match p["tag"]:
            case "counting":
                (want,), (ban,) = p["include"], p["exclude"]
                assert ban == {"class": want["class"], "count": want["count"] + 1}
            case "position":
                target, mover = p["include"]
                assert mover["position"][1] == 0 and "position" not in target
                assert p["prompt"].index(mover["class"]) < p["prompt"].index(target["class"])
            case "color_attr":
                first, second = p["include"]
                assert first["class"] != second["class"] and first["color"] != second["color"]


def test_more_prompts_hold_out_what_their_tag_says():
    prompts = more_prompts(0, 20)
    tags = Counter(p["tag"] for p in prompts)
    held = {"trained_combinations": 0, "two_beside_one": 0, "two_beside_one_held_out": 1}
    assert tags == dict.fromkeys(held, 20)
    assert prompts == more_prompts(np.random.default_rng(0), 20)
    for p in prompts:
        pairs = {(item.get("color"), item["class"]) for item in p["include"]}
        assert len(pairs & HELD_OUT_PAIRS) == held[p["tag"]]
        assert (names_held_out(p["prompt"]) is not None) == bool(held[p["tag"]]), p


def test_prompts_repeat_evenly_where_few():
    prompts = [p["prompt"] for p in geneval_prompts(0, 32, "test") if p["tag"] == "colors"]
    assert set(Counter(prompts).values()) == {4}


@pytest.mark.parametrize("split", ["train", "test"])
def test_scene_for_prompt_shows_what_is_asked(split):
    rng = np.random.default_rng(0)
    for p in geneval_prompts(1, 20, split):
        scene = scene_for_prompt(p, rng)
        wanted = Counter({i["class"]: i["count"] for i in p["include"]})
        assert Counter(o.shape for o in scene.objects) == wanted
        if split == "train":
            assert not is_held_out(scene)
