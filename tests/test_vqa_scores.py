"""The benchmarks' own rules on cases worked out by hand from their definitions."""

from __future__ import annotations

import pytest
from vqrae.eval.tasks import judging
from vqrae.eval.tasks.answers import (
    circular_shifts,
    mme_yes_no,
    option_letter,
    pope_yes_no,
    short_answer,
    vqa_accuracy,
    vqa_answer,
)
from vqrae.eval.tasks.scores import METRICS, SCORES


def marked(task: str, said: str, /, **doc) -> dict:
    """The record of one question."""
    doc = {"id": "0", "question": "?", **doc}
    records = getattr(judging, task)(doc, [said])
    assert set(records) == set(METRICS[task])
    return next(iter(records.values()))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "yes"),
        ("No, there is no dog.", "no"),
        ("There is a cat, not a dog", "no"),
        ("There is a dog. No cat", "yes"),  # the first sentence only
        ("nothing", "yes"),  # whole words only
        ("", "yes"),
    ],
)
def test_popes_reading(text, read):
    assert pope_yes_no(text) == read


def test_pope_by_hand():
    answers = {
        "random": [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")],
        "popular": [("yes", "yes"), ("no", "yes"), ("no", "yes"), ("no", "yes")],
        "adversarial": [("yes", "no"), ("no", "no")],
    }
    found = SCORES["pope"](
        [
            marked("pope", said, answer=true, category=part)
            for part, pairs in answers.items()
            for true, said in pairs
        ]
    )
    assert set(found) == set(METRICS["pope"])
    for name in ("f1", "accuracy", "precision", "recall", "yes_rate"):
        assert found[f"{name}_random"] == 1 / 2  # one of each kind
    assert found["precision_popular"] == 1 / 4 and found["recall_popular"] == 1
    assert found["f1_popular"] == pytest.approx(2 / 5) and found["yes_rate_popular"] == 1
    # never a yes: no precision to speak of
    assert found["f1_adversarial"] == found["precision_adversarial"] == 0
    assert found["accuracy_adversarial"] == 1 / 2
    assert found["f1"] == pytest.approx((1 / 2 + 2 / 5 + 0) / 3)
    assert found["accuracy"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 2) / 3)


@pytest.mark.parametrize(
    ("text", "read"),
    [("Yes.", "yes"), ("No, it is not", "no"), ("Y", "yes"), ("n", "no"), ("It is", "other")],
)
def test_mmes_reading(text, read):
    assert mme_yes_no(text) == read


def mme_records(category: str, *pictures: str) -> list[dict]:
    """Of each picture's two questions, "+" a right answer and "-" a wrong one."""
    return [
        marked("mme", "yes" if mark == "+" else "no", id=f"{picture}{n}", answer="yes",
               category=category, group=f"{category}/{picture}")
        for picture, marks in enumerate(pictures)
        for n, mark in enumerate(marks)
    ]  # fmt: skip


def test_mme_by_hand():
    records = mme_records("existence", "++", "+-") + mme_records("OCR", "--")
    records += mme_records("code_reasoning", "++")
    found = SCORES["mme"](records)
    assert found["existence"] == 75 + 50  # three of four questions, one of two pictures
    assert found["OCR"] == 0
    assert found["perception"] == 125 and found["cognition"] == found["code_reasoning"] == 200
    assert "count" not in found  # not asked
    # a picture drawn twice counts twice: five of six questions, two of three pictures
    twice = [*mme_records("existence", "++", "+-"), *mme_records("existence", "++")]
    assert SCORES["mme"](twice)["existence"] == pytest.approx(100 * (5 / 6 + 2 / 3))


def test_the_most_that_mme_gives():
    parts = [name for name in METRICS["mme"] if name not in ("perception", "cognition")]
    found = SCORES["mme"]([record for name in parts for record in mme_records(name, "++")])
    assert (found["perception"], found["cognition"]) == (2000, 800)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. blue", "B"),
        ("The answer is C.", "C"),
        ("A", "A"),
        ("A or B", None),
        ("A star that is blue", "B"),  # an article, then the text of one option
        ("dark blue", "C"),  # holds "blue", too, but is all of C
        ("It is red", "A"),
        ("no idea", None),
        ("D", None),  # there are three options
        ("", None),
    ],
)
def test_which_option_is_meant(text, letter):
    assert option_letter(text, ["red", "blue", "dark blue"]) == letter


def test_circular_shifts():
    assert circular_shifts(["x", "y", "z"], "B") == [
        (["x", "y", "z"], "B"),
        (["y", "z", "x"], "A"),
        (["z", "x", "y"], "C"),
    ]


def test_mmbench_by_hand():
    def records(question, category, *answers):
        shifts = circular_shifts(["x", "y"], "A")
        return [
            marked("mmbench", said, id=f"{question}{n}", options=options, answer=right,
                   group=question, plain=n == 0, category=category)
            for n, ((options, right), said) in enumerate(zip(shifts, answers, strict=True))
        ]  # fmt: skip

    found = SCORES["mmbench"](
        # always the letter A is right as written, and not the other way round
        records("1", "logic reasoning", "A", "B") + records("2", "Relation_Reasoning", "A", "A")
    )
    assert found == {
        "plain": 1.0,
        "circular": 1 / 2,
        "circular_logic_reasoning": 1.0,
        "circular_relation_reasoning": 0.0,
    }


def test_seedbench_by_hand():
    options = ["one", "two", "three", "four"]
    rows = [("A", "scene_understanding"), ("B", "scene_understanding"), ("B", "spatial_relation")]
    found = SCORES["seedbench"](
        [marked("seedbench", "B", options=options, answer=a, category=c) for a, c in rows]
    )
    assert found == {"accuracy": 2 / 3, "scene_understanding": 1 / 2, "spatial_relation": 1}


def test_gqa_and_ai2d():
    assert short_answer(" Left. ") == "left"
    gqa = [marked("gqa", said, answer="left") for said in ("Left.", "on the left")]
    assert SCORES["gqa"](gqa) == {"accuracy": 1 / 2}
    ai2d = [marked("ai2d", said, options=["sun", "moon"], answer="B") for said in ("moon", "A")]
    assert SCORES["ai2d"](ai2d) == {"accuracy": 1 / 2}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The dog's 2-door!", "dog 's 2 door"),
        ("three  Apples", "3 apples"),
        ("None", "0"),
        ("dont", "don't"),
        ("I couldnt've", "i couldn't've"),
        ("St. Mary, 3.5", "st mary 3.5"),
        ("1,000", "1000"),
        ("b/c", "b c"),
        ("d/ b/c", "d bc"),  # one slash beside a space, and all go
        ("an\nold\tman?", "old man"),
    ],
)
def test_vqa_normalisation(text, normal):
    assert vqa_answer(text) == normal


@pytest.mark.parametrize(
    ("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_soft_accuracy(matches, score):
    # of ten people; leaving out one of those who agree costs a third
    people = ["Two"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert vqa_accuracy("2.", people) == pytest.approx(score)
    record = marked("textvqa", "2.", answer=people)
    assert record["right"] == pytest.approx(score) and record["read"] == "2"
