"""A causal language model with its tokenizer, or one line that says why not."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from vqrae.tokenizer._loading import check_loaded, check_place, loading, quiet_transformers


def load_language_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any causal language model of transformers, in fp32, in eval mode.

    Args:
        path: a hub name in the local cache, or a folder.

    Raises:
        ValueError: if nothing loadable is there, or weights are missing.
    """
    what = "the language model"
    check_place(path, what)
    with loading(path, what), quiet_transformers():
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    check_loaded(path, info, what)
    return model.eval(), tokenizer
