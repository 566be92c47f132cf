"""The six GenEval categories over the scenes world, scored by its exact detector."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vqrae.eval._pictures import device_of, to_pil, to_pixels
from vqrae.eval.protocol import set_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image
    from vqrae.generation.guidance import Schedule

    Draw = Callable[[list[str]], list[list[Image]]]
    Judge = Callable[[Any, dict], tuple[bool, str]]

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def read_prompts(path: str | Path, *, per_category: int | None = None) -> list[dict]:
    """GenEval metadata lines, at most `per_category` of each tag, in the file's order.

    Raises ValueError where the file is missing, a line is not GenEval metadata, or none is there.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"prompts '{path}' not found; write them with vqrae data")
    taken: dict[str, int] = defaultdict(int)
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            metadata = json.loads(line)
            tag = metadata["tag"]
            _ = metadata["prompt"], metadata["include"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"line {number} of '{path}' lacks tag, include or prompt; mend or remove it"
            ) from None
        if per_category is None or taken[tag] < per_category:
            taken[tag] += 1
            prompts.append(metadata)
    if not prompts:
        raise ValueError(f"'{path}' holds no prompt; write the data again")
    return prompts


def judge_scene(image: Any, metadata: dict) -> tuple[bool, str]:
    """Detect what is in a (64, 64, 3) picture and score it by GenEval's rules."""
    from vqrae.eval.geneval import judge
    from vqrae.eval.scenes_detector import detect

    return judge(detect(image), metadata)


