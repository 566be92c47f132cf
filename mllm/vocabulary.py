"""One vocabulary for text and pictures: text tokens, three marks, then the codes.

Shapes: V text vocabulary, K codebook size, T text width.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from vqrae.tokenizer._loading import quiet_transformers

IMAGE_START, IMAGE_END, IMAGE_PAD = "<|image_start|>", "<|image_end|>", "<|image_pad|>"
MARKS = (IMAGE_START, IMAGE_END, IMAGE_PAD)
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


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, codebook_size: int
) -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    """A copy of `tokenizer` in which every mark and every code is exactly one id.

    They are added as special tokens: only those stay plain text when a user's text is tokenized
    with `split_special_tokens=True`.

    Raises:
        ValueError: if the tokenizer has such tokens already.
    """
    layout = vocabulary_after(len(tokenizer), codebook_size)
    present = [token for token in (*MARKS, code_token(0)) if token in tokenizer.get_vocab()]
    if present:
        raise ValueError(
            f"the text tokenizer has {present[0]} already; give the one that the language model "
            "came with"
        )
    names = [*MARKS, *(code_token(index) for index in range(codebook_size))]
    tokenizer = copy.deepcopy(tokenizer)
    tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids([IMAGE_START, code_token(codebook_size - 1)])
    assert ids == [layout.image_start_id, layout.size - 1], (ids, layout)
    return tokenizer, layout


@torch.no_grad()
def extend_language_model(
    model: PreTrainedModel,
    layout: Vocabulary,
    codebook: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Give `model` rows for the whole `layout`, in place; rows of text tokens keep every bit.

    New rows have the mean and the covariance of the text rows. With `codebook` (K, E), rows of
    codes that lie near each other there start near each other here, too. Tied embeddings stay one
    tensor; rows that padded the old vocabulary are reused.

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
    with quiet_transformers():
        model.resize_token_embeddings(layout.size, mean_resizing=False)
    generator = generator or torch.Generator().manual_seed(0)
    width = model.get_input_embeddings().weight.shape[1]
    noise = torch.randn(layout.size - text_size, width, generator=generator)
    if codebook is not None:
        noise[NUM_SPECIALS:] = _like_noise(codebook, width, generator)
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
    """A random projection of `codebook` (K, E) to (K, T) of unit variance: it keeps distances."""
    codebook = codebook.detach().float().cpu()
    codebook = codebook - codebook.mean(0)
    projected = codebook @ torch.randn(codebook.shape[1], width, generator=generator)
    return projected / projected.std().clamp(min=1e-6)
