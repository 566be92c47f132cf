"""From lm-eval's samples to a benchmark's items, and the card of each task."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqrae.eval.benchmark_result import Item
from vqrae.eval.tasks.catalog import SOURCES
from vqrae.eval.tasks.scores import SCORES
from vqrae.training._process import gather_objects

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from vqrae.eval.lm_eval_model import VQRAELM

    Pictures = Mapping[tuple[str, int], list[str]]

_SHORT = 16  # of a hash's digits: enough to tell pictures apart


def gathered(lm: VQRAELM) -> tuple[dict[tuple[str, int], list[str]], set[str]]:
    """Hashes of the pictures of every question on any rank, and the questions without room."""
    pictures: dict[tuple[str, int], list[str]] = {}
    too_long: set[str] = set()
    for own, longer in gather_objects((lm.pictures, lm.too_long)):
        pictures |= own
        too_long |= longer
    return pictures, too_long


def item_of(
    task: Task, sample: Mapping[str, Any], pictures: Pictures, groups: Sequence[str], seed: int
) -> Item:
    """One question of a benchmark's items.jsonl. Questions about one picture, and those that count
    together, are one unit; each task, and each subtask of MME, is a stratum."""
    name = task.task_name
    images = [digest[:_SHORT] for digest in pictures[name, sample["doc_id"]]]
    if name not in SCORES:
        return _their_item(task, sample, images, groups, seed)
    record = dict(sample[next(iter(sample["metrics"]))])
    category = record.get("category", "")
    unit = [category, record["group"]] if "group" in record else images
    return {
        **record,
        "id": f"{name}:{record['id']}",
        "task": name,
        "unit": ":".join([name, *unit]),
        # a sum over subtasks needs all of them in every draw
        "stratum": f"{name}:{category}" if name == "mme" else name,
        "images": images,
    }


def _their_item(
    task: Task,
    sample: Mapping[str, Any],
    images: list[str],
    groups: Sequence[str],
    seed: int,
) -> Item:
    name, answers = task.task_name, sample["filtered_resps"]
    # MMMU guesses at what it cannot read; marked anew, the guess hangs on nothing but the question.
    random.seed(f"{seed} {name} {sample['doc_id']}")
    marked = task.process_results(sample["doc"], answers)
    suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
    return {
        "id": f"{name}:{sample['doc_id']}{suffix}",
        "task": name,
        "groups": list(groups),
        "unit": ":".join([name, *(images or [str(sample["doc_id"])])]),
        "stratum": name,
        "images": images,
        "question": sample["arguments"][0][0],
        "answer": answers[0] if len(answers) == 1 else answers,
        "expected": sample["target"],
        "metrics": {
            f"{metric}{suffix}": float(value)
            for metric, value in marked.items()
            if isinstance(value, Real)
        },
    }


def task_card(
    task: Task, samples: Sequence[Mapping[str, Any]], pictures: Pictures, yaml: Path
) -> dict[str, Any]:
    """What must be equal for two numbers of a task to compare.

    The data's hash is that of what was asked: prompts, expected answers and picture files, in
    order, in whatever form they came.
    """
    config, name = task.config, task.task_name
    digest = hashlib.sha256()
    for sample in samples:
        images = pictures[name, sample["doc_id"]]
        line = [sample["doc_id"], sample["arguments"][0][0], sample["target"], images]
        digest.update(json.dumps(line, default=str).encode() + b"\n")
    splits = {source.name: f"{source.config}/{source.split}" for source in SOURCES}
    prompt = config.doc_to_text
    if callable(prompt):
        prompt = f"{prompt.__module__}.{prompt.__name__}"
    card = {
        "version": task.VERSION,
        "yaml sha256": yaml_hash(yaml),
        "prompt": prompt,
        "generation": dict(config.generation_kwargs or {}),
        "split": splits.get(
            name.removesuffix("_ocr"), config.test_split or config.validation_split
        ),
        "questions": len(samples),
        "data sha256": digest.hexdigest(),
    }
    return card if name in SCORES else card | {"lm-eval": version("lm-eval")}


def yaml_hash(path: Path) -> str:
    """sha256 of a task's file and of those that it includes."""
    text = path.read_bytes()
    digest = hashlib.sha256(text)
    for found in re.findall(rb"^include: *(\S+)", text, flags=re.MULTILINE):
        digest.update(yaml_hash(path.parent / found.decode()).encode())
    return digest.hexdigest()
