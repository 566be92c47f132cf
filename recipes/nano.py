"""The model that ships with the package: the demo's chain, larger and trained for longer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vqrae.training import TrainConfig

if TYPE_CHECKING:
    from vqrae.recipes._chain import Chain


@dataclass(frozen=True, kw_only=True)
class Nano:
    """Train the shipped model from scratch on the scenes world, measure it, and pack it."""

    out: str = "runs/nano"
    """Folder of data, runs, report and the packed model."""
    scale: float = 1.0
    """Multiplies steps and data; 0.01 is a smoke test."""
    seed: int = 0
    """Seed of everything."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    pack: str | None = None
    """Folder for the packed model, whatever stands there; by default OUT/packed."""


STEPS = {"vfm": 2400, "stage1": 2000, "stage2": 2000, "unified": 16_500}
"""Steps at scale 1."""
TRAIN_PICTURES, TEST_PICTURES = 80_000, 5_000


def nano(config: Nano) -> dict:
    """Data, vision encoder, tokenizer stages 1 and 2, the one model, evaluation, packing.

    Command: vqrae nano
    Cost: about 2 hours on 2 CPU cores, 1 GB of disk.
    Expected: see assets/nano/README.md, which is this run's model card.

    Interrupted, the same command goes on where it was. Returns the evaluation's results.
    """
    from vqrae.recipes._chain import StageClock, measure, train_chain, write_data
    from vqrae.recipes._pack import pack

    chain, clock = nano_chain(config), StageClock(6)
    clock("writing the scenes world")
    write_data(
        chain, train=TRAIN_PICTURES, test=TEST_PICTURES, scale=config.scale, seed=config.seed
    )
    train_chain(chain, clock)
    clock("measuring on the held-out split")
    results = measure(chain, seed=config.seed, device=config.device)
    place = Path(config.pack) if config.pack else chain.out / "packed"
    return results | {"packed": str(pack(chain, results, place, "make nano"))}


def nano_chain(config: Nano) -> Chain:
    """The recipes of all stages, sized; ValueError for a scale of 0 or less."""
    from vqrae.recipes._chain import make_chain, resize
    from vqrae.recipes.scenes_unified import MixtureConfig

    if config.scale <= 0:
        raise ValueError(f"scale must be above 0, not {config.scale}")

    def sized(name: str, train: TrainConfig) -> TrainConfig:
        steps = max(2, round(STEPS[name] * config.scale))
        return replace(
            train,
            steps=steps,
            warmup=min(train.warmup, steps // 5),
            log_every=25,
            seed=config.seed,
            device=config.device,
        )

    chain = make_chain(config.out)
    stage1 = replace(chain.stage1, codebook_size=1024)
    unified = replace(
        chain.unified,
        width=128,
        depth=6,
        heads=4,
        mlp_width=384,
        # Overall as good as 2, but groups of equal objects come out right more often.
        guidance_scale=3.0,
        min_p=0.1,
        mixture=MixtureConfig(t2i=0.5, vqa=0.37, caption=0.08, text=0.01, interleaved=0.04),
    )
    return resize(replace(chain, stage1=stage1, unified=unified), sized)
