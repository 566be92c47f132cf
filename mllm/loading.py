"""A causal language model with its tokenizer, or one line that says why not."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from vqrae.tokenizer._loading import check_loaded, check_place, quiet_transformers


def load_language_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any causal language model of transformers, in fp32, in eval mode.

    Args:
        path: a hub name in the local cache, or a folder.

    Raises:
        ValueError: if nothing loadable is there, or weights are missing.
    """
    check_place(path, "the language model")
    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"cannot load the language model {path!r}: {reason}; put it into the local cache, "
                "or give its folder"
            ) from None
    check_loaded(path, info, "the language model")
    return model.eval(), tokenizer
