"""Tensors to and from safetensors, with tensors that share memory written once.

What is too large for one file is written to several, as models on the Hugging Face hub are:

    model-00001-of-00002.safetensors, model-00002-of-00002.safetensors
    model.safetensors.index.json        which file holds which tensor
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

# Names in a checkpoint, whichever engine writes it.
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
SHARD_BYTES = 5_000_000_000
_ALIASES = "aliases"
_MEND = "remove its folder to go on from an earlier one"

# A tensor with its names: the first is stored, the others are aliases of it.
Named = tuple[list[str], Tensor]


def save(
    state: dict[str, Tensor],
    path: Path,
    skip: tuple[str, ...] = (),
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a state dict; tied tensors (same memory, same shape) are written under one name."""
    write(named_once(state, skip), path, shard_bytes)


def named_once(state: dict[str, Tensor], skip: tuple[str, ...] = ()) -> Iterator[Named]:
    """Each tensor of a state dict once, with all its names but those that start as in `skip`."""
    names: dict[object, list[str]] = {}
    for name, tensor in state.items():
        if skip and name.startswith(skip):
            continue
        where = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        names.setdefault(where if tensor.numel() else name, []).append(name)
    storages: set[int] = set()
    for group in names.values():
        tensor = state[group[0]].detach()
        if tensor.numel():
            storage = tensor.untyped_storage().data_ptr()
            if storage in storages:  # another window on the same memory
                tensor = tensor.clone()
            storages.add(storage)
        yield group, tensor


def write(tensors: Iterable[Named], path: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors that come one after another, in files of at most `shard_bytes` bytes.

    At most one file's worth of them is held. A larger tensor gets a file of its own.
    """
    held: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    shards: list[list[str]] = []
    size = total = 0

    def put_down() -> None:
        save_file(held, _unnumbered(path, len(shards)), metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for (name, *others), tensor in tensors:
        aliases.update(dict.fromkeys(others, name))
        more = tensor.numel() * tensor.element_size()
        if held and size + more > shard_bytes:
            put_down()
            size = 0
        held[name] = tensor.detach().cpu().contiguous()
        size += more
        total += more
    if not shards:
        save_file(held, path, metadata={"format": "pt", _ALIASES: json.dumps(aliases)})
        return
    put_down()
    weight_map = {}
    for number, names in enumerate(shards):
        file = path.with_name(f"{path.stem}-{number + 1:05d}-of-{len(shards):05d}{path.suffix}")
        _unnumbered(path, number).rename(file)
        weight_map.update(dict.fromkeys(names, file.name))
    index = {"metadata": {"total_size": total, _ALIASES: aliases}, "weight_map": weight_map}
    _index(path).write_text(json.dumps(index, indent=1) + "\n")


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of `save`, from one file or several.

    ValueError in one line when a file is missing or damaged.
    """
    if not path.is_file() and _index(path).is_file():
        tensors, aliases = _read_shards(path)
    else:
        tensors, metadata = _read_file(path)
        aliases = json.loads(metadata.get(_ALIASES, "{}"))
    for name, original in aliases.items():
        if original in tensors:
            tensors[name] = tensors[original]
    return tensors


def _read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    file = _index(path)
    try:
        index = json.loads(file.read_text())
        weight_map, aliases = index["weight_map"], index["metadata"].get(_ALIASES, {})
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read {file} ({type(error).__name__}); {_MEND}") from None
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= _read_file(path.with_name(shard))[0]
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise ValueError(f"{path.with_name(weight_map[lost[0]])} lacks {_some(lost)}; {_MEND}")
    return tensors, aliases


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; {_MEND}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot read {path}: {reason}; {_MEND}") from None


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


def _index(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def _unnumbered(path: Path, number: int) -> Path:
    """A shard's name while it is not known how many there will be."""
    return path.with_name(f"{path.stem}-{number + 1:05d}{path.suffix}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
