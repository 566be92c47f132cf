"""Visual questions by exact match, beside the best answer that needs no eyes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vqrae.eval.protocol import picture_sha256, set_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image

    Ask = Callable[[Sequence[Image], Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class VQAItem:
    """One question about one picture."""

    image: Path
    question: str
    answer: str
    type: str


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, no full stop at the end: what exact match compares."""
    return " ".join(text.lower().split()).rstrip(". ")


def read_questions(path: str | Path, *, image_root: str | Path | None = None) -> list[VQAItem]:
    """Every question of a LLaVA-style JSON list, each on its own, in the file's order.

    Types come from "question_types", "question" where there are none.
    Raises ValueError where the file is missing, is not such a list, or holds no question.
    """
    path = Path(path)
    root = path.parent if image_root is None else Path(image_root)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"questions '{path}' not found; write them with vqrae data") from None
    except ValueError as error:
        raise ValueError(f"questions '{path}' are not JSON ({error}); write them again") from None
    items = []
    for number, entry in enumerate(entries):
        try:
            turns = entry["conversations"]
            asked, answered = turns[0::2], turns[1::2]
            types = entry.get("question_types") or ["question"] * len(asked)
            for question, answer, kind in zip(asked, answered, types, strict=True):
                text = question["value"].replace("<image>", "").strip()
                items.append(VQAItem(root / entry["image"], text, answer["value"], kind))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"entry {number} of '{path}' is not a LLaVA-style entry with an image and pairs "
                "of questions and answers; mend or remove it"
            ) from None
    if not items:
        raise ValueError(f"'{path}' holds no question; write the data again")
    return items


def commonest_answers(items: Sequence[VQAItem]) -> dict[str, str]:
    """The commonest normalised answer of each question type; ties go to the alphabet."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for item in items:
        counts[item.type][normalise_answer(item.answer)] += 1
    return {kind: min(c, key=lambda a: (-c[a], a)) for kind, c in counts.items()}


def accuracy_by_type(items: Sequence[VQAItem], answers: Sequence[str]) -> dict[str, Any]:
    """overall (share of all questions), types {type: share}, counts {type: number}."""
    right: Counter = Counter()
    counts: Counter = Counter()
    for item, answer in zip(items, answers, strict=True):
        counts[item.type] += 1
        right[item.type] += normalise_answer(answer) == normalise_answer(item.answer)
    types = {kind: right[kind] / counts[kind] for kind in sorted(counts)}
    return {
        "overall": sum(right.values()) / sum(counts.values()),
        "types": types,
        "counts": dict(sorted(counts.items())),
    }


def blind_baselines(items: Sequence[VQAItem], train: Sequence[VQAItem] | None) -> dict[str, Any]:
    """Always the commonest answer of each type, measured on `items`: the stronger of two.

    "train": commonest in the train split, what a blind model could know (None without one).
    "test": commonest in `items` themselves, which nobody can know; it is the stronger whenever
    the splits differ. Returns both, and "stronger" with the name of the one in "source".
    """
    found = {}
    for name, source in (("train", train), ("test", items)):
        if source is None:
            continue
        common = commonest_answers(source)
        answers = [common.get(item.type, "") for item in items]
        found[name] = accuracy_by_type(items, answers) | {"answers": common}
    best = max(found, key=lambda name: found[name]["overall"])
    words = None if train is None else accuracy_by_type(items, _answers_by_words(items, train))
    return {
        "train": found.get("train"),
        "test": found["test"],
        "words": words,
        "guess": _random_guess(items, items if train is None else train),
        "stronger": found[best],
        "source": best,
    }


def _answers_by_words(items: Sequence[VQAItem], train: Sequence[VQAItem]) -> list[str]:
    by_words: dict[str, Counter] = defaultdict(Counter)
    for item in train:
        by_words[item.question.lower()][normalise_answer(item.answer)] += 1
    best = {text: min(c, key=lambda a: (-c[a], a)) for text, c in by_words.items()}
    by_type = commonest_answers(train)
    return [best.get(i.question.lower(), by_type.get(i.type, "")) for i in items]


def _random_guess(items: Sequence[VQAItem], known: Sequence[VQAItem]) -> dict[str, Any]:
    """Overall and per type, the expected share right of an even guess among a type's answers."""
    answers: dict[str, set[str]] = defaultdict(set)
    for item in known:
        answers[item.type].add(normalise_answer(item.answer))
    kinds = Counter(item.type for item in items)
    types = {kind: 1 / len(answers[kind]) if answers[kind] else 0.0 for kind in sorted(kinds)}
    overall = sum(types[kind] * number for kind, number in kinds.items()) / len(items)
    return {"overall": overall, "types": types}


