"""How many pictures the loader feeds in a second, and how many the nano tokenizer trains on.

Run: python benchmarks/loader.py [--data runs/scenes]

The loader (shards, decoding, shuffling, augmentation, batches; one process) and stage 1 of the
tokenizer (frozen encoder, perceptual loss, Muon; as many threads as torch takes) take turns, each
without the other. Then a profile of the loader: own time by library.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from vqrae.assets import nano_folder
from vqrae.data import ShardDataset
from vqrae.data.write_scenes import write_scenes
from vqrae.recipes.scenes_tokenizer import ScenesTokenizer1
from vqrae.tokenizer import TokenizerObjective, VQRAEModel
from vqrae.training._data import make_loader
from vqrae.training.engine import TorchEngine

_OURS = Path(__file__).resolve().parent.parent
_RUNS, _BATCHES, _STEPS = 3, 40, 12


def library(path: str) -> str:
    """What a profile's file belongs to."""
    parts = Path(path).parts
    if path == "~":
        return "compiled code, of all"
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return "vqrae" if Path(path).is_relative_to(_OURS) else "Python's library"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder written by `vqrae data scenes`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = given.data
        if data is None:
            data = folder
            write_scenes(Path(folder), train=4000, test=100)
        measure(data)


def measure(data: str) -> None:
    vfm = str(nano_folder("vfm"))
    recipe = ScenesTokenizer1(run="", data=data, vfm=vfm)
    loss = replace(recipe.loss, perceptual_path=vfm)
    torch.manual_seed(0)
    model = VQRAEModel.from_vfm(vfm, codebook_size=1024, code_dim=recipe.code_dim)
    objective = TokenizerObjective(model, loss, recipe.train.steps)
    device, size = torch.device("cpu"), recipe.train.batch_size
    dataset = ShardDataset(f"{data}/train", shuffle=2000)
    batches = iter(make_loader(dataset, size, objective.collate, 0, 0, device))
    held = list(islice(batches, _STEPS))
    objective.prepare(iter(held * 8))
    engine = TorchEngine(objective, recipe.train, device)

    def train() -> None:
        for step, batch in enumerate(held):
            value, _ = engine.forward(batch, step)
            engine.backward(value)
            engine.step()

    def load() -> None:
        for _ in islice(batches, _BATCHES):
            pass

    train()
    best = {train: 0.0, load: 0.0}
    for _ in range(_RUNS):
        for call, count in ((train, _STEPS), (load, _BATCHES)):
            start = time.perf_counter()
            call()
            best[call] = max(best[call], count * size / (time.perf_counter() - start))
    print(f"batches of {size}, best of {_RUNS}, {torch.get_num_threads()} threads of torch")
    print(f"training: {best[train]:6.0f} pictures a second")
    print(f"loader:   {best[load]:6.0f} pictures a second, {best[load] / best[train]:.1f} times")
    profile(load)


def profile(load: Callable[[], None]) -> None:
    watch = cProfile.Profile()
    watch.runcall(load)
    rows = pstats.Stats(watch).stats
    by_library: Counter[str] = Counter()
    single: Counter[str] = Counter()
    for (path, _, name), (_, _, own, _, _) in rows.items():
        by_library[library(path)] += own
        single[f"{name} ({library(path)})"] += own
    whole = by_library.total()
    for title, found in (("by library", by_library), ("by function", single)):
        print(f"\nThe loader's own time {title}:")
        for name, own in found.most_common(8):
            print(f"{own / whole:6.1%}  {name}")


if __name__ == "__main__":
    main()
