"""Where the model looks while it answers.

Shapes: B batch (1), L tokens, H heads, N image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor
from vqrae.generation._prompts import evaluating
from vqrae.generation.text import features_of, generate_ids
from vqrae.mllm import UnifiedModel, UnifiedProcessor
from vqrae.mllm.processing_unified import IMAGE_PLACE


def answer_and_look(
    model: UnifiedModel, processor: UnifiedProcessor, image: Image.Image, question: str
) -> tuple[str, Tensor]:
    """The answer to a question about a picture, and how much each place was looked at for it.

    Returns the text and a (rows, columns) map that sums up to 1: the attention from the tokens that
    choose the answer to the picture's, a mean over heads and layers. It says what was read, not
    why: what matters may have been gathered in other tokens before.

    Raises:
        ValueError: for an empty question or a conversation that is too long.
    """
    messages = [{"role": "user", "content": f"{IMAGE_PLACE}\n{question}"}]
    prompt = processor.encode_chat(messages, 1)
    features = features_of(model, processor, [image])
    [written] = generate_ids(model, processor, [prompt], [features])
    ids = torch.tensor([[*prompt, *written.ids]], device=model.device)
    decoder = model.language_model.get_decoder()
    with evaluating(model), _attention_shown(model):
        out = decoder(
            inputs_embeds=model.embed(ids, features=features),
            output_attentions=True,
            use_cache=False,
        )
    # (layers, H, L, L) of the one row.
    attention = torch.stack([layer[0].float().cpu() for layer in out.attentions])
    choosing = slice(len(prompt) - 1, max(len(prompt), ids.shape[1] - 1))
    seen = (ids[0] == model.config.image_pad_id).nonzero().squeeze(1).cpu()
    looked = attention[:, :, choosing].mean((0, 1, 2))[seen]
    side = math.isqrt(len(seen))
    return processor.text(written.ids), (looked / looked.sum()).view(side, side)


@contextmanager
def _attention_shown(model: UnifiedModel) -> Iterator[None]:
    """Fast kernels keep their weights to themselves."""
    language_model = model.language_model
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)


def overlay(image: Image.Image, looked: Tensor, size: int = 384) -> Image.Image:
    """The picture, bright where it was looked at and dark where not; `size` pixels wide."""
    share = (looked / looked.max()).clamp(0, 1) * 0.85 + 0.15
    mask = Image.fromarray((share * 255).round().byte().numpy(), "L")
    large = image.convert("RGB").resize((size, size), Image.Resampling.NEAREST)
    dark = Image.new("RGB", large.size, "black")
    return Image.composite(large, dark, mask.resize(large.size, Image.Resampling.NEAREST))
