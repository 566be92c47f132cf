"""Prompts to pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from vqrae.generation._prompts import evaluating
from vqrae.generation.guidance import Schedule
from vqrae.generation.sampler import Scales, own_sampling, sample_codes
from vqrae.mllm import UnifiedModel, UnifiedProcessor


def draw(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    prompts: str | Sequence[str],
    *,
    n: int = 1,
    seed: int = 0,
    guidance_scale: Scales | None = None,
    guidance_schedule: Schedule = "constant",
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[list[Image.Image], int], None] | None = None,
    watch_every: int = 1,
) -> list[list[Image.Image]]:
    """`n` pictures for each prompt.

    The j-th picture of a prompt depends on the prompt and on seed + j, not on the other prompts,
    on `n` or on `batch_size`.

    Args:
        guidance_scale: one for all, or one for each prompt; None takes the model's own.
        batch_size: pictures computed at once.
        progress: called with (codes done, codes of all pictures) after each step.
        watch: called after every `watch_every` codes with the pictures of the batch as far as they
            are drawn, see partial_images, and the number of codes of each.
        The others: see sample_codes.

    Raises:
        ValueError: for an empty or too long prompt, or an argument out of its range.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for name, value in (("n", n), ("batch_size", batch_size), ("watch_every", watch_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    scales, min_p = own_sampling(model, guidance_scale, min_p)
    scales = [scales] * len(prompts) if isinstance(scales, int | float) else list(scales)
    if len(scales) != len(prompts):
        raise ValueError(f"{len(scales)} guidance scales were given for {len(prompts)} prompts")
    unconditional = processor.encode_draw(unconditional=True)
    encoded = [processor.encode_draw(prompt) for prompt in prompts]
    jobs = [(index, number) for index in range(len(prompts)) for number in range(n)]
    # Prompts of like length together: little padding.
    jobs.sort(key=lambda job: len(encoded[job[0]]))
    pictures: dict[tuple[int, int], Image.Image] = {}
    places = model.config.num_image_tokens

    def look(codes: Tensor) -> None:
        if codes.shape[1] % watch_every == 0:
            watch(partial_images(model, processor, codes), codes.shape[1])

    for start in range(0, len(jobs), batch_size):
        group = jobs[start : start + batch_size]
        codes = sample_codes(
            model,
            [encoded[index] for index, _ in group],
            unconditional,
            guidance_scale=[scales[index] for index, _ in group],
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seeds=[picture_seed(prompts[index], seed + number) for index, number in group],
            progress=progress and _of_all(progress, start, len(group), len(jobs), places),
            watch=None if watch is None else look,
        )
        pictures |= zip(group, codes_to_images(model, processor, codes), strict=True)
    return [[pictures[index, number] for number in range(n)] for index in range(len(prompts))]


def _of_all(
    progress: Callable[[int, int], None], before: int, pictures: int, of: int, places: int
) -> Callable[[int, int], None]:
    """Progress of one batch as that of all pictures, in codes."""
    return lambda done, _: progress(before * places + done * pictures, of * places)


def picture_seed(prompt: str, seed: int) -> int:
    """A seed of one's own for every prompt, so that pictures of one call share no chance."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def codes_to_images(
    model: UnifiedModel, processor: UnifiedProcessor, codes: Tensor
) -> list[Image.Image]:
    """Codes (B, N) -> B PIL pictures."""
    with evaluating(model):
        return processor.image_processor.to_images(model.vqrae.detokenize(codes))


def partial_images(
    model: UnifiedModel, processor: UnifiedProcessor, codes: Tensor, fill: str = "#d0d0d0"
) -> list[Image.Image]:
    """The first n codes (B, n) of pictures -> B PIL pictures, with `fill` where no code is yet.

    The decoder sees the whole picture at once; until all codes are there it sees the last one in
    the places of the missing, so what is shown early changes a little later.
    """
    places, done = model.config.num_image_tokens, codes.shape[1]
    missing = codes[:, -1:].expand(-1, places - done)
    images = codes_to_images(model, processor, torch.cat([codes, missing], 1))
    columns = math.isqrt(places)
    for image in images:
        side = image.width // columns
        for place in range(done, places):
            left, top = place % columns * side, place // columns * side
            image.paste(fill, (left, top, left + side, top + side))
    return images
