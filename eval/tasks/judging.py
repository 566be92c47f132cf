"""One answer marked: what lm-eval's `process_results` makes of a question and what was written.

Each returns the same record under every metric of its task, from which `scores` computes them. A
record holds "answer" (what was written), "read" (as its benchmark reads it), "expected", "right"
(0 to 1), and the question's "category" and "group" where it has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vqrae.eval.tasks.answers import (
    mme_yes_no,
    option_letter,
    pope_yes_no,
    short_answer,
    vqa_accuracy,
    vqa_answer,
)
from vqrae.eval.tasks.scores import METRICS

Doc = Mapping[str, Any]


def pope(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    return _marked("pope", doc, results[0], pope_yes_no(results[0]))


def mme(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    return _marked("mme", doc, results[0], mme_yes_no(results[0]))


def mmbench(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    return _marked("mmbench", doc, results[0], option_letter(results[0], doc["options"]))


def seedbench(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    return _marked("seedbench", doc, results[0], option_letter(results[0], doc["options"]))


def ai2d(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    return _marked("ai2d", doc, results[0], option_letter(results[0], doc["options"]))


def gqa(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    read, expected = short_answer(results[0]), short_answer(doc["answer"])
    return _marked("gqa", doc, results[0], read, right=read == expected)


def textvqa(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    right = vqa_accuracy(results[0], doc["answer"])
    return _marked("textvqa", doc, results[0], vqa_answer(results[0]), right=right)


def scenes_vqa(doc: Doc, results: Sequence[str]) -> dict[str, dict]:
    from vqrae.eval.vqa import normalise_answer

    read = normalise_answer(results[0])
    right = read == normalise_answer(doc["answer"])
    return _marked("scenes_vqa", doc, results[0], read, right=right)


def _marked(
    task: str, doc: Doc, answer: str, read: str | None, *, right: float | None = None
) -> dict[str, dict]:
    record = {
        "id": doc["id"],
        "question": doc["question"],
        "answer": answer,
        "read": read,
        "expected": doc["answer"],
        "right": float(read == doc["answer"] if right is None else right),
    }
    record |= {key: doc[key] for key in ("category", "group", "plain") if key in doc}
    return dict.fromkeys(METRICS[task], record)
