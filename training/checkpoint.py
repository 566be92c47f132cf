"""Checkpoints that are whole or absent: written aside, fsynced, renamed.

RUN/checkpoints/step-00000200/
    model.safetensors      the objective's state dict, whole under every ZeRO stage
    optimizer.safetensors  AdamW's state by parameter name
    critic.safetensors, critic_optimizer.safetensors   where there is a critic
    (instead of a file above TrainConfig.shard_bytes, its shards and their index: _weights.py)
    rank-00000.pt ...      each process: RNG, data position, extra state, log window
    checkpoint.json        step, world size, every file's size
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ._disk import writing
from ._process import barrier

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")
_MEND = "remove that folder to go on from an earlier one"


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    root = run / "checkpoints"
    if not root.is_dir():
        return []
    found = [(int(m[1]), p) for p in root.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def latest(run: Path) -> Path | None:
    """The newest checkpoint, or None. ValueError when a file of it is missing or cut short."""
    found = checkpoints(run)
    if not found:
        return None
    path = found[-1]
    manifest = read_manifest(path)
    for name, size in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"checkpoint file {file} is missing; {_MEND}")
        if file.stat().st_size != size:
            raise ValueError(
                f"checkpoint file {file} has {file.stat().st_size} bytes, not {size}; {_MEND}"
            )
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """checkpoint.json, or ValueError in one line."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        return {k: manifest[k] for k in ("step", "world_size", "files")}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read {file} ({type(error).__name__}); {_MEND}") from None


def write_checkpoint(
    run: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    rank: int,
    world_size: int,
    keep: int,
) -> Path:
    """Make the checkpoint of `step` whole on disk, then drop all but the newest `keep`.

    Every rank calls it; `write(directory)` puts that rank's files into the directory. Raises
    TrainingStopped where the disk is full; nothing half-written stays then.
    """
    final = checkpoint_path(run, step)
    aside = final.with_name(f".writing-{final.name}")
    exists = final.is_dir()
    barrier()
    if exists:  # interrupted again before the first new step
        return final
    with writing(final, aside):
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        barrier()
        write(aside)
        barrier()
        if rank == 0:
            files = {p.relative_to(aside).as_posix(): p.stat().st_size for p in _files(aside)}
            manifest = {"step": step, "world_size": world_size, "files": files}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            settle(aside, final)
            prune(run, keep)
        barrier()
    return final


def prune(run: Path, keep: int) -> None:
    """Remove old checkpoints and what interrupted writers left."""
    for path in checkpoints(run)[:-keep]:
        # Renamed first, so that a half-removed folder is never taken for a checkpoint.
        doomed = path.with_name(f".removing-{path.name}")
        path.rename(doomed)
    for path in (run / "checkpoints").glob(".*-step-*"):
        shutil.rmtree(path, ignore_errors=True)


def settle(aside: Path, final: Path) -> None:
    """Give a folder that is complete its real name, and make that survive a power cut."""
    for path in _files(aside):
        _fsync(path)
    for folder in (p for p in aside.rglob("*") if p.is_dir()):
        _fsync(folder)
    _fsync(aside)
    os.rename(aside, final)
    _fsync(final.parent)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Numbers, strings, tensors in dicts and lists, to be read with weights_only=True."""
    torch.save(state, path)


def rank_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"rank-{rank:05d}.pt"


def load_rank(checkpoint: Path, rank: int) -> dict[str, Any]:
    """What the process of that rank has saved; ValueError in one line."""
    return load_state(rank_file(checkpoint, rank))


def load_state(path: Path) -> dict[str, Any]:
    """The counterpart of `save_state`; ValueError in one line."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {path} is missing; {_MEND}") from None
    except Exception as error:  # torch lets any error of a damaged file through
        raise ValueError(f"cannot read {path} ({type(error).__name__}); {_MEND}") from None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
