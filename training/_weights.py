"""Tensors to and from safetensors, with tensors that share memory written once."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

# Names in a checkpoint, whichever engine writes it.
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
_ALIASES = "aliases"


def save(state: dict[str, Tensor], path: Path, skip: tuple[str, ...] = ()) -> None:
    """Write a state dict; tied tensors (same memory, same shape) are written under one name."""
    first: dict[tuple, str] = {}
    aliases: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if skip and name.startswith(skip):
            continue
        tensor = tensor.detach()
        if tensor.numel():
            where = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if where in first:
                aliases[name] = first[where]
                continue
            first[where] = name
            storage = tensor.untyped_storage()
            if storage.data_ptr() in storages:  # another window on the same memory
                tensor = tensor.clone()
            storages.add(storage.data_ptr())
        tensors[name] = tensor.cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt", _ALIASES: json.dumps(aliases)})


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of `save`. ValueError in one line when the file is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; remove its folder to go on from an earlier one")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot read {path}: {reason}; remove its folder to go on from an earlier one"
        ) from None
    for name, original in json.loads(metadata.get(_ALIASES, "{}")).items():
        if original in tensors:
            tensors[name] = tensors[original]
    return tensors


def load_into(module: nn.Module, path: Path, skip: tuple[str, ...] = ()) -> None:
    """Fill a module from `path`; ValueError in one line naming the keys that do not fit."""
    state = read(path)
    wanted = {k: v for k, v in module.state_dict().items() if not (skip and k.startswith(skip))}
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults = [
        f"{title} {_some(names)}"
        for title, names in (
            ("missing keys", missing),
            ("unexpected keys", unexpected),
            ("wrong shapes", shapes),
        )
        if names
    ]
    if faults:
        raise ValueError(
            f"{path} does not fit this model: {'; '.join(faults)}; "
            "use the model settings it was written with, or another --run"
        )
    module.load_state_dict(state, strict=False)  # strict but for `skip`: compared above


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
