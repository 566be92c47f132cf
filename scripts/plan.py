"""`vqrae plan RECIPE --gpus 8 --memory 80`: which ZeRO stage and micro-batch fit."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro
from vqrae.recipes import load_recipe

if TYPE_CHECKING:
    from vqrae.training.memory import StepMemory

_GIB = 2**30
# What driver, workspaces and the allocator's leftovers may take.
_USABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the recipe would run on. The recipe's own options may follow."""

    gpus: int = 8
    """Processes, each with a device of its own."""
    memory: float = 80.0
    """Of each device, in GiB."""


def main(argv: list[str], prog: str = "vqrae plan") -> None:
    if not argv or argv[0] in ("-h", "--help"):
        usage = f"usage: {prog} RECIPE [--gpus N] [--memory GIB] [options of the recipe]\n"
        sys.stdout.write(
            usage + "Recipes of the tokenizer: see `vqrae train`. Nothing is loaded.\n"
        )
        return
    name, *rest = argv
    config_class, _ = load_recipe(name)
    # A plan writes and reads nothing: these are needed only to run.
    for needed in ("run", "data", "stage1"):
        given = any(word.partition("=")[0] == f"--{needed}" for word in rest)
        if needed in config_class.__dataclass_fields__ and not given:
            rest += [f"--{needed}", f"<{needed}>"]

    machine, rest = tyro.cli(Machine, args=rest, prog=f"{prog} {name}", return_unknown_args=True)
    config = tyro.cli(config_class, args=rest, prog=f"{prog} {name}")
    if machine.gpus < 1 or not machine.memory > 0:
        raise ValueError(f"{machine.gpus} GPUs of {machine.memory} GiB; give at least one of some")
    sys.stdout.write(_plan(name, config, machine))


def _plan(name: str, config: object, machine: Machine) -> str:
    from vqrae.recipes._plan import fitting_sizes, plan_recipe
    from vqrae.training.memory import STAGES

    planned = plan_recipe(name, config)
    train = planned.train
    if train.batch_size % machine.gpus:
        raise ValueError(
            f"batch_size is {train.batch_size}, which {machine.gpus} GPUs do not divide; give "
            "another --gpus or --train.batch-size"
        )
    share = train.batch_size // machine.gpus
    room = machine.memory * _GIB * _USABLE
    stages = (0,) if train.optimizer == "muon" else STAGES[:3] if train.ema else STAGES
    found = fitting_sizes(planned, share, machine.gpus, room, stages)
    return _report(name, machine, train.batch_size, share, stages, found, room)


def _report(
    name: str,
    machine: Machine,
    batch_size: int,
    share: int,
    stages: tuple[int, ...],
    found: dict[int, StepMemory],
    room: float,
) -> str:
    trained, frozen = (
        getattr(next(iter(found.values())), kind) / _GIB for kind in ("trained", "frozen")
    )
    text = (
        f"{name}: {trained:.2f} GiB of trained and {frozen:.2f} GiB of frozen weights in fp32; "
        f"{share} of {batch_size} samples on each of {machine.gpus} GPUs\n"
        f"GiB at the peak of a step, by samples in a micro-batch (room: {room / _GIB:.1f} of "
        f"{machine.memory:g}):\n"
    )
    text += f"{'':>8}" + "".join(f"{f'ZeRO {stage}':>9}" for stage in stages) + "\n"
    for size in sorted(found):
        cells = (found[size].peaks[stage] for stage in stages)
        text += f"{size:>8}" + "".join(
            f"{cell / _GIB:>8.2f}" + (" " if cell <= room else "-") for cell in cells
        )
        text += "\n"
    fitting = [(size, -s) for size, m in found.items() for s in stages if m.peaks[s] <= room]
    if not fitting:
        return text + "Nothing fits, not even one sample at a time.\n"
    size, stage = max(fitting)
    accumulation = share // size
    options = f"--train.accumulation {accumulation}"
    if machine.gpus > 1 or stage:
        options = f"--train.engine deepspeed --train.deepspeed zero{-stage} {options}"
    return text + (
        f"Fits: ZeRO {-stage}, micro-batches of {size}, accumulation {accumulation}: {options}\n"
    )
