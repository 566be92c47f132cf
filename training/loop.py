"""The one training loop. Everything that is trained differs only in its Objective and its data."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset

from . import _other_ranks, _weights
from ._average import WeightAverage
from ._critic import CriticTrainer
from ._data import batches_on, make_loader
from ._disk import writing
from ._mfu import Utilisation
from ._process import (
    broadcast_tensors,
    load_rng_state,
    rng_state,
    seed_everything,
)
from ._watch import Interruption, StepWatch
from ._workers import death_of_worker, end_workers
from .checkpoint import (
    latest,
    load_rank,
    rank_file,
    read_manifest,
    save_state,
    write_checkpoint,
)
from .config import TrainConfig
from .engine import Engine, make_engine, start_processes
from .logging import Progress, RunLog, Window, device_seconds
from .objective import Objective, TrainingStopped
from .run_directory import RunDirectory
from .schedule import learning_rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HookState:
    """What a hook sees. Hooks run on every rank (under ZeRO-3 the weights are spread over all),
    so one that writes files does it only where `rank` is 0."""

    step: int
    """Finished steps."""
    objective: Objective
    run: Path
    logs: dict[str, Any]
    """The last row of metrics.jsonl."""
    rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Hook(Protocol):
    """Called after every `every` steps and once at the end (once, if both fall together)."""

    every: int

    def __call__(self, state: HookState) -> dict[str, float] | None:
        """May return numbers: they are written as a row of metrics.jsonl for this step."""


@dataclass(frozen=True)
class FitResult:
    """How a run ended."""

    step: int
    """Finished steps."""
    seconds: float
    """Time spent in training steps over all calls."""
    last_logs: dict[str, Any]
    """The last row of metrics.jsonl."""
    resumed_from: int | None
    """The checkpoint's step this call went on from; None for a fresh start."""


