"""transformers keeps a misspelt config keyword silently; ours refuse it."""

from __future__ import annotations

import dataclasses
import difflib

from transformers import PreTrainedConfig

# What transformers itself writes into a config.json or passes when it loads one.
_HOUSEKEEPING = {"transformers_version", "architectures", "model_type", "torch_dtype", "auto_map"}
_HOUSEKEEPING |= {"name_or_path", "attn_implementation", "experts_implementation", "_commit_hash"}
_HOUSEKEEPING |= {"output_attentions", "output_hidden_states", "return_dict"}


def refuse_unknown_keywords(config_class: type[PreTrainedConfig], keywords: dict) -> None:
    """Raise ValueError if `keywords` holds what `config_class` has no field for."""
    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = sorted({field.name for field in dataclasses.fields(config_class)} - base)
    for name in keywords:
        if name in _HOUSEKEEPING or name in base or name.startswith("_"):
            continue
        near = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{config_class.__name__} has no field {name!r}; {hint}valid fields: {', '.join(own)}"
        )
