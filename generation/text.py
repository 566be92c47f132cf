"""Writing text: many prompts at once, with or without pictures in them.

Shapes: B prompts, M pictures, N image tokens, D encoder width, V text vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from vqrae.generation._prompts import PromptBatch, evaluating, join_features
from vqrae.generation.sampling import check_sampling, pick, uniforms_for
from vqrae.mllm import UnifiedModel, UnifiedProcessor
from vqrae.mllm.processing_unified import IMAGE_PLACE


@dataclass(frozen=True)
class Written:
    """What the model wrote after one prompt."""

    ids: list[int]
    """Text ids only, without what ended them."""
    stopped_by: Literal["end", "draw", "length"]
    """End of turn, the mark that begins a drawing, or the limit."""


def generate_text(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    prompts: Sequence[Sequence[int]],
    features: Sequence[Tensor | None] | None = None,
    **options,
) -> list[str]:
    """Answers as text; arguments and errors as in generate_ids."""
    written = generate_ids(model, processor, prompts, features, **options)
    return [processor.text(each.ids) for each in written]


def generate_ids(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    prompts: Sequence[Sequence[int]],
    features: Sequence[Tensor | None] | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int] | int = 0,
    allow_draw: bool = False,
    batch_size: int = 128,
) -> list[Written]:
    """What follows each prompt, up to the end of the turn.

    Args:
        prompts: ids, as from UnifiedProcessor.encode_chat.
        features: for each prompt (M, N, D) of its pictures, or None.
        temperature: 0 takes the most likely token each time.
        seeds: one for each prompt; a number s stands for s, s + 1, ...
        allow_draw: the model may write `<|image_start|>`, which stops it. Codes, pads and
            `<|image_end|>` are never written here.
        batch_size: prompts decoded at once; those of like length go together.

    Raises:
        ValueError: for an argument out of its range or a prompt that leaves no room.
    """
    check_sampling(temperature, top_k, top_p)
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    for prompt in prompts:
        processor.check_length(len(prompt) + 1, "the conversation with its answer")
    features = [None] * len(prompts) if features is None else features
    seeds = [seeds + i for i in range(len(prompts))] if isinstance(seeds, int) else list(seeds)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    written: dict[int, Written] = {}
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            room = processor.max_length - max(len(prompts[index]) for index in group)
            steps = min(max_new_tokens, room)
            decoded = _decode_group(
                model,
                processor,
                PromptBatch(
                    model,
                    [prompts[index] for index in group],
                    join_features([features[index] for index in group]),
                    steps=steps - 1,
                ),
                uniforms_for([seeds[index] for index in group], steps),
                (temperature, top_k, top_p),
                allow_draw,
            )
            written |= zip(group, decoded, strict=True)
    return [written[index] for index in range(len(prompts))]


def stop_tokens(model: UnifiedModel, processor: UnifiedProcessor) -> dict[int, str]:
    """Tokens that end a text, and what they mean."""
    return {processor.end_of_turn_id: "end", model.config.image_start_id: "draw"}


def writable_logits(model: UnifiedModel, hidden: Tensor, may_draw: Sequence[bool]) -> Tensor:
    """(B, T) -> (B, V + 3), with -inf for the marks that a text cannot hold; the one that begins a
    picture only in rows that may draw."""
    config = model.config
    logits = model.text_logits(hidden).float()
    logits[:, [config.image_end_id, config.image_pad_id]] = -torch.inf
    silent = [row for row, draws in enumerate(may_draw) if not draws]
    logits[silent, config.image_start_id] = -torch.inf
    return logits


def _decode_group(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    batch: PromptBatch,
    uniforms: Tensor,
    sampling: tuple[float, int, float],
    allow_draw: bool,
) -> list[Written]:
    stops = stop_tokens(model, processor)
    size, steps = uniforms.shape
    uniforms = uniforms.to(model.device)
    ids: list[list[int]] = [[] for _ in range(size)]
    stopped: list[str | None] = [None] * size
    for step in range(steps):
        logits = writable_logits(model, batch.last_hidden(), [allow_draw] * size)
        chosen = pick(logits, uniforms[:, step], *sampling)
        for row, token in enumerate(chosen.tolist()):
            if stopped[row] is None:
                stopped[row] = stops.get(token)
                if stopped[row] is None:
                    ids[row].append(token)
        if None not in stopped:
            break
        if step + 1 < steps:
            batch.append(chosen)
    return [Written(row, stop or "length") for row, stop in zip(ids, stopped, strict=True)]


def answer(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    image: Image.Image | Sequence[Image.Image],
    question: str | Sequence[str],
    **options,
) -> str | list[str]:
    """Answer questions about pictures.

    Args:
        image: one picture, or as many as questions.
        question: one question, or a list of them; the reply is a list then.
        options: as for generate_ids, such as max_new_tokens and batch_size.

    Raises:
        ValueError: for an empty question, or numbers of pictures and questions that differ.
    """
    questions = [question] if isinstance(question, str) else list(question)
    images = [image] if isinstance(image, Image.Image) else list(image)
    # A picture asked about several times is encoded once.
    distinct = list({id(picture): picture for picture in images}.values())
    number = {id(picture): index for index, picture in enumerate(distinct)}
    if len(images) == 1:
        images = images * len(questions)
    if len(images) != len(questions):
        raise ValueError(f"{len(images)} pictures were given for {len(questions)} questions")
    prompts = [
        processor.encode_chat([{"role": "user", "content": f"{IMAGE_PLACE}\n{each}"}], 1)
        for each in questions
    ]
    encoded = features_of(model, processor, distinct)
    features = [encoded[number[id(picture)]][None] for picture in images]
    texts = generate_text(model, processor, prompts, features, **options)
    return texts[0] if isinstance(question, str) else texts


def features_of(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    images: Sequence[Image.Image],
    batch_size: int = 64,
) -> Tensor:
    """Continuous features (M, N, D) of PIL pictures, `batch_size` at a time."""
    if not images:
        raise ValueError("there are no pictures; give at least one")
    with evaluating(model):
        groups = [
            model.image_features(
                processor.pixels(list(images[start : start + batch_size])).to(model.device)
            )
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(groups)
