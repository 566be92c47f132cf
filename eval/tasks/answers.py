"""What a model wrote, read the way each benchmark reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

# -- yes or no -------------------------------------------------------------------------------


def pope_yes_no(text: str) -> str:
    """POPE's rule: "no" where the first sentence holds the word No, no or not; otherwise "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def mme_yes_no(text: str) -> str:
    """MME's rule: yes or no within the first four letters, otherwise "other", which is wrong."""
    start = text.lower().strip().replace(".", "")[:4]
    for word in ("yes", "no"):
        if word in start or start == word[0]:
            return word
    return "other"


# -- one of several options ------------------------------------------------------------------


def option_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that is meant, or None: MMBench's two rules without its third.

    First, exactly one option letter stands as a word of its own; an A in more than three words may
    be the article, and does not count. Second, exactly one option's text is in the answer. MMBench
    then asks a language model; here such an answer is wrong.
    """
    letters = ascii_uppercase[: len(options)]
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and not (named == ["A"] and len(words) > 3):
        return named[0]
    lowered = text.lower()
    held = [i for i, option in enumerate(options) if option.strip().lower() in lowered]
    exact = [i for i in held if options[i].strip().lower() == lowered.strip(" .")]
    chosen = exact if len(exact) == 1 else held
    return letters[chosen[0]] if len(chosen) == 1 else None


def circular_shifts(options: Sequence[str], answer: str) -> list[tuple[list[str], str]]:
    """MMBench's N questions of one with N options: each shift of the options by one, with the
    letter under which the right one then stands."""
    right, count = ascii_uppercase.index(answer), len(options)
    return [
        ([*options[shift:], *options[:shift]], ascii_uppercase[(right - shift) % count])
        for shift in range(count)
    ]


# -- free words ------------------------------------------------------------------------------


def short_answer(text: str) -> str:
    """Lower case without a full stop at the end, as LLaVA hands answers to GQA's exact match."""
    return text.strip().rstrip(".").lower().strip()


# Of VQA v2's evaluation, as EvalAI and TextVQA run it.
_TO_TEN = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
_NUMBERS = {word: str(number) for number, word in enumerate(_TO_TEN)} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_->@<`,?!'
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Each is recognised with any one of its apostrophes left out.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # sic


def vqa_answer(text: str) -> str:
    """VQA v2's official normalisation: lower case, no marks, digits for numbers up to ten, no
    articles, contractions with their apostrophes.

    A mark that touches a space anywhere is dropped everywhere, others become spaces; a full stop
    goes unless a digit follows it.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = whole = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _MARKS:
        touching = f"{mark} " in whole or f" {mark}" in whole
        text = text.replace(mark, "" if touching else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """VQA's soft accuracy against the answers of several people, ten in TextVQA.

    Each person is left out in turn: min(1, matches among the others / 3), averaged.
    """
    given = vqa_answer(text)
    same = [vqa_answer(answer) == given for answer in answers]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)
