"""DPG-Bench (Hu et al., 2024, arXiv:2403.05135): long prompts, each with questions about a picture.

The rules are those of the official dpg_bench/compute_dpg_bench.py. A question counts only where the
answers to its parents are yes. A picture scores the share of its prompt's questions, a prompt the
mean of its pictures, the benchmark the mean of the prompts. The categories' scores are made
otherwise: shares of all answers to the last picture of each prompt, whatever the parents' answers.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from vqrae.data import open_image
from vqrae.eval._answers import Answers, key_of
from vqrae.eval._drawings import CARD, Draw, Grids, agree_card, cut_grid, draw_missing, read_card
from vqrae.eval._ranks import join_ranks
from vqrae.eval.benchmark_result import BenchmarkResult, Item, write_benchmark
from vqrae.eval.judges import Judge, said_yes
from vqrae.eval.paper_rows import PAPER
from vqrae.eval.protocol import environment_card
from vqrae.training._process import gather_objects

VERSION = 1
_PAPER = PAPER["dpg"].rows["VQRAE, 0.6B"]
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
"""What is read of dpg_bench.csv."""


@dataclass(frozen=True)
class Question:
    """One proposition of a prompt."""

    number: int
    text: str
    parents: tuple[int, ...]
    category: str
    """As "entity - whole"."""

    @property
    def broad(self) -> str:
        """As "entity"."""
        return self.category.split("-")[0].strip()


@dataclass(frozen=True)
class Prompt:
    """A prompt and its questions, in the file's order."""

    id: str
    text: str
    questions: tuple[Question, ...]


