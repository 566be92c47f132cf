"""A short name for what a tokenizer's codes mean."""

from __future__ import annotations

import hashlib

import torch
from vqrae.tokenizer.modeling_vqrae import VQRAEModel

# What draws, but does not decide which code a picture gets.
_DRAWS = ("project_out.", "decoder.")


def fingerprint(model: VQRAEModel) -> str:
    """16 hex digits of the sha256 of everything that turns pixels into codes.

    The decoder is not in it: a tokenizer whose decoder was trained on writes the same codes.
    Where the weights lie does not matter.
    """
    digest = hashlib.sha256()
    config = model.config
    for name in ("image_size", "assignment", "pixel_mean", "pixel_std", "encoder_layer"):
        value = getattr(config, name)
        digest.update(
            f"{name}={list(value) if isinstance(value, (list, tuple)) else value}".encode()
        )
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(_DRAWS):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        whole = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(whole.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
