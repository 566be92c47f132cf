"""One vocabulary for text and pictures: text tokens, three marks, then the codes.

Shapes: V text vocabulary, K codebook size, T text width.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase
from vqrae.tokenizer._loading import quiet_transformers

MARKS = ("<|image_start|>", "<|image_end|>", "<|image_pad|>")
NUM_SPECIALS = len(MARKS)


class Vocabulary(NamedTuple):
    """Where the ids lie."""

    image_start_id: int
    image_end_id: int
    image_pad_id: int
    code_offset: int
    codebook_size: int

    @property
    def size(self) -> int:
        return self.code_offset + self.codebook_size


def code_token(index: int) -> str:
    """The token that stands for code `index` in the text tokenizer's vocabulary."""
    return f"<|code_{index}|>"


def vocabulary_after(text_size: int, codebook_size: int) -> Vocabulary:
    """The layout that follows `text_size` text tokens."""
    marks = range(text_size, text_size + NUM_SPECIALS)
    return Vocabulary(*marks, text_size + NUM_SPECIALS, codebook_size)


def mark_names(taken: Container[str]) -> list[str]:
    """Names of the three marks that no text token has: Qwen's vocabulary, for one, has an
    `<|image_pad|>` of its own, which stays what it is.
    """
    return [name if name not in taken else f"<|vqrae_{name[2:]}" for name in MARKS]


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, codebook_size: int
) -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    """A copy of `tokenizer` in which every mark and every code is exactly one id.

    They are added as special tokens: only those stay plain text when a user's text is tokenized
    with `split_special_tokens=True`.

    Raises:
        ValueError: if the tokenizer has codes already.
    """
    layout = vocabulary_after(len(tokenizer), codebook_size)
    taken = tokenizer.get_vocab()
    if code_token(0) in taken:
        raise ValueError(
            f"the text tokenizer has {code_token(0)} already; give the one that the language "
            "model came with"
        )
    names = [*mark_names(taken), *(code_token(index) for index in range(codebook_size))]
    tokenizer = copy.deepcopy(tokenizer)
    tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids([names[0], names[-1]])
    assert ids == [layout.image_start_id, layout.size - 1], (ids, layout)
    return tokenizer, layout


def read_layout(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The layout that `extend_tokenizer` gave a tokenizer.

    Raises:
        ValueError: if it was not extended.
    """
    vocabulary = tokenizer.get_vocab()
    first = vocabulary.get(code_token(0))
    if first is None:
        raise ValueError(
            f"the text tokenizer has no {code_token(0)}; UnifiedModel.from_parts adds it"
        )
    layout = vocabulary_after(first - NUM_SPECIALS, len(vocabulary) - first)
    last = code_token(layout.codebook_size - 1)
    if vocabulary.get(last) != layout.size - 1:
        raise ValueError(
            f"the text tokenizer has {layout.codebook_size} tokens from {code_token(0)} on, but "
            f"{last} is {vocabulary.get(last)}, not {layout.size - 1}; was it changed afterwards?"
        )
    return layout


@torch.no_grad()
def extend_language_model(
    model: PreTrainedModel,
    layout: Vocabulary,
    codebook: Tensor | None = None,
    generator: torch.Generator | None = None,
    multiple: int = 1,
) -> None:
    """Give `model` rows for the whole `layout`, in place; rows of text tokens keep every bit.

    New rows have the mean and the covariance of the text rows. With `codebook` (K, D), codes
    that lie near each other there start near each other here, too. Tied embeddings stay one
    tensor; rows that padded the old vocabulary are reused. The number of
    rows is rounded up to a `multiple`; what is beyond the layout is never scored.

    Raises:
        ValueError: if the tokenizer has more tokens than the model has rows.
    """
    text_size, device = layout.image_start_id, model.get_input_embeddings().weight.device
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < text_size:
        raise ValueError(
            f"the text tokenizer has {text_size} tokens, but the language model only {rows} rows; "
            "give the tokenizer that the model was trained with"
        )
    rows_wanted = -(-layout.size // multiple) * multiple
    with quiet_transformers():
        model.resize_token_embeddings(rows_wanted, mean_resizing=False)
    generator = generator or torch.Generator().manual_seed(0)
    width = model.get_input_embeddings().weight.shape[1]
    noise = torch.randn(rows_wanted - text_size, width, generator=generator)
    if codebook is not None:
        # A tenth of the variance stays independent: codes may be alike in all that is known of
        # them, and are still different tokens. One seed on the scenes world, loss on codes at
        # steps 100 and 120: half and half 2.48 and 2.50, these 2.46 and 2.46.
        likeness = _like_noise(codebook, width, generator)
        codes = noise[NUM_SPECIALS : NUM_SPECIALS + layout.codebook_size]
        codes.copy_(0.9**0.5 * likeness + 0.1**0.5 * codes)
    seen: list[nn.Parameter] = []
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = module.weight
        if any(weight is other for other in seen):
            continue
        seen.append(weight)
        weight[text_size:] = _in_distribution(weight[:text_size], noise.to(device))
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias[text_size:] = bias[:text_size].mean()


def _in_distribution(rows: Tensor, noise: Tensor) -> Tensor:
    """White `noise` (M, T) -> M rows with the mean and covariance of `rows` (V, T)."""
    rows = rows.float()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean + noise * values.clamp(min=0).sqrt() @ vectors.T


def _like_noise(codebook: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """A random projection of `codebook` (K, D) to (K, T) of unit variance: it keeps distances."""
    codebook = codebook.detach().float().cpu()
    codebook = codebook - codebook.mean(0)
    projected = codebook @ torch.randn(codebook.shape[1], width, generator=generator)
    return projected / projected.std().clamp(min=1e-6)
