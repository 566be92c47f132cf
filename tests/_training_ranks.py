"""Run by test_training_deepspeed.py in one process or several: fits the toy, with a restart.

python _training_ranks.py OUT NAME...      (NAME: torch, zero0 ... zero3_offload, mixed)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from _training_toy import ToyDataset, ToyObjective
from vqrae.training import TrainConfig, fit

MIXED = {2: "zero1", 3: "zero3", 5: "zero2", 6: "zero0"}


def main() -> None:
    out, *names = sys.argv[1:]
    torch.set_num_threads(1)
    for name in names:
        # Plain torch is the reference, so it is not interrupted.
        parts = {6: name} if name == "torch" else MIXED if name == "mixed" else {3: name, 6: name}
        for steps, settings in parts.items():
            config = TrainConfig(
                steps=steps,
                batch_size=8,
                accumulation=2,
                schedule="constant",
                log_every=1,
                save_every=0,
                clip=0.5,
                engine="torch" if name == "torch" else "deepspeed",
                deepspeed=None if name == "torch" else settings,
                device="cpu",
            )
            fit(ToyObjective(edit=True), ToyDataset(), config, Path(out) / name, recipe="toy")


if __name__ == "__main__":
    main()