def read_dpg(path: str | Path, *, limit: int | None = None) -> list[Prompt]:
    """The prompts of a file like dpg_bench.csv, the first `limit` of them.

    A first row without a proposition's number describes the columns and is left out.

    Raises:
        ValueError: where the file is missing, lacks a column, or a row is not of its form; where a
            number comes twice in a prompt or a parent is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"prompts '{path}' not found; give a file like dpg_bench.csv")
    texts: dict[str, str] = {}
    questions: dict[str, dict[int, Question]] = defaultdict(dict)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"'{path}' has no column {', '.join(missing)}; see docs/benchmarks")
        for index, row in enumerate(reader):
            if index == 0 and not (row["proposition_id"] or "").strip().isdigit():
                continue
            name, question = _read_row(row, f"'{path}', line {reader.line_num}")
            if question.number in questions[name]:
                raise ValueError(
                    f"'{path}', line {reader.line_num}: proposition {question.number} of '{name}' "
                    "comes twice; remove one"
                )
            questions[name][question.number] = question
            texts.setdefault(name, (row["text"] or "").strip())
    for name, asked in questions.items():
        if not texts[name]:
            raise ValueError(f"'{path}': '{name}' has no text; there is nothing to draw")
        for question in asked.values():
            for parent in question.parents:
                if parent not in asked:
                    raise ValueError(
                        f"'{path}': proposition {question.number} of '{name}' depends on {parent}, "
                        "which is not there; mend its dependency"
                    )
    if not questions:
        raise ValueError(f"'{path}' holds no question")
    prompts = [Prompt(n, texts[n], tuple(asked.values())) for n, asked in questions.items()]
    return prompts[:limit]


def _read_row(row: Mapping[str, str | None], where: str) -> tuple[str, Question]:
    name, text = (row["item_id"] or "").strip(), (row["question_natural_language"] or "").strip()
    if not name or not text:
        raise ValueError(f"{where}: a row without item_id or question; mend or remove it")
    if "/" in name or "." in name:
        raise ValueError(f"{where}: item_id '{name}' cannot name a picture; leave out . and /")
    try:
        number = int(row["proposition_id"] or "")
        parents = [int(part) for part in (row["dependency"] or "").split(",")]
    except ValueError:
        raise ValueError(
            f"{where}: proposition_id '{row['proposition_id']}' or dependency "
            f"'{row['dependency']}' is not made of numbers; write 0 for no dependency"
        ) from None
    category = (row["tuple"] or "").split("(")[0].strip()
    if not category:
        raise ValueError(f"{where}: the tuple names no category; write 'entity - whole (dog)'")
    return name, Question(number, text, tuple(p for p in parents if p), category)


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Of texts, questions and dependencies, in their order."""
    content = [
        [p.id, p.text, [[q.number, q.text, q.parents, q.category] for q in p.questions]]
        for p in prompts
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def holding(questions: Sequence[Question], yes: Mapping[int, bool]) -> dict[int, bool]:
    """Which answers count as yes: a child's does not where one of its parents' does not.

    In the file's order: a parent that lost its yes takes those of its later children along.
    """
    held = dict(yes)
    for question in questions:
        if not all(held[parent] for parent in question.parents):
            held[question.number] = False
    return held


def picture_item(prompt: Prompt, picture: int, of: int, answers: Sequence[str]) -> Item:
    """The item of one picture, from the answers to its prompt's questions."""
    said = {q.number: said_yes(a) for q, a in zip(prompt.questions, answers, strict=True)}
    yes = {number: value is True for number, value in said.items()}
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for question in prompt.questions:
        counts[question.category][0] += yes[question.number]
        counts[question.category][1] += 1
    held = holding(prompt.questions, yes)
    return {
        "id": f"{prompt.id}/{picture}",
        "unit": prompt.id,
        "kind": "prompt",
        "score": sum(held.values()) / len(held),
        "weight": 1 / of,
        "last": picture == of - 1,
        "yes of asked": dict(counts),
        "unclear": sum(value is None for value in said.values()),
        "answers": {str(q.number): a for q, a in zip(prompt.questions, answers, strict=True)},
    }


def aggregate(items: list[Item]) -> dict[str, float]:
    """Percent, as published: five categories, and overall."""
    found = category_scores(items, broad=True)
    scores = {name: found.pop(name) for name in _PAPER if name in found} | found
    total = sum(item["weight"] for item in items)
    overall = sum(item["weight"] * item["score"] for item in items) / total
    return {**scores, "overall": 100 * overall}


def category_scores(
    items: Sequence[Item], *, broad: bool, last_only: bool = True
) -> dict[str, float]:
    """Percent of the answers that are yes, whatever the parents' answers.

    broad: "entity" for all of "entity - whole" and the like. last_only: each prompt's last picture
    alone, as the official numbers are; else all pictures.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item in items:
        if last_only and not item["last"]:
            continue
        for category, (yes, asked) in item["yes of asked"].items():
            name = category.split("-")[0].strip() if broad else category
            counts[name][0] += yes
            counts[name][1] += asked
    return {name: 100 * yes / asked for name, (yes, asked) in sorted(counts.items())}


def draw_dpg(
    prompts: Sequence[Prompt],
    out: str | Path,
    draw: Draw,
    card: Mapping[str, Any],
    *,
    images_per_prompt: int = 4,
    batch: int = 16,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw this rank's share of the prompts into OUT/pictures, one grid each; return that folder.

    card: {"model", "drawn"}: who draws, and how. Grids that are there already stay; ValueError
    where they were drawn otherwise.
    """
    root = Path(out) / "pictures"
    texts = [prompt.text for prompt in prompts]
    grids = Grids(root, [prompt.id for prompt in prompts], texts, images_per_prompt)
    agree_card(root, {**card, "images per prompt": images_per_prompt})
    draw_missing(grids, draw, batch=batch, rank=rank, world=world, progress=progress)
    return root


def picture_files(root: str | Path, prompts: Sequence[Prompt]) -> list[Path]:
    """ITEM_ID.png (or .jpg, .jpeg, .webp) of every prompt. ValueError where one is missing."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(
            f"no folder of pictures '{root}'; give one with ITEM_ID.png of each prompt"
        )
    there = {
        path.stem: path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    }
    missing = [prompt.id for prompt in prompts if prompt.id not in there]
    if missing:
        raise ValueError(
            f"'{root}' lacks the pictures of {len(missing)} of {len(prompts)} prompts, as of "
            f"'{missing[0]}'; draw them, or give --limit"
        )
    return [there[prompt.id] for prompt in prompts]


def pictures_of(path: Path, per_prompt: int, resolution: int | None) -> list[Image.Image]:
    """The pictures of one file, cut apart. ValueError where it is too small for them."""
    sheet = open_image(path)
    across = 1 if per_prompt == 1 else 2
    least = (resolution or 1) * across
    odd = resolution is None and (sheet.width % across or sheet.height % across)
    if min(sheet.size) < least or odd:
        raise ValueError(
            f"'{path}' is {sheet.width} x {sheet.height}, no grid of {per_prompt} pictures of "
            f"{resolution or 'equal size'}; give --resolution and --images-per-prompt"
        )
    return cut_grid(sheet, per_prompt, resolution)


def judge_pictures(
    prompts: Sequence[Prompt],
    files: Sequence[Path],
    judge: Judge,
    answers: Answers | None = None,
    *,
    images_per_prompt: int = 4,
    resolution: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Item]:
    """One item for each picture of this rank's share, see picture_item.

    answers: where they are kept, each by its picture, question and judge.
    """
    share = list(zip(prompts, files, strict=True))[rank::world]
    items = []
    for done, (prompt, path) in enumerate(share, 1):
        for index, picture in enumerate(pictures_of(path, images_per_prompt, resolution)):
            said = _ask(picture, [q.text for q in prompt.questions], judge, answers)
            items.append(picture_item(prompt, index, images_per_prompt, said))
        if progress:
            progress(done, len(share))
    return items


def _ask(
    picture: Image.Image, questions: list[str], judge: Judge, answers: Answers | None
) -> list[str]:
    """Answers to all questions; the judge is asked what is not known."""
    rgb = picture.convert("RGB")
    digest = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()
    keys = [key_of("dpg", judge.card, digest, question) for question in questions]
    said = [answers.get(key) if answers else None for key in keys]
    open_ = [index for index, answer in enumerate(said) if answer is None]
    found: Iterator[tuple[int, str]] = iter(())
    if open_:
        found = judge.answers(rgb, [questions[index] for index in open_])
    for place, answer in found:
        said[open_[place]] = answer
        if answers:
            answers.put(keys[open_[place]], answer)
    return said


def score_dpg(
    pictures: str | Path,
    out: str | Path,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    images_per_prompt: int = 4,
    resolution: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> BenchmarkResult | None:
    """Ask a judge about the pictures of a folder; write OUT/results.json and OUT/items.jsonl.

    Answers are kept in OUT/answers: killed, the same call asks only what is not answered. Under
    torchrun each rank asks for its share. Returns the result on rank 0, else None.
    """
    rank, world = join_ranks()
    files = picture_files(pictures, prompts)
    with Answers(Path(out) / "answers", rank) as answers:
        mine = judge_pictures(
            prompts,
            files,
            judge,
            answers,
            images_per_prompt=images_per_prompt,
            resolution=resolution,
            rank=rank,
            world=world,
            progress=progress,
        )
    order = {prompt.id: number for number, prompt in enumerate(prompts)}
    items = [item for part in gather_objects(mine) for item in part]
    items.sort(key=lambda item: (order[item["unit"]], item["id"]))
    if rank:
        return None
    card = read_card(Path(pictures)) or {}
    scores = aggregate(items)
    elsewhere = {"name": Path(pictures).resolve().name, "weights sha256": {}}
    questions = sum(len(prompt.questions) for prompt in prompts)
    result = BenchmarkResult(
        benchmark=f"dpg-{VERSION}",
        scores=scores,
        higher_is_better={name: True for name in scores},
        model=card.get("model", elsewhere),
        protocol={
            "prompts": {
                "sha256": prompts_sha256(prompts),
                "count": len(prompts),
                "questions": questions,
            },
            "images per prompt": images_per_prompt,
            "resolution": resolution,
            "drawn": card.get("drawn", f"elsewhere (no {CARD})"),
            "judge": dict(judge.card),
        },
        environment=environment_card(device),
        items=items,
        details={
            "judge": judge.name,
            "unclear answers": sum(item["unclear"] for item in items),
            "answers": questions * images_per_prompt,
            "detailed categories": category_scores(items, broad=False),
            "categories over all pictures": category_scores(items, broad=True, last_only=False),
        },
    )
    write_benchmark(out, result)
    return result


def comparison(result: BenchmarkResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: one row a category, and the paper's numbers."""
    rows = [
        [name, f"{value:.2f}", f"{_PAPER[name]:.2f}" if name in _PAPER else ""]
        for name, value in result.scores.items()
    ]
    return ["", result.model["name"], "VQRAE 0.6B, paper"], rows
