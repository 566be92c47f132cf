"""One run, one directory: what it is, where it ran, how it went, what came out."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ._disk import writing
from ._process import barrier
from .checkpoint import settle

# What may change between two calls of one run: none of it changes what is computed. Accumulation
# parts the same batch otherwise, so that micro-batches can stay as large on other processes.
FREE_FIELDS = frozenset(
    ("steps", "log_every", "save_every", "keep", "device", "engine", "deepspeed", "wandb", "run")
    + ("gradient_checkpointing", "accumulation", "shard_bytes", "mfu")
)


class RunDirectory:
    """RUN/config.json, environment.json, metrics.jsonl, tensorboard/, checkpoints/, final/, DONE.

    Made by `RunDirectory.open`.
    """

    def __init__(self, path: Path, recipe: str) -> None:
        self.path = path
        self.recipe = recipe
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.final = path / "final"
        self._done = path / "DONE"

    @classmethod
    def open(
        cls,
        path: str | Path,
        recipe: str,
        config: dict[str, Any],
        *,
        device: str = "cpu",
        rank: int = 0,
    ) -> RunDirectory:
        """Make the directory, or take up one that the same recipe and config have made.

        Raises ValueError (one line) for a directory of another recipe, one whose config differs
        in a field that changes what is computed, and a path that holds something else.
        """
        path = Path(path)
        file = path / "config.json"
        new = {"recipe": recipe, "config": plain(config)}
        if path.exists() and not path.is_dir():
            raise ValueError(f"run directory '{path}' is a file; choose another --run")
        if file.exists():
            try:
                old = json.loads(file.read_text())
                old_recipe, old_config = old["recipe"], old["config"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{file} is not a run's config; remove it or choose another --run"
                ) from None
            if old_recipe != recipe:
                raise ValueError(
                    f"run directory '{path}' belongs to recipe '{old_recipe}', not '{recipe}'; "
                    "choose another --run"
                )
            difference = first_difference(old_config, new["config"])
            if difference is not None:
                name, was, now = difference
                raise ValueError(
                    f"run directory '{path}' was made with {name} = {was}, not {now}; "
                    "give the same or choose another --run"
                )
        elif path.exists() and any(not p.name.startswith(".") for p in path.iterdir()):
            raise ValueError(
                f"run directory '{path}' holds other files and no config.json; choose another --run"
            )
        barrier()  # every rank has looked before rank 0 writes
        if rank == 0:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
                write_json(file, new)
                write_json(path / "environment.json", environment(device))
        barrier()
        return cls(path, recipe)

    def done(self) -> dict[str, Any] | None:
        """What the DONE marker says ("steps", "seconds", "last_logs"), or None."""
        try:
            return json.loads(self._done.read_text())
        except (OSError, ValueError):
            return None

    def mark_done(self, **facts: Any) -> None:
        """Say that the run has ended well."""
        write_json(self._done, facts)

    def not_done(self) -> None:
        """Take the marker back: the run goes on (more steps)."""
        self._done.unlink(missing_ok=True)

    def new_final(self) -> Path:
        """An empty folder beside final/, for `settle_final`."""
        aside = self.path / ".writing-final"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        return aside

    def settle_final(self, aside: Path) -> None:
        """Let the folder become final/, in place of an older one."""
        old = self.path / ".removing-final"
        shutil.rmtree(old, ignore_errors=True)
        if self.final.exists():
            self.final.rename(old)
        settle(aside, self.final)
        shutil.rmtree(old, ignore_errors=True)


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples to what JSON gives back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=_plain_leaf))


def _plain_leaf(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return str(value)


def first_difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field that differs, as (dotted name, old, new); free fields do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            if key in FREE_FIELDS:
                continue
            inner = first_difference(
                old.get(key, "unset"), new.get(key, "unset"), f"{name}.{key}" if name else key
            )
            if inner is not None:
                return inner
        return None
    return None if old == new else (name, old, new)


def write_json(path: Path, value: Any) -> None:
    """Whole or as before; untouched when nothing changes."""
    text = json.dumps(value, indent=2) + "\n"
    if path.exists() and path.read_text() == text:
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    os.replace(aside, path)


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, for whoever reads the run later."""
    versions = {}
    for name in ("vqrae", "torch", "torchvision", "transformers", "deepspeed", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "packages": versions,
    }
