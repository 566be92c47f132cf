"""The official GenEval rules, case by case."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from vqrae.eval.geneval import ALL, Rules, judge, kept, relative_position, score
from vqrae.eval.geneval_prompts import (
    CLASSES,
    COLORS,
    OFFICIAL_SHA256,
    coco_prompts,
    first_of_each,
    prompts_sha256,
)


@dataclass(frozen=True)
class Found:
    class_: str
    color: str
    box: tuple[float, float, float, float]
    score: float = 0.9


def at(x: float, y: float, side: float = 10) -> tuple[float, float, float, float]:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


RED_CIRCLE = Found("circle", "red", at(10, 30))
BLUE_STAR = Found("star", "blue", at(50, 30))


def test_include_counts_at_least():
    meta = {"include": [{"class": "circle", "count": 1}]}
    assert score([RED_CIRCLE], meta) == (True, "")
    assert score([RED_CIRCLE, RED_CIRCLE, BLUE_STAR], meta)[0]  # more, and others, do not harm
    assert score([BLUE_STAR], meta) == (False, "expected circle>=1, found 0")
    both = {"include": [{"class": "circle", "count": 1}, {"class": "star", "count": 1}]}
    assert score([RED_CIRCLE, BLUE_STAR], both)[0]
    assert score([], both)[1] == "expected circle>=1, found 0; expected star>=1, found 0"


@pytest.mark.parametrize(("number", "correct"), [(1, False), (2, True), (3, False)])
def test_counting_excludes_one_more(number, correct):
    meta = {
        "include": [{"class": "circle", "count": 2}],
        "exclude": [{"class": "circle", "count": 3}],
    }
    assert score([RED_CIRCLE] * number, meta)[0] is correct


def test_color_of_the_most_confident_only():
    meta = {"include": [{"class": "circle", "count": 1, "color": "red"}]}
    sure_blue = Found("circle", "blue", at(40, 40), 0.95)
    unsure_blue = Found("circle", "blue", at(40, 40), 0.5)
    assert score([RED_CIRCLE], meta)[0]
    assert score([unsure_blue, RED_CIRCLE], meta)[0]
    correct, reason = score([RED_CIRCLE, sure_blue], meta)
    assert not correct and reason == "expected red circle>=1, found 1 blue"


def test_color_attribution_binds_colour_to_class():
    meta = {
        "include": [
            {"class": "circle", "count": 1, "color": "red"},
            {"class": "star", "count": 1, "color": "blue"},
        ]
    }
    assert score([RED_CIRCLE, BLUE_STAR], meta)[0]
    swapped = [Found("circle", "blue", at(10, 30)), Found("star", "red", at(50, 30))]
    assert not score(swapped, meta)[0]


@pytest.mark.parametrize(
    ("relation", "correct"),
    [("left of", True), ("right of", False), ("above", False), ("below", False)],
)
def test_position(relation, correct):
    meta = {
        "include": [
            {"class": "star", "count": 1},
            {"class": "circle", "count": 1, "position": [relation, 0]},
        ]
    }
    assert score([RED_CIRCLE, BLUE_STAR], meta)[0] is correct


def test_position_without_its_target():
    meta = {
        "include": [
            {"class": "ring", "count": 1},
            {"class": "circle", "count": 1, "position": ["left of", 0]},
        ]
    }
    correct, reason = score([RED_CIRCLE], meta)
    assert not correct
    assert reason == "expected ring>=1, found 0; no target for circle to be left of"


def test_relative_position_margin_and_cone():
    # 0.1 * (10 + 10) = 2 px of margin in each direction.
    assert relative_position(at(30, 30), at(32, 30)) == set()
    assert relative_position(at(30, 30), at(30, 30)) == set()
    # 4 px apart, 2 remain: exactly half of the distance is not over half.
    assert relative_position(at(28, 30), at(32, 30)) == set()
    assert relative_position(at(27, 30), at(32, 30)) == {"left of"}
    assert relative_position(at(30, 50), at(30, 10)) == {"below"}
    assert relative_position(at(10, 10), at(50, 50)) == {"left of", "above"}
    # 20 to the right, 60 down: the right share, (20 - 2) / 63, is too small.
    assert relative_position(at(40, 70), at(20, 10)) == {"below"}
    # Larger boxes need a larger offset.
    assert relative_position(at(30, 30, 40), at(38, 30, 40)) == set()


def test_duplicate_clauses_and_empty_metadata():
    clause = {"class": "circle", "count": 1}
    assert score([RED_CIRCLE], {"include": [clause, clause]})[0]
    assert score([], {}) == (True, "")


def test_thresholds_are_exceeded_and_counting_has_its_own():
    objects = [Found("cup", "red", at(10, 10), score) for score in (0.3, 0.31, 0.9, 0.95)]
    assert [o.score for o in kept(objects, "colors", Rules())] == [0.95, 0.9, 0.31]
    assert [o.score for o in kept(objects, "counting", Rules())] == [0.95]
    assert len(kept(objects, "counting", ALL)) == 4
    two = {
        "tag": "counting",
        "include": [{"class": "cup", "count": 2}],
        "exclude": [{"class": "cup", "count": 3}],
    }
    assert judge(objects, two, Rules()) == (False, "expected cup>=2, found 1")
    assert judge(objects, two, Rules(counting_threshold=0.5))[0]
    assert judge(objects, two, Rules(counting_threshold=0.3)) == (False, "expected cup<3, found 3")


def test_sixteen_of_a_class_at_most():
    cups = [Found("cup", "red", at(10, 10), 0.5 + i / 100) for i in range(20)]
    forks = [Found("fork", "red", at(10, 10), 0.4)]
    found = kept(forks + cups, "two_object", Rules())
    assert len(found) == 17 and found[0].score == 0.69 and found[-1].class_ == "fork"
    many = {"tag": "single_object", "include": [{"class": "cup", "count": 17}]}
    assert not judge(cups, many, Rules())[0] and judge(cups, many, Rules(max_objects=None))[0]


def test_an_excluded_other_class():
    meta = {
        "tag": "single_object",
        "include": [{"class": "cup", "count": 1}],
        "exclude": [{"class": "fork", "count": 1}],
    }
    cup, fork = Found("cup", "red", at(1, 1), 0.8), Found("fork", "red", at(1, 1), 0.2)
    assert judge([cup, fork], meta, Rules())[0]  # too unsure to count
    assert judge([cup, fork], meta, ALL) == (False, "expected fork<1, found 1")


def test_the_official_prompts_come_from_their_seed():
    prompts = coco_prompts()
    assert prompts_sha256(prompts) == OFFICIAL_SHA256 and len(prompts) == 553
    numbers = {tag: 0 for tag in ("single_object", "two_object", "counting")}
    for prompt in prompts:
        if prompt["tag"] in numbers:
            numbers[prompt["tag"]] += 1
    assert numbers == {"single_object": 80, "two_object": 99, "counting": 80}
    assert len(CLASSES) == len(set(CLASSES)) == 80


def test_the_grammar_of_the_prompts():
    prompts = coco_prompts(seed=7, per_category=40)
    assert len({p["prompt"] for p in prompts}) == len(prompts) <= 240
    for prompt in prompts:
        words = prompt["prompt"].removeprefix("a photo of ")
        first = prompt["include"][0]
        match prompt["tag"]:
            case "counting":
                [more] = prompt["exclude"]
                assert more == {"class": first["class"], "count": first["count"] + 1}
                assert words.split()[0] == ["two", "three", "four"][first["count"] - 2]
            case "position":
                mover = prompt["include"][1]
                relation, index = mover["position"]
                a, b = words.split(f" {relation} ")
                assert a.endswith(mover["class"]) and b.endswith(first["class"]) and index == 0
            case "colors" | "color_attr":
                assert all(c["color"] in COLORS for c in prompt["include"])
                assert all(c["class"] != "person" for c in prompt["include"])
            case _:
                assert all(c["class"] in words for c in prompt["include"])
    two = first_of_each(prompts, 2)
    assert len(two) == 12 and two[:2] == prompts[:2] and two[-1]["tag"] == "color_attr"
    assert coco_prompts(7, 40) == prompts != coco_prompts(8, 40)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        coco_prompts(per_category=0)