def ask_with(model: Any, processor: Any, *, max_new_tokens: int = 16) -> Ask:
    """Greedy answers of a unified model, each question on its own, a batch at a time."""
    from vqrae.generation import answer

    def ask(images: Sequence[Image], questions: Sequence[str]) -> Sequence[str]:
        return answer(
            model, processor, list(images), list(questions), max_new_tokens=max_new_tokens
        )

    return ask


def evaluate_vqa(
    model: Any,
    processor: Any,
    test_json: str | Path,
    *,
    train_json: str | Path | None = None,
    limit: int | None = 1000,
    batch_size: int = 64,
    seed: int = 0,
    examples: int = 12,
    ask: Ask | None = None,
) -> dict[str, Any]:
    """Accuracy by exact match over the questions of a LLaVA-style file.

    limit: at most so many questions, drawn with `seed` (None: all). train_json: where the blind
    baseline's answers come from besides the test questions. ask: in place of the model, a
    function of a batch of images and questions to answers.

    Returns overall (share of all questions), types, counts, baseline (see blind_baselines),
    examples [{"image", "question", "answer", "expected", "type", "right"}], where right and wrong
    answers stand in the proportion that they have in the whole, questions_sha256 (of questions,
    answers and pictures), and each [{"id", "picture", "question", ...}], one a question.
    """
    from vqrae.data import open_image

    items = read_questions(test_json)
    rng = np.random.default_rng([seed, 0x7A])
    order = rng.permutation(len(items))[: len(items) if limit is None else limit]
    items = [items[index] for index in order]
    ask = ask or ask_with(model, processor)
    answers: list[str] = []
    # neighbours of like length waste no padding; the answers go back to their own places
    by_length = sorted(range(len(items)), key=lambda i: len(items[i].question))
    placed: dict[int, str] = {}
    seen: dict[int, str] = {}
    for start in range(0, len(items), batch_size):
        places = by_length[start : start + batch_size]
        batch = [items[place] for place in places]
        pictures = [open_image(item.image) for item in batch]
        replies = ask(pictures, [i.question for i in batch])
        placed.update(zip(places, replies, strict=True))
        seen.update(zip(places, map(picture_sha256, pictures), strict=True))
    answers = [placed[place] for place in range(len(items))]
    train = None if train_json is None else read_questions(train_json)
    each = [
        {
            "id": str(index),
            "picture": seen[place][:16],
            "question": item.question,
            "answer": answer,
            "expected": item.answer,
            "type": item.type,
            "right": normalise_answer(answer) == normalise_answer(item.answer),
        }
        for place, (index, item, answer) in enumerate(zip(order, items, answers, strict=True))
    ]
    asked = ([seen[place], i.question, i.answer, i.type] for place, i in enumerate(items))
    return {
        **accuracy_by_type(items, answers),
        "questions": len(items),
        "baseline": blind_baselines(items, train),
        "questions_sha256": set_sha256(map(json.dumps, asked)),
        "each": each,
        # the items are in random order already: the first ones are a fair sample
        "examples": [
            question | {"image": open_image(item.image)}
            for question, item in list(zip(each, items, strict=True))[:examples]
        ],
    }
