"""Run by the tests of several processes, in one process or in two: fits the toy, with a restart.

python _training_ranks.py OUT NAME...      (NAME: torch, zero0 ... zero3_offload, mixed)
python _training_ranks.py OUT NAME/STEP... (NAME: of MOVED, up to that step)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from _training_toy import ToyDataset, ToyObjective, ToyStream
from vqrae.training import TrainConfig, fit

MIXED = {2: "zero1", 3: "zero3", 5: "zero2", 6: "zero0"}
# By two processes, by one, and by two again: the engine of each part, and the largest file's size.
MOVED = {
    "plain": ({2: "zero0", 4: "torch", 6: "zero0"}, 10**9),
    "zero2": ({2: "zero2", 4: "zero2", 6: "zero2"}, 10**9),
    "zero3": ({2: "zero3", 4: "zero3", 6: "zero3"}, 600),
}


class Noting(ToyObjective):
    """Notes which samples each step has used."""

    notes: Path

    def forward(self, batch, step):
        with open(self.notes, "a") as file:
            file.writelines(f"{step} {key}\n" for key in batch["keys"])
        return super().forward(batch, step)


def settings(steps: int, engine: str, **changes) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=8,
        schedule="constant",
        log_every=1,
        save_every=0,
        clip=0.5,
        engine="torch" if engine == "torch" else "deepspeed",
        deepspeed=None if engine == "torch" else engine,
        device="cpu",
        **changes,
    )


def moved(out: Path, name: str, step: int) -> None:
    parts, size = MOVED[name]
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    objective = Noting(edit=True)
    objective.notes = out / f"{name}-{os.environ.get('RANK', '0')}-of-{world_size}.txt"
    # The same micro-batches of two samples.
    config = settings(step, parts[step], accumulation=4 // world_size, shard_bytes=size)
    fit(objective, ToyStream(seed=3), config, out / name, recipe="toy")


def main() -> None:
    out, *names = sys.argv[1:]
    torch.set_num_threads(1)
    for name in names:
        if "/" in name:
            name, step = name.split("/")
            moved(Path(out), name, int(step))
            continue
        # Plain torch is the reference, so it is not interrupted.
        parts = {6: name} if name == "torch" else MIXED if name == "mixed" else {3: name, 6: name}
        for steps, engine in parts.items():
            config = settings(steps, engine, accumulation=2)
            fit(ToyObjective(edit=True), ToyDataset(), config, Path(out) / name, recipe="toy")


if __name__ == "__main__":
    main()
