"""What a run tells: metrics.jsonl, TensorBoard, optionally W&B, and a bar or lines on the way."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._disk import writing
from ._process import gather_objects

logger = logging.getLogger(__name__)


class Window:
    """Means of the logged scalars since the last row; part of the checkpoint.

    A scalar that only some batches have is averaged over those batches. Values stay on their
    device until a row is due, so that a GPU never waits for a number nobody reads.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self.units = 0
        self.seconds = 0.0

    def add(self, logs: dict[str, Tensor | float]) -> None:
        """Count scalars in. On the CPU sums are in double precision."""
        for name, value in logs.items():
            if isinstance(value, Tensor):
                value = value.detach()
                value = value.item() if value.device.type == "cpu" else value.float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> tuple[dict[str, float], int]:
        """Means over all ranks and the number of units of all ranks; the window starts anew."""
        mine = {name: (float(value), self._counts[name]) for name, value in self._sums.items()}
        means: dict[str, list[float]] = {}
        units = 0
        for theirs, count in gather_objects((mine, self.units)):
            units += count
            for name, (total, number) in theirs.items():
                entry = means.setdefault(name, [0.0, 0])
                entry[0] += total
                entry[1] += number
        self.__init__()
        return {name: total / number for name, (total, number) in means.items()}, units

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": {name: float(value) for name, value in self._sums.items()},
            "counts": dict(self._counts),
            "units": self.units,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = dict(state["sums"])
        self._counts = dict(state["counts"])
        self.units = state["units"]
        self.seconds = state["seconds"]

    @staticmethod
    def merged(states: list[dict[str, Any]]) -> dict[str, Any]:
        """One state with what the windows of all ranks hold; the time is the first one's."""
        merged = {"sums": {}, "counts": {}, "units": 0, "seconds": states[0]["seconds"]}
        for state in states:
            merged["units"] += state["units"]
            for kind in ("sums", "counts"):
                for name, value in state[kind].items():
                    merged[kind][name] = merged[kind].get(name, 0) + value
        return merged


class RunLog:
    """metrics.jsonl and the trackers, on rank 0 only (elsewhere it does nothing).

    Args:
        run: the run directory.
        step: finished steps; rows after it (of a run that died later) are dropped.
        recipe: the run's name for W&B.
        active: whether this is rank 0.
        wandb: also log to Weights & Biases.
    """

    def __init__(
        self, run: Path, step: int, *, recipe: str, active: bool = True, wandb: bool = False
    ) -> None:
        self._file = None
        self._board = None
        self._wandb = None
        if not active:
            return
        path = self._path = run / "metrics.jsonl"
        with writing(path):
            drop_rows_after(path, step)
        self._wandb = _start_wandb(run, recipe) if wandb else None
        # Held for the whole run and closed by close().
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        from torch.utils.tensorboard import SummaryWriter

        self._events = run / "tensorboard"
        with writing(self._events):
            self._board = SummaryWriter(str(self._events), purge_step=step + 1)

    def row(self, values: dict[str, Any]) -> None:
        """One row; values["step"] counts finished steps. NaN is written as null."""
        if self._file is None:
            return
        clean = {
            k: v if not isinstance(v, float) or math.isfinite(v) else None
            for k, v in values.items()
        }
        with writing(self._path):
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        step = values["step"]
        with writing(self._events):
            for name, value in clean.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in clean.items() if v is not None}, step=step)

    def sync(self) -> None:
        """Rows up to here survive a power cut (called before a checkpoint is made whole)."""
        if self._file is not None:
            with writing(self._path):
                os.fsync(self._file.fileno())
            with writing(self._events):
                self._board.flush()

    def close(self) -> None:
        if self._file is not None:
            # What a full disk did not take is tried again here, and has been told by then.
            for file in (self._file, self._board):
                with contextlib.suppress(OSError):
                    file.close()
            self._file = self._board = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def drop_rows_after(path: Path, step: int) -> None:
    """Keep the rows of finished steps up to `step`; a row that was cut short goes too."""
    if not path.exists():
        return
    kept = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and row["step"] <= step:
            kept.append(line)
    if len(kept) != len(lines):
        aside = path.with_name(f".{path.name}")
        aside.write_text("".join(kept), encoding="utf-8")
        os.replace(aside, path)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl (or of a run directory); a torn last line is left out.

    Raises ValueError where there is no such file.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"no metrics at '{path}'; give a run directory or its metrics.jsonl")
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _start_wandb(run: Path, recipe: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "wandb is True but the wandb package is missing; pip install wandb, or leave it off"
        ) from None
    name = run.resolve().name
    return wandb.init(project="vqrae", name=f"{recipe}-{name}", dir=str(run), resume="allow")


class Progress:
    """A bar on a terminal, else a line in the log now and then; nothing on other ranks."""

    def __init__(self, total: int, done: int, *, unit: str, title: str, active: bool) -> None:
        self._bar = None
        self._active = active
        self._total = total
        self._unit = unit
        self._title = title
        if active and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                refresh_per_second=4,
                speed_estimate_period=60,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, numbers="")
            self._bar.start()

    def step(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def row(self, values: dict[str, Any], seconds_per_step: float) -> None:
        """Show the numbers of a metrics row."""
        if not self._active:
            return
        speed = values[f"{self._unit}_per_s"]
        numbers = f"loss {values['loss']:.4f}  {speed:.0f} {self._unit}/s"
        if "mfu" in values:
            numbers += f"  mfu {values['mfu']:.1%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=values["step"], numbers=numbers)
            return
        left = seconds_per_step * (self._total - values["step"])
        logger.info(
            "%s step %d/%d  %s  %s left",
            self._title,
            values["step"],
            self._total,
            numbers,
            clock(left),
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def device_seconds(device: torch.device) -> None:
    """Wait for the device, so that a clock read after it is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
