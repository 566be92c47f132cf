"""GenEval: draw its prompts, judge the pictures by its rules, write results.json.

The rules are in geneval.py. The detector is Mask2Former of transformers, or that of the scenes
world: then the score is the one that `vqrae eval scenes` gives.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from vqrae.data import open_image
from vqrae.eval._answers import Answers, key_of
from vqrae.eval._drawings import CARD, Draw, SampleFolders, agree_card, draw_missing, read_card
from vqrae.eval._ranks import join_ranks
from vqrae.eval.benchmark_result import BenchmarkResult, Item, write_benchmark
from vqrae.eval.geneval import ALL, POSITION_MARGIN, Rules, ScoredObject, judge
from vqrae.eval.geneval_prompts import OFFICIAL_SHA256, prompts_sha256
from vqrae.eval.paper_rows import PAPER
from vqrae.eval.protocol import environment_card, file_sha256
from vqrae.eval.text_to_image import category_scores
from vqrae.training._process import gather_objects

VERSION = 1
_PAPER = PAPER["geneval"].rows["VQRAE, 0.6B"]


class Detector(Protocol):
    """What finds the objects of a picture."""

    name: str
    rules: Rules
    card: Mapping[str, Any]

    def __call__(self, image: Image.Image) -> Iterable[ScoredObject]: ...


class ScenesDetector:
    """The exact detector of the scenes world; what it finds, counts."""

    name = "scenes"
    rules = ALL
    card: Mapping[str, Any] = {
        "name": "scenes",
        "official": "no: a procedural world of coloured shapes, not COCO's classes",
    }

    def __call__(self, image: Image.Image) -> Iterable[ScoredObject]:
        from vqrae.eval.scenes_detector import detect

        return detect(np.asarray(image.convert("RGB")))


def aggregate(items: list[Item]) -> dict[str, float]:
    """Each category's share of pictures judged right, and overall the mean of the categories."""
    found = category_scores([i["tag"] for i in items], [float(i["correct"]) for i in items])
    return {**found["categories"], "overall": found["overall"]}


