"""The published numbers of each benchmark, from records of its questions; see `judging`.

SCORES[task](records) gives {metric: value}: shares from 0 to 1, but MME's points. A YAML file names
the aggregation of one metric as `vqrae.eval.tasks.scores.TASK__METRIC`, which this module makes.

Records may repeat, as they do when questions are drawn with replacement for an interval: what is
asked several times counts as often.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Record = dict[str, Any]
Scores = dict[str, float]

POPE_PARTS = ("random", "popular", "adversarial")
POPE_METRICS = ("f1", "accuracy", "precision", "recall", "yes_rate")
MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
SEED_DIMENSIONS = (
    "scene_understanding", "instance_identity", "instance_attributes", "instance_location",
    "instances_counting", "spatial_relation", "instance_interaction", "visual_reasoning",
    "text_understanding",
)  # fmt: skip
"""SEED-Bench's question types 1 to 9, those with a picture; 10 to 12 are about videos."""

METRICS: dict[str, tuple[str, ...]] = {
    "pope": (*POPE_METRICS, *(f"{m}_{part}" for part in POPE_PARTS for m in POPE_METRICS)),
    "gqa": ("accuracy",),
    "textvqa": ("accuracy",),
    "mmbench": ("circular", "plain"),
    "mme": ("perception", "cognition", *MME_PERCEPTION, *MME_COGNITION),
    "seedbench": ("accuracy", *SEED_DIMENSIONS),
    "ai2d": ("accuracy",),
    "scenes_vqa": ("accuracy",),
}
"""What the YAML files list. Scores of categories that only the data name come on top."""


def mean_right(records: Iterable[Record]) -> float:
    """The mean of "right"."""
    values = [record["right"] for record in records]
    return sum(values) / len(values)


def by(records: Iterable[Record], key: str) -> dict[str, list[Record]]:
    """Records by a field, in the order in which its values first come."""
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        parts[record[key]].append(record)
    return dict(parts)


def accuracy(records: Sequence[Record]) -> Scores:
    """GQA, TextVQA, AI2D."""
    return {"accuracy": mean_right(records)}


def pope(records: Sequence[Record]) -> Scores:
    """Of each part with "yes" as the positive class, and the mean over the parts.

    Precision without any yes, and so F1, is 0.
    """
    parts = by(records, "category")
    found: Scores = {}
    for part in POPE_PARTS:
        if part in parts:
            found |= {f"{name}_{part}": value for name, value in _yes_no(parts[part]).items()}
    for name in POPE_METRICS:
        values = [found[f"{name}_{part}"] for part in POPE_PARTS if part in parts]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _yes_no(records: Sequence[Record]) -> Scores:
    said = sum(record["read"] == "yes" for record in records)
    true = sum(record["expected"] == "yes" for record in records)
    both = sum(record["read"] == record["expected"] == "yes" for record in records)
    precision, recall = both / said if said else 0.0, both / true if true else 0.0
    return {
        "f1": 2 * both / (said + true) if said + true else 0.0,
        "accuracy": mean_right(records),
        "precision": precision,
        "recall": recall,
        "yes_rate": said / len(records),
    }


def all_right(records: Sequence[Record]) -> tuple[float, float]:
    """(groups in which every question is right, groups), by the records' "group"."""
    right = total = 0.0
    for members in by(records, "group").values():
        # a group drawn twice has each of its questions twice
        copies = len(members) / len({record["id"] for record in members})
        total += copies
        right += copies * all(record["right"] for record in members)
    return right, total


def mme(records: Sequence[Record]) -> Scores:
    """Points: of a subtask 100 * (accuracy + accuracy+), where accuracy+ is the share of pictures
    both of whose questions are right; perception sums ten subtasks, cognition four.

    Only subtasks that were asked count: of a part of MME the sums are lower.
    """
    parts = by(records, "category")
    found: Scores = {}
    for name in (*MME_PERCEPTION, *MME_COGNITION):
        if name in parts:
            right, pictures = all_right(parts[name])
            found[name] = 100 * (mean_right(parts[name]) + right / pictures)
    for total, names in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
        if any(name in found for name in names):
            found[total] = sum(found.get(name, 0.0) for name in names)
    return found


def mmbench(records: Sequence[Record]) -> Scores:
    """plain: share right of the questions as written. circular: share of the questions right under
    every shift of their options, also for each of the file's categories."""
    right, total = all_right(records)
    found = {"circular": right / total}
    unshifted = [record for record in records if record["plain"]]
    if unshifted:
        found["plain"] = mean_right(unshifted)
    for name, members in sorted(by(records, "category").items()):
        right, total = all_right(members)
        found[f"circular_{slug(name)}"] = right / total
    return found


def seedbench(records: Sequence[Record]) -> Scores:
    """Over all questions, and for each dimension."""
    parts = by(records, "category")
    found = {"accuracy": mean_right(records)}
    return found | {name: mean_right(parts[name]) for name in SEED_DIMENSIONS if name in parts}


def scenes_vqa(records: Sequence[Record]) -> Scores:
    """Over all questions, and for each type."""
    found = {"accuracy": mean_right(records)}
    parts = sorted(by(records, "category").items())
    return found | {f"accuracy_{slug(name)}": mean_right(members) for name, members in parts}


def slug(name: str) -> str:
    """A name of lower-case words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


SCORES: dict[str, Callable[[Sequence[Record]], Scores]] = {
    "pope": pope,
    "gqa": accuracy,
    "textvqa": accuracy,
    "textvqa_ocr": accuracy,
    "mmbench": mmbench,
    "mme": mme,
    "seedbench": seedbench,
    "ai2d": accuracy,
    "scenes_vqa": scenes_vqa,
}
"""Task to its rule."""


def __getattr__(name: str) -> Callable[[Sequence[Record]], float]:
    task, _, metric = name.partition("__")
    if task not in SCORES or metric not in METRICS.get(task, ()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def aggregation(records: Sequence[Record]) -> float:
        return SCORES[task](records).get(metric, math.nan)

    return aggregation
