"""Prompts to pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor
from vqrae.generation._prompts import evaluating
from vqrae.generation.sampler import sample_codes
from vqrae.mllm import UnifiedModel, UnifiedProcessor


def draw(
    model: UnifiedModel,
    processor: UnifiedProcessor,
    prompts: str | Sequence[str],
    *,
    n: int = 1,
    seed: int = 0,
    guidance_scale: float | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Image.Image]]:
    """`n` pictures for each prompt.

    The j-th picture of a prompt depends on the prompt and on seed + j, not on the other prompts,
    on `n` or on `batch_size`.

    Args:
        batch_size: pictures computed at once.
        progress: called with (pictures done, pictures in all).
        The others: see sample_codes.

    Raises:
        ValueError: for an empty or too long prompt, or an argument out of its range.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    unconditional = processor.encode_draw(unconditional=True)
    encoded = [processor.encode_draw(prompt) for prompt in prompts]
    jobs = [(index, number) for index in range(len(prompts)) for number in range(n)]
    # Prompts of like length together: little padding.
    jobs.sort(key=lambda job: len(encoded[job[0]]))
    pictures: dict[tuple[int, int], Image.Image] = {}
    for start in range(0, len(jobs), batch_size):
        group = jobs[start : start + batch_size]
        codes = sample_codes(
            model,
            [encoded[index] for index, _ in group],
            unconditional,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seeds=[picture_seed(prompts[index], seed + number) for index, number in group],
        )
        pictures |= zip(group, codes_to_images(model, processor, codes), strict=True)
        if progress is not None:
            progress(len(pictures), len(jobs))
    return [[pictures[index, number] for number in range(n)] for index in range(len(prompts))]


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
