"""The official GenEval rules, case by case."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from vqrae.eval.geneval import relative_position, score


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
