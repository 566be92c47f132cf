"""The whole chain at a size that two CPU cores finish in ten minutes."""

from __future__ import annotations

import json
import logging
import time
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


STEPS = {"vfm": 400, "stage1": 480, "stage2": 320, "unified": 750}
"""Steps at scale 1."""


def demo(config: Demo) -> dict:
    """Data, vision encoder, tokenizer stages 1 and 2, the one model, evaluation.

    Command: vqrae demo
    Cost: 10 minutes on 2 quiet CPU cores, 200 MB of disk.
    Expected: every criterion of the table met.

    Returns the evaluation's results.
    """
    # Each recipe imports its models: the first step should not wait for the last one's imports.
    from vqrae.data import write_scenes
    from vqrae.eval.run import evaluate
    from vqrae.recipes.scenes_tokenizer import (
        ScenesTokenizer1,
        ScenesTokenizer2,
        scenes_tokenizer_1,
        scenes_tokenizer_2,
    )
    from vqrae.recipes.scenes_unified import ScenesUnified, scenes_unified
    from vqrae.recipes.scenes_vfm import ScenesVFM, scenes_vfm

    if config.scale <= 0:
        raise ValueError(f"scale must be above 0, not {config.scale}")
    out = Path(config.out)
    began = time.perf_counter()

    def sized(train: TrainConfig, name: str) -> TrainConfig:
        steps = max(2, round(STEPS[name] * config.scale))
        warmup = min(train.warmup, steps // 5)
        return replace(train, steps=steps, warmup=warmup, seed=config.seed, device=config.device)

    def paths(name: str) -> dict[str, str]:
        return {"run": str(out / name), "data": str(out / "data")}

    def stage(number: int, title: str) -> None:
        elapsed = time.perf_counter() - began
        logger.info("[%d/6] %s (%d:%02d)", number, title, *divmod(int(elapsed), 60))

    small = min(1.0, config.scale)
    stage(1, "writing the scenes world")
    write_scenes(
        out / "data", train=max(600, round(8000 * small)), test=max(100, round(2000 * small)),
        seed=config.seed,
    )  # fmt: skip

    stage(2, "vision encoder: SigLIP pretraining on captions")
    vfm = ScenesVFM(**paths("vfm"))
    scenes_vfm(replace(vfm, train=sized(vfm.train, "vfm")))
    encoder = str(out / "vfm" / "final")

    stage(3, "tokenizer, stage 1: the encoder frozen")
    first = ScenesTokenizer1(**paths("stage1"), vfm=encoder)
    scenes_tokenizer_1(replace(first, train=sized(first.train, "stage1")))

    stage(4, "tokenizer, stage 2: the encoder trained, with distillation")
    second = ScenesTokenizer2(
        **paths("stage2"), stage1=str(out / "stage1" / "final"), perceptual_vfm=encoder
    )
    training = sized(second.train, "stage2")
    if second.loss.adversarial_start is not None:
        # The last quarter: the critic costs time, and needs a decoder that is worth criticising.
        loss = replace(second.loss, adversarial_start=training.steps * 3 // 4)
        second = replace(second, loss=loss)
    scenes_tokenizer_2(replace(second, train=training))

    stage(5, "the one model: captions, questions, drawing, text")
    unified = ScenesUnified(**paths("unified"), tokenizer=str(out / "stage2" / "final"))
    scenes_unified(replace(unified, train=sized(unified.train, "unified")))

    stage(6, "measuring on the held-out split")
    runs = {name: out / name for name in STEPS}
    results = evaluate(
        out / "unified" / "final",
        out / "data",
        out / "report",
        stage1_tokenizer=out / "stage1" / "final",
        teacher=encoder,
        runs=runs,
        questions=1000 if config.scale >= 0.5 else 60,
        prompts_per_category=25 if config.scale >= 0.5 else 3,
        images_per_prompt=4 if config.scale >= 0.5 else 1,
        zero_shot_images=1024 if config.scale >= 0.5 else 64,
        seed=config.seed,
        device=config.device,
    )
    _record_time(out, time.perf_counter() - began)
    return results


def _record_time(out: Path, seconds: float) -> None:
    """Seconds of each sitting, so that a resumed demo can still say what it took in all."""
    path = out / "sittings.json"
    sittings = json.loads(path.read_text()) if path.is_file() else []
    path.write_text(json.dumps([*sittings, round(seconds, 1)]))
