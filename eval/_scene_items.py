"""The scenes benchmark in the one form: its items, the scores that they decide, its protocol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import fsum
from typing import Any

import numpy as np
from vqrae.eval.benchmark_result import Item, distinct
from vqrae.eval.text_to_image import category_scores

DRAWN = {"text_to_image": "geneval", "more_drawing": "more"}
"""Part of the results to the name of its prompts."""
_PICTURE = ("psnr", "ssim", "lpips")


def scene_items(results: Mapping[str, Any], keys: list[str]) -> list[Item]:
    """One for each picture, question, prompt and zero-shot scene; `keys` are of the pictures.

    Questions about one picture are one unit, for they are right and wrong together.
    """
    items: list[Item] = [
        {"id": f"picture/{key}", "kind": "reconstruction", **numbers}
        for key, numbers in zip(distinct(keys), results["reconstruction"]["each"], strict=True)
    ]
    if results["zero_shot"]:
        items += [
            scene | {"id": f"zero_shot/{scene['id']}", "kind": "zero_shot"}
            for scene in results["zero_shot"]["encoder"]["each"]
        ]
    if results["vqa"]:
        items += [
            question
            | {
                "id": f"question/{question['id']}",
                "kind": "vqa",
                "unit": f"question about {question['picture']}",
            }
            for question in results["vqa"]["each"]
        ]
    for part, name in DRAWN.items():
        items += [
            prompt
            | {
                "id": f"{name}/{prompt['id']}",
                "kind": "prompt",
                "set": name,
                "stratum": f"{name}/{prompt['tag']}",
            }
            for prompt in (results[part] or {}).get("each", ())
        ]
    return items


def aggregate(items: list[Item]) -> dict[str, float]:
    """psnr, ssim, lpips: means over pictures. zero_shot, vqa, vqa.TYPE: shares right. geneval.TAG,
    more.TAG: mean over prompts of the share of pictures right; geneval: mean of its categories."""
    kinds: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        kinds[item["kind"]].append(item)
    scores: dict[str, float] = {}
    pictures = kinds["reconstruction"]
    for name in _PICTURE:
        values = [item[name] for item in pictures if name in item]
        if values:
            scores[name] = fsum(values) / len(values)
    for kind in ("zero_shot", "vqa"):
        if kinds[kind]:
            scores[kind] = sum(item["right"] for item in kinds[kind]) / len(kinds[kind])
    types: dict[str, list[bool]] = defaultdict(list)
    for item in kinds["vqa"]:
        types[item["type"]].append(item["right"])
    for name in sorted(types):
        scores[f"vqa.{name}"] = sum(types[name]) / len(types[name])
    for name in DRAWN.values():
        prompts = [item for item in kinds["prompt"] if item["set"] == name]
        if not prompts:
            continue
        shares = [float(np.mean(item["right"])) for item in prompts]
        found = category_scores([item["tag"] for item in prompts], shares)
        if name == "geneval":
            scores[name] = found["overall"]
        scores |= {f"{name}.{tag}": score for tag, score in found["categories"].items()}
    return scores


def scene_scores(results: Mapping[str, Any], items: list[Item]) -> dict[str, float | None]:
    """All scores; those that the items do not decide are of the whole set of pictures."""
    groups = (*_PICTURE, "usage", "perplexity", "zero_shot", "vqa", *DRAWN.values())
    whole = {name: results["reconstruction"][name] for name in ("usage", "perplexity")}
    scores = dict.fromkeys(groups[:-1]) | whole | aggregate(items)
    return dict(sorted(scores.items(), key=lambda pair: groups.index(pair[0].split(".")[0])))


def scene_protocol(
    results: Mapping[str, Any],
    *,
    pictures_sha256: str,
    seed: int,
    dtype: str,
    image_size: int,
    lpips_sha256: str | None,
    teacher_sha256: list[str] | None,
) -> dict[str, Any]:
    """What must be equal. Data are named by what was in them, wherever they lay."""
    vqa, zero_shot = results["vqa"], results["zero_shot"]
    drawn = {name: results[part] for part, name in DRAWN.items() if results[part]}
    first = next(iter(drawn.values()), None)
    sampling = first["sampling"] if first else {}
    return {
        "split": "test",
        "seed": seed,
        "dtype": dtype,
        "image_size": image_size,
        "lpips_sha256": lpips_sha256,
        "teacher_sha256": teacher_sha256,
        "data": {
            "pictures_sha256": pictures_sha256,
            "questions_sha256": vqa and vqa["questions_sha256"],
            **{f"{name}_prompts_sha256": part["prompts_sha256"] for name, part in drawn.items()},
        },
        "counts": {
            "pictures": results["reconstruction"]["window"]["images"],
            "zero_shot_scenes": zero_shot and zero_shot["encoder"]["images"],
            "questions": vqa and vqa["questions"],
            **{f"{name}_prompts": sum(part["counts"].values()) for name, part in drawn.items()},
            "images_per_prompt": first and first["images_per_prompt"],
        },
        "sampling": {
            **{name: value for name, value in sampling.items() if name != "seed"},
            "answers": vqa and "greedy",
        },
    }
