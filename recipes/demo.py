"""The whole chain at a size that two CPU cores finish in ten minutes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from vqrae.training import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train everything from scratch on the scenes world, then measure it. Resumes by itself."""

    out: str = "runs/demo"
    """Folder of data, runs and report."""
    scale: float = 1.0
    """Multiplies the training steps and data: 0.02 is a smoke test, 4 trains four times longer."""
    seed: int = 0
    """Seed of everything."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""


STEPS = {"vfm": 600, "stage1": 480, "stage2": 320, "unified": 1500}
"""Steps at scale 1."""
_SHIPPED_ROWS = ("PSNR", "VQA accuracy", "GenEval single object", "GenEval overall")


def demo(config: Demo) -> dict:
    """Data, the shipped model's report; then vision encoder, tokenizer, the one model, evaluation.

    Command: vqrae demo
    Cost: 10 minutes on 2 quiet CPU cores, 200 MB of disk.
    Expected: every criterion of the table met.

    Returns the evaluation's results.
    """
    # Imported here: `vqrae demo --help` should not wait for the models.
    from vqrae.recipes._chain import (
        StageClock,
        make_chain,
        measure,
        resize,
        train_chain,
        write_data,
    )

    if config.scale <= 0:
        raise ValueError(f"scale must be above 0, not {config.scale}")

    def sized(name: str, train: TrainConfig) -> TrainConfig:
        steps = max(2, round(STEPS[name] * config.scale))
        warmup = min(train.warmup, steps // 5)
        return replace(train, steps=steps, warmup=warmup, seed=config.seed, device=config.device)

    chain, clock = resize(make_chain(config.out), sized), StageClock(7)
    clock("writing the scenes world")
    write_data(chain, train=16_000, test=2000, scale=config.scale, seed=config.seed)
    whole = config.scale >= 0.5
    clock("the model that ships: draws, answers, reconstructs")
    _show_shipped(chain.data, chain.out / "shipped", config, whole)
    train_chain(chain, clock)
    clock("measuring what was trained, on the held-out split")
    results = measure(
        chain,
        seed=config.seed,
        device=config.device,
        questions=1000 if whole else 60,
        prompts_per_category=25 if whole else 3,
        images_per_prompt=4 if whole else 1,
        zero_shot_images=1024 if whole else 64,
    )
    _record_time(chain.out, clock.seconds)
    return results


def _show_shipped(data: Path, out: Path, config: Demo, whole: bool) -> None:
    """A quick report of the shipped model, so that there is something to look at meanwhile."""
    from vqrae.assets import nano_folder
    from vqrae.eval import build_table, evaluate

    if (out / "report.html").is_file():
        return
    results = evaluate(
        nano_folder(),
        data,
        out,
        images=500 if whole else 20,
        questions=300 if whole else 10,
        prompts_per_category=8 if whole else 1,
        images_per_prompt=2 if whole else 1,
        seed=config.seed,
        device=config.device,
    )
    for row in build_table(results):
        if row.metric in _SHIPPED_ROWS:
            logger.info("    %s: %s", row.metric, row.value_text)
    logger.info("    look at %s while the rest trains", results["report"])


def _record_time(out: Path, seconds: float) -> None:
    """Seconds of each sitting, so that a resumed demo can still say what it took in all."""
    path = out / "sittings.json"
    sittings = json.loads(path.read_text()) if path.is_file() else []
    path.write_text(json.dumps([*sittings, round(seconds, 1)]))