def category_scores(tags: Sequence[str], shares: Sequence[float]) -> dict[str, Any]:
    """Scores as GenEval reports them: mean over each category, overall the mean of categories.

    tags, shares: one a prompt; a share is that of the prompt's pictures judged right.
    Returns {"categories": {tag: score}, "overall": score}.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for tag, share in zip(tags, shares, strict=True):
        found[tag].append(share)
    order = [tag for tag in CATEGORIES if tag in found]
    order += sorted(set(found) - set(order))
    categories = {tag: float(np.mean(found[tag])) for tag in order}
    return {"categories": categories, "overall": float(np.mean(list(categories.values())))}


def random_scene_scores(
    prompts: Sequence[dict], scenes: Sequence[np.ndarray], *, detect: Any = None, score: Any = None
) -> dict[str, Any]:
    """What a picture drawn without reading the prompt scores.

    Every scene is judged against every prompt, so the score is the exact mean over all such draws
    from `scenes`: (64, 64, 3) uint8 ground-truth pictures of the held-out split.
    """
    if detect is None or score is None:
        from vqrae.eval.geneval import score
        from vqrae.eval.scenes_detector import detect
    seen = [detect(scene) for scene in scenes]
    tags = [metadata["tag"] for metadata in prompts]
    shares = [np.mean([bool(score(objects, m)[0]) for objects in seen]) for m in prompts]
    return category_scores(tags, shares) | {"scenes": len(seen)}


@torch.no_grad()
def ceiling_scores(
    prompts: Sequence[dict],
    tokenizer: Any,
    *,
    seed: int = 0,
    per_prompt: int = 1,
    batch_size: int = 64,
    judge: Judge = judge_scene,
) -> dict[str, Any]:
    """What true scenes for the prompts score once they went through the codes.

    No drawer that uses this tokenizer can be expected to do better. tokenizer: a VQRAEModel.
    """
    from vqrae.data.scene_prompts import scene_for_prompt
    from vqrae.data.scenes import render

    rng = np.random.default_rng([seed, 0xCE])
    wanted = [metadata for metadata in prompts for _ in range(per_prompt)]
    true = [render(scene_for_prompt(metadata, rng)) for metadata in wanted]
    right: list[bool] = []
    for start in range(0, len(true), batch_size):
        pixels = to_pixels(true[start : start + batch_size]).to(device_of(tokenizer))
        redrawn = to_pil(tokenizer.detokenize(tokenizer.tokenize(pixels)))
        metadata = wanted[start : start + batch_size]
        right += [judge(np.asarray(i), m)[0] for i, m in zip(redrawn, metadata, strict=True)]
    return category_scores([m["tag"] for m in wanted], right) | {"scenes": len(true)}


def held_out_scenes(count: int = 300, *, seed: int = 0) -> list[np.ndarray]:
    """Ground-truth pictures of the held-out split, made without regard to any prompt."""
    from vqrae.data.scenes import render, sample_scene

    rng = np.random.default_rng([seed, 0xBA])
    return [render(sample_scene(rng, split="test")) for _ in range(count)]


def draw_with(
    model: Any,
    processor: Any,
    *,
    images_per_prompt: int,
    seed: int,
    batch_size: int = 64,
    **sampling: Any,
) -> Draw:
    """Pictures by a unified model; sampling: guidance_scale, temperature, top_k, top_p, min_p."""
    from vqrae.generation import draw

    def pictures(prompts: list[str]) -> list[list[Image]]:
        return draw(
            model,
            processor,
            prompts,
            n=images_per_prompt,
            seed=seed,
            batch_size=batch_size,
            **sampling,
        )

    return pictures


def evaluate_text_to_image(
    model: Any,
    processor: Any,
    prompts_jsonl: str | Path,
    *,
    images_per_prompt: int = 4,
    prompts_per_category: int | None = None,
    guidance_scale: float | None = None,
    guidance_schedule: Schedule = "constant",
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    tokenizer: Any = None,
    random_scenes: int = 300,
    examples_per_category: int = 4,
    draw: Draw | None = None,
    judge: Judge = judge_scene,
) -> dict[str, Any]:
    """Draw every prompt `images_per_prompt` times and judge each picture.

    prompts_jsonl: GenEval metadata lines. tokenizer: the VQRAEModel for the ceiling (None: no
    ceiling). random_scenes: how many held-out scenes the baseline judges against every prompt.
    draw: in place of the model, a function of prompts to pictures.
    guidance_scale, min_p: None takes the model's own.

    Returns categories {tag: share of pictures right}, overall (mean of the categories, as GenEval
    has it), baseline and ceiling of the same form (see random_scene_scores, ceiling_scores),
    counts {tag: prompts}, images_per_prompt, sampling, prompts_sha256 (of all their metadata),
    each [{"id", "prompt", "tag", "right": [bool], "reasons": [str]}], one a prompt, and examples
    [{"id", "prompt", "tag", "pictures": [{"image", "right", "reason"}]}], the first of each
    category.
    """
    prompts = read_prompts(prompts_jsonl, per_category=prompts_per_category)
    if draw is None:
        from vqrae.generation import own_sampling

        guidance_scale, min_p = own_sampling(model, guidance_scale, min_p)
    sampling = {
        "guidance_scale": guidance_scale,
        "guidance_schedule": guidance_schedule,
        "guidance_interval": list(guidance_interval),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    draw = draw or draw_with(
        model,
        processor,
        images_per_prompt=images_per_prompt,
        seed=seed,
        batch_size=batch_size,
        **sampling,
    )
    drawings = draw([metadata["prompt"] for metadata in prompts])
    each: list[dict[str, Any]] = []
    shown: dict[str, list[dict]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for metadata, pictures in zip(prompts, drawings, strict=True):
        verdicts = [judge(np.asarray(picture.convert("RGB")), metadata) for picture in pictures]
        tag = metadata["tag"]
        # by its place within the category: the same however many prompts of each are drawn
        named = {"id": f"{tag}/{counts[tag]}", "prompt": metadata["prompt"], "tag": tag}
        counts[tag] += 1
        right, reasons = [bool(r) for r, _ in verdicts], [reason for _, reason in verdicts]
        each.append(named | {"right": right, "reasons": reasons})
        if len(shown[tag]) < examples_per_category:
            judged = [
                {"image": picture, "right": bool(right), "reason": reason}
                for picture, (right, reason) in zip(pictures, verdicts, strict=True)
            ]
            shown[tag].append(named | {"pictures": judged})
    tags = [metadata["tag"] for metadata in prompts]
    found = category_scores(tags, [float(np.mean(prompt["right"])) for prompt in each])
    ceiling = None
    if tokenizer is not None:
        ceiling = ceiling_scores(prompts, tokenizer, seed=seed, batch_size=batch_size, judge=judge)
    return {
        **found,
        "baseline": random_scene_scores(prompts, held_out_scenes(random_scenes, seed=seed)),
        "ceiling": ceiling,
        "counts": {tag: counts[tag] for tag in found["categories"]},
        "images_per_prompt": images_per_prompt,
        "sampling": sampling | {"seed": seed},
        "prompts_sha256": set_sha256(json.dumps(m, sort_keys=True) for m in prompts),
        "each": each,
        "examples": [example for tag in found["categories"] for example in shown[tag]],
    }