def fit(
    objective: Objective,
    dataset: IterableDataset,
    config: TrainConfig,
    run: str | Path,
    *,
    recipe: str,
    recipe_config: dict[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
) -> FitResult:
    """Train the objective for config.steps steps and export the result to RUN/final.

    Called again with the same arguments it goes on from the latest checkpoint, and on the CPU
    repeats bit for bit what an uninterrupted run would have done. With another number of processes
    it goes on, too (see `_other_ranks.py`): every sample is still used once, and random numbers
    are drawn anew. A finished run returns at once, without touching the objective: take the result
    from RUN/final. More `steps` than before lengthen a finished run.

    Args:
        dataset: endless, with state_dict / load_state_dict and settable rank / world_size; and
            with merge_states (see StreamDataset), without which it starts over when the number
            of processes changes.
        recipe, recipe_config: what the run directory belongs to; see RunDirectory.open.

    Raises:
        TrainingStopped: loss or gradient not finite, or the objective gave up.
        ValueError: a mistake in the arguments, the run directory or a checkpoint, in one line.
        SystemExit: code 0, after SIGTERM or SIGINT, when the checkpoint has been written.
    """
    device, rank, world_size = start_processes(config)
    micro_batch = config.micro_batch(world_size)
    settings = {"train": config, **(recipe_config or {})}
    directory = RunDirectory.open(run, recipe, settings, device=str(device), rank=rank)
    done = directory.done()
    if done is not None and done["steps"] >= config.steps and directory.final.is_dir():
        logger.info("%s is finished at step %d", directory.path, done["steps"])
        return FitResult(done["steps"], done["seconds"], done["last_logs"], done["steps"])
    if rank == 0:
        directory.not_done()
    with Interruption() as interruption:
        run_ = _Run(
            objective,
            dataset,
            config,
            directory,
            hooks,
            device=device,
            rank=rank,
            world_size=world_size,
            micro_batch=micro_batch,
            interruption=interruption,
        )
        try:
            return run_.all()
        except RuntimeError as error:
            if death := death_of_worker(error):
                raise TrainingStopped(death) from None
            raise
        finally:
            run_.close()


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        objective: Objective,
        dataset: IterableDataset,
        config: TrainConfig,
        directory: RunDirectory,
        hooks: Sequence[Hook],
        *,
        device: torch.device,
        rank: int,
        world_size: int,
        micro_batch: int,
        interruption: Interruption,
    ) -> None:
        self.objective = objective
        self.config = config
        self.directory = directory
        self.hooks = hooks
        self.device = device
        self.rank = rank
        self.world_size = world_size
        self.interruption = interruption
        self.watch = StepWatch(device, world_size)
        self.window = Window()
        self.step = 0
        self.seconds = 0.0
        self.last_row: dict[str, Any] = {}
        self.resumed_from: int | None = None
        self._rng: dict[str, Any] | None = None
        self.log: RunLog | None = None
        self.progress: Progress | None = None
        dataset.rank, dataset.world_size = rank, world_size
        self.dataset = dataset
        self.loader = make_loader(
            dataset, micro_batch, objective.collate, config.num_workers, config.seed, device
        )
        self._build()

    # ---- start

    def _build(self) -> None:
        """Weights first (fresh and prepared, or a checkpoint's), then the engine around them."""
        objective, config = self.objective, self.config
        seed_everything(config.seed + self.rank)
        checkpoint = latest(self.directory.path)
        objective.to(self.device)
        objective.train()
        if checkpoint is not None:
            _weights.load_into(objective, checkpoint / _weights.MODEL_FILE, objective.not_saved)
        else:
            if type(objective).prepare is not Objective.prepare:
                self._prepare()
            broadcast_tensors([*objective.parameters(), *objective.buffers()])
        for part in objective.large_parts() if config.compile else ():
            part.compile(backend=config.compile)
        # Before make_engine, which under ZeRO-3 takes the parameters' names and shapes apart.
        self.engine: Engine = make_engine(objective, config, self.device)
        self.critic = (
            CriticTrainer(objective, config, self.device) if objective.critic is not None else None
        )
        self.average: WeightAverage | None = None
        if config.ema:
            if getattr(self.engine, "stage", 0) == 3:
                raise ValueError(
                    f"ema is {config.ema}, but ZeRO 3 keeps no weight whole; use ZeRO 0 to 2"
                )
            self.average = WeightAverage(objective, config.ema)
        if checkpoint is not None:
            self._load(checkpoint)
        self.stream: Iterator[dict] = batches_on(self.device, self.loader)
        if checkpoint is None:
            # Not earlier: building the model's engine and preparing may have drawn numbers.
            seed_everything(config.seed + self.rank)
        elif self._rng is None:
            seed_everything(_other_ranks.seed_after(config.seed, self.step, self.rank))
        else:
            load_rng_state(self._rng)
        self._rng = None

    def _prepare(self) -> None:
        logger.info("preparing the objective from data")
        loader = make_loader(
            copy.deepcopy(self.dataset),
            self.config.micro_batch(self.world_size),
            self.objective.collate,
            0,
            self.config.seed,
            self.device,
        )
        self.objective.prepare(batches_on(self.device, loader))

    def _load(self, checkpoint: Path) -> None:
        writers = read_manifest(checkpoint)["world_size"]
        if writers == self.world_size:
            state = load_rank(checkpoint, self.rank)
            self.loader.load_state_dict(state["data"])
            self._rng = state["rng"]
        else:
            state = _other_ranks.load_for_rank(checkpoint, writers, self.rank, self.dataset)
        self.engine.load(checkpoint)
        if self.critic is not None:
            self.critic.load(checkpoint)
        if self.average is not None:
            self.average.load(checkpoint)
        self.objective.load_extra_state(state["extra"])
        self.window.load_state_dict(state["window"])
        self.step = self.resumed_from = state["step"]
        self.seconds = state["seconds"]
        self.last_row = state["last_row"]
        if self.rank == 0:
            logger.info("going on from step %d of %s", self.step, self.directory.path)
            if writers != self.world_size:
                logger.info("with %d processes in the place of %d", self.world_size, writers)

    # ---- the loop

    def all(self) -> FitResult:
        config = self.config
        self.log = RunLog(
            self.directory.path,
            self.step,
            recipe=self.directory.recipe,
            active=self.rank == 0,
            wandb=config.wandb,
        )
        self.progress = Progress(
            config.steps,
            self.step,
            unit=self.objective.unit,
            title=self.directory.recipe,
            active=self.rank == 0,
        )
        self.mfu = Utilisation(self.objective, config, self.device) if config.mfu else None
        self._clock = time.perf_counter()
        if self.watch.interrupted_anywhere(self.interruption.asked):
            self._leave()
        while self.step < config.steps:
            stop = self._one_step()
            self.step += 1
            step = self.step
            last = step == config.steps
            if step % config.log_every == 0 or step == 1 or last:
                self._row()
            self.progress.step(step)
            self._call_hooks(last=last)
            if stop:
                self._leave()
            if last or (config.save_every and step % config.save_every == 0):
                self._save()
        return self._finish()

    def _one_step(self) -> bool:
        """One optimizer step; whether some process was asked to stop meanwhile."""
        config, engine, step = self.config, self.engine, self.step
        rates = [
            learning_rate(step, config, group["peak_lr"], group["min_lr"])
            for group in engine.groups
        ]
        engine.set_lr(rates)
        stop = False
        for micro in range(config.accumulation):
            try:
                batch = next(self.stream)
            except StopIteration:
                raise ValueError(
                    f"the dataset ended in step {step + 1} of {config.steps}; "
                    "make it endless (epochs=None)"
                ) from None
            with self.mfu.counting(batch, step) if self.mfu else nullcontext():
                loss, logs = engine.forward(batch, step)
                last = micro == config.accumulation - 1
                keys = batch.get("keys", ())
                if self.watch.look(loss, keys, step, last=last, stop=self.interruption.asked):
                    stop = True
                engine.backward(loss)
                logs = {"loss": loss, **logs}
                if self.critic is not None:
                    logs.update(self.critic.accumulate(batch, step))
            self.window.add(logs)
            self.window.units += self.objective.count(batch)
        engine.step()
        self.watch.look_at_gradient(engine.grad_norm, step)
        if self.critic is not None:
            self.critic.step(step)
        self.window.add({"grad_norm": engine.grad_norm})
        edited = self.objective.edited_parameters()
        if edited:
            with engine.editing(edited):
                after = self.objective.after_step(step)
        else:
            after = self.objective.after_step(step)
        if after:
            self.window.add(after)
        if self.average is not None:
            self.average.update(step)
        return stop

    def _tick(self) -> None:
        """Book the time since the last tick as training time."""
        now = time.perf_counter()
        self.window.seconds += now - self._clock
        self.seconds += now - self._clock
        self._clock = now

    def _row(self) -> None:
        device_seconds(self.device)
        self._tick()
        seconds = max(self.window.seconds, 1e-9)
        steps = self.step - self.last_row.get("step", 0)
        means, units = self.window.take()
        first = self.engine.groups[0]
        row = {"step": self.step, "loss": means.pop("loss"), **means}
        row["lr"] = first["lr"]
        for group in self.engine.groups[1:]:
            if group["lr"] != first["lr"]:
                row[f"lr_{group['name']}"] = group["lr"]
        row[f"{self.objective.unit}_per_s"] = units / seconds
        if self.mfu is not None:
            row["mfu"] = self.mfu.of(units / seconds)
        row["seconds"] = self.seconds
        self.last_row = row
        self.log.row(row)
        self.progress.row(row, seconds / max(1, steps))

    def _call_hooks(self, *, last: bool) -> None:
        called = False
        for hook in self.hooks:
            if not last and (hook.every < 1 or self.step % hook.every):
                continue
            if not called:
                called = True
                self._tick()
            state = HookState(
                self.step,
                self.objective,
                self.directory.path,
                dict(self.last_row),
                self.rank,
                self.device,
            )
            rng = rng_state()  # what a hook draws must not change the training
            numbers = hook(state)
            load_rng_state(rng)
            self.objective.train()
            if numbers:
                self.log.row({"step": self.step, **numbers})
        if called:
            self._clock = time.perf_counter()  # hooks are not training time

    # ---- the ends

    def _save(self) -> None:
        self.watch.settle(self.step)
        self._tick()
        self.log.sync()
        write_checkpoint(
            self.directory.path,
            self.step,
            self._write,
            rank=self.rank,
            world_size=self.world_size,
            keep=self.config.keep,
        )
        self._clock = time.perf_counter()

    def _write(self, folder: Path) -> None:
        self.engine.save(folder)
        if self.critic is not None and self.rank == 0:
            self.critic.save(folder)
        if self.average is not None and self.rank == 0:
            self.average.save(folder, self.config.shard_bytes)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "last_row": self.last_row,
            "window": self.window.state_dict(),
            "data": self.loader.state_dict(),
            "extra": self.objective.extra_state(),
            "rng": rng_state(),
        }
        save_state(state, rank_file(folder, self.rank))

    def _leave(self) -> None:
        """Save and end the process in good order."""
        self._save()
        self.progress.close()
        if self.rank == 0:
            logger.warning("interrupted at step %d; run the same command to go on", self.step)
        raise SystemExit(0)

    def _finish(self) -> FitResult:
        self.progress.close()
        directory = self.directory
        self.objective.eval()
        averaged = self.average.in_place() if self.average else nullcontext()
        with self.engine.gathered(), averaged:
            if self.rank == 0:
                aside = directory.new_final()
                with writing(directory.final, aside):
                    self.objective.export(aside)
                    directory.settle_final(aside)
                    facts = {"seconds": self.seconds, "last_logs": self.last_row}
                    directory.mark_done(steps=self.step, **facts)
        self.watch.wait_for_all()
        if self.rank == 0:
            logger.info("finished %d steps in %.0f s", self.step, self.seconds)
        return FitResult(self.step, self.seconds, self.last_row, self.resumed_from)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
        if self.log is not None:
            self.log.close()
        end_workers(self.loader)


__all__ = ["FitResult", "Hook", "HookState", "TrainingStopped", "fit"]