def draw_geneval(
    prompts: Sequence[dict],
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
    """Draw this rank's share of the prompts into OUT/pictures, and return that folder.

    card: {"model", "drawn"}: who draws, and how (seed, sampling, dtype). Pictures that are there
    already stay; ValueError where they were drawn otherwise.
    """
    root = Path(out) / "pictures"
    card = {
        **card,
        "prompts sha256": prompts_sha256(prompts),
        "images per prompt": images_per_prompt,
    }
    agree_card(root, card)
    folders = SampleFolders(root, prompts, images_per_prompt)
    draw_missing(folders, draw, batch=batch, rank=rank, world=world, progress=progress)
    return root


def read_pictures(root: str | Path, prompts: Sequence[dict] | None = None) -> list[dict]:
    """The prompts of a folder in GenEval's form, each with its pictures: {"metadata", "pictures"}.

    prompts: what the folders must hold, in this order; None takes what is there.

    Raises:
        ValueError: where there is no such folder, a prompt has no pictures, or another prompt.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"no folder of pictures '{root}'; give one in GenEval's form")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and f.name.isdigit())
    if not folders:
        raise ValueError(f"'{root}' has no numbered folders; give pictures in GenEval's form")
    found = {}
    for folder in folders:
        path = folder / "metadata.jsonl"
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            _ = metadata["tag"], metadata["prompt"], metadata["include"]
        except FileNotFoundError:
            raise ValueError(f"'{path}' is missing; write the prompt's line there") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"'{path}' is not one line of evaluation_metadata.jsonl; write it again"
            ) from None
        samples = folder / "samples"
        names = sorted(p for p in samples.glob("*.png") if re.fullmatch(r"\d+\.png", p.name))
        if not names:
            raise ValueError(f"'{samples}' holds no picture like 0000.png; draw the prompt")
        found[int(folder.name)] = {"metadata": metadata, "pictures": names}
    if prompts is not None:
        for number, metadata in enumerate(prompts):
            if number not in found:
                raise ValueError(
                    f"'{root}' has no folder {number:05d}: draw '{metadata['prompt']}'"
                )
            if prompts_sha256([metadata]) != prompts_sha256([found[number]["metadata"]]):
                there = found[number]["metadata"]["prompt"]
                raise ValueError(
                    f"folder {number:05d} of '{root}' is of '{there}', not of "
                    f"'{metadata['prompt']}'; give the prompts that were drawn"
                )
        found = {number: found[number] for number in range(len(prompts))}
    drawn = [found[number] | {"number": number} for number in sorted(found)]
    if prompts is None:
        _check_whole(root, drawn)
    return drawn


def _check_whole(root: Path, drawn: Sequence[dict]) -> None:
    """That everything which the folder's card promises is there."""
    card = read_card(root)
    if card is None:
        return
    digest = prompts_sha256([one["metadata"] for one in drawn])
    each = {len(one["pictures"]) for one in drawn}
    if digest != card.get("prompts sha256") or each != {card.get("images per prompt")}:
        raise ValueError(f"the pictures in '{root}' are not all drawn; draw on first")


def judge_pictures(
    drawn: Sequence[dict],
    detector: Detector,
    answers: Answers | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Item]:
    """One item for each picture of this rank's share: id, unit (the prompt), tag, correct, why.

    drawn: as read_pictures gives it. answers: where verdicts are kept.
    """
    share = drawn[rank::world]
    items = []
    card = dict(detector.card) | {"rules": asdict(detector.rules)}
    for done, one in enumerate(share, 1):
        metadata = one["metadata"]
        for path in one["pictures"]:
            digest = file_sha256(path)
            key = key_of("geneval", VERSION, card, prompts_sha256([metadata]), digest)
            verdict = answers.get(key) if answers else None
            if verdict is None:
                verdict = _verdict(path, metadata, detector)
                if answers:
                    answers.put(key, verdict)
            items.append(
                {
                    "id": f"{one['number']:05d}/{path.stem}",
                    "unit": f"{one['number']:05d}",
                    "kind": metadata["tag"],
                    "tag": metadata["tag"],
                    "prompt": metadata["prompt"],
                    "picture sha256": digest,
                    **verdict,
                }
            )
        if progress:
            progress(done, len(share))
    return items


def _verdict(path: Path, metadata: dict, detector: Detector) -> dict[str, Any]:
    objects = list(detector(open_image(path)))
    correct, reason = judge(objects, metadata, detector.rules)
    return {
        "correct": bool(correct),
        "reason": reason,
        "found": dict(sorted(Counter(o.class_ for o in objects).items())),
    }


def score_geneval(
    pictures: str | Path,
    out: str | Path,
    detector: Detector,
    *,
    prompts: Sequence[dict] | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> BenchmarkResult | None:
    """Judge the pictures of a folder and write OUT/results.json and OUT/items.jsonl.

    pictures: in GenEval's form, by `draw_geneval` or from elsewhere. prompts: what they must be
    of; None takes what the folders say. Verdicts are kept in OUT/verdicts: killed, the same call
    goes on. Under torchrun each rank judges its share. Returns the result on rank 0, else None.
    """
    rank, world = join_ranks()
    drawn = read_pictures(pictures, prompts)
    with Answers(Path(out) / "verdicts", rank) as answers:
        mine = judge_pictures(drawn, detector, answers, rank=rank, world=world, progress=progress)
    items = sorted((i for part in gather_objects(mine) for i in part), key=lambda i: i["id"])
    if rank:
        return None
    result = geneval_result(pictures, drawn, items, detector, device=device)
    write_benchmark(out, result)
    return result


def geneval_result(
    pictures: str | Path,
    drawn: Sequence[dict],
    items: list[Item],
    detector: Detector,
    *,
    device: str = "cpu",
) -> BenchmarkResult:
    """The result of judged pictures: scores and cards."""
    metadata = [one["metadata"] for one in drawn]
    counts = sorted({len(one["pictures"]) for one in drawn})
    digest = prompts_sha256(metadata)
    card = read_card(Path(pictures)) or {}
    tags = Counter(one["tag"] for one in metadata)
    scores = aggregate(items)
    elsewhere = {"name": Path(pictures).resolve().name, "weights sha256": {}}
    return BenchmarkResult(
        benchmark=f"geneval-{VERSION}",
        scores=scores,
        higher_is_better={name: True for name in scores},
        model=card.get("model", elsewhere),
        protocol={
            "prompts": {
                "sha256": digest,
                "the official 553": digest == OFFICIAL_SHA256,
                "count": dict(tags),
            },
            "images per prompt": counts[0] if len(counts) == 1 else counts,
            "drawn": card.get("drawn", f"elsewhere (no {CARD})"),
            "detector": dict(detector.card),
            "rules": asdict(detector.rules)
            | {"max overlap": "none", "position margin": POSITION_MARGIN},
        },
        environment=environment_card(device),
        items=items,
        details={"detector": detector.name},
    )


def comparison(result: BenchmarkResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: one row a category; the paper's numbers where they compare."""
    beside = result.details["detector"] != ScenesDetector.name
    head = ["", result.model["name"], "pictures right", *(["VQRAE 0.6B, paper"] if beside else [])]
    tags = Counter(item["tag"] for item in result.items)
    right = Counter(item["tag"] for item in result.items if item["correct"])
    rows = []
    for name, value in result.scores.items():
        of = f"{right[name]} of {tags[name]}" if name in tags else ""
        paper = [f"{_PAPER[name]:.2f}" if name in _PAPER else ""] if beside else []
        rows.append([name.replace("_", " "), f"{value:.2f}", of, *paper])
    return head, rows
