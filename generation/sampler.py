"""Sampling the codes of pictures, with classifier-free guidance and a KV cache.

Shapes: B pictures, N image tokens, K codebook size, M pictures looked at, D encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from vqrae.generation._prompts import PromptBatch, evaluating
from vqrae.generation.guidance import Guidance, Schedule, guided_logits
from vqrae.generation.sampling import check_sampling, pick, uniforms_for
from vqrae.mllm import UnifiedModel

Scales = float | Sequence[float]


def own_sampling(
    model: UnifiedModel, guidance_scale: Scales | None, min_p: float | None
) -> tuple[Scales, float]:
    """Guidance scale and min_p, as given or, where None, as the model's config says."""
    config = model.config
    return (
        config.guidance_scale if guidance_scale is None else guidance_scale,
        config.min_p if min_p is None else min_p,
    )


def sample_codes(
    model: UnifiedModel,
    prompt_ids: Sequence[Sequence[int]],
    uncond_ids: Sequence[int],
    *,
    guidance_scale: Scales | None = None,
    guidance_schedule: Schedule = "constant",
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    seeds: Sequence[int] | int = 0,
    features: Tensor | None = None,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Codes (B, N) int64 in [0, K) of one picture for each prompt.

    Both halves of guidance go through the model as one batch. A picture depends on its prompt, its
    seed and its guidance alone: not on its neighbours, their lengths or the batch size.

    Args:
        prompt_ids: B prompts that end in `<|image_start|>`.
        uncond_ids: the prompt without its condition, the same for all.
        guidance_scale: one for all, or one for each picture; where it is 1, guidance is off and no
            second half is computed. None takes the model's own. The paper states no scale.
        guidance_schedule, guidance_interval: see Guidance.
        temperature: 0 takes the most likely code each time.
        min_p: leave out codes that, before guidance and temperature, are less likely than this
            share of the most likely code; 0 keeps all, None takes the model's own. See `plausible`.
        seeds: one for each picture; a number s stands for s, s + 1, ...
        features: (M, N, D) of the pictures that the prompts look at, in order.
        cache: False computes everything anew at each step; only tests want that.
        progress: called with (codes done, N) after each step.
        watch: called with the codes so far, (B, 1) to (B, N), after each step.

    Raises:
        ValueError: for an argument out of its range, or a number of seeds or scales other than B.
    """
    guidance_scale, min_p = own_sampling(model, guidance_scale, min_p)
    check_sampling(temperature, top_k, top_p, min_p)
    if not prompt_ids:
        raise ValueError("there are no prompts; give at least one")
    size, steps = len(prompt_ids), model.config.num_image_tokens
    guidance = Guidance(guidance_scale, size, guidance_schedule, guidance_interval)
    seeds = [seeds + row for row in range(size)] if isinstance(seeds, int) else list(seeds)
    if len(seeds) != size:
        raise ValueError(f"{len(seeds)} seeds were given for {size} pictures")
    guided = torch.tensor(guidance.rows, dtype=torch.long, device=model.device)
    least = torch.full((size, 1), min_p, device=model.device) if min_p else None
    uniforms = uniforms_for(seeds, steps).to(model.device)
    codes = torch.empty(size, steps, dtype=torch.long, device=model.device)
    with evaluating(model):
        prompts = [*prompt_ids, *([uncond_ids] * len(guided))]
        batch = PromptBatch(
            model,
            prompts,
            features,
            steps=steps - 1,
            cached=cache,
            compiled=model.compiled_decoding,
        )
        for step in range(steps):
            if len(guided) and guidance.is_over(step, steps):
                batch.keep(size)
                guided = guided[:0]
            scales = guidance.at(step, steps)
            # The other half is read at each step, and asked only where it counts.
            logits = batch.code_logits(size + len(scales))
            rows = guided[: len(scales)]
            logits = guided_logits(logits[:size], logits[size:], rows, scales, least)
            codes[:, step] = pick(logits, uniforms[:, step], temperature, top_k, top_p)
            if step + 1 < steps:
                ids = codes[:, step] + model.config.code_offset
                batch.append(torch.cat([ids, ids[guided]]), place=step)
            if progress is not None:
                progress(step + 1, steps)
            if watch is not None:
                watch(codes[:, : step + 1])
    return codes
