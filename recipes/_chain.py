"""The four recipes in a row, each reading what the one before it left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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
from vqrae.training import TrainConfig

logger = logging.getLogger(__name__)

STAGES = ("vfm", "stage1", "stage2", "unified")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Folders of one chain and its recipes, made for each other."""

    out: Path
    vfm: ScenesVFM
    stage1: ScenesTokenizer1
    stage2: ScenesTokenizer2
    unified: ScenesUnified

    @property
    def data(self) -> Path:
        return self.out / "data"

    def final(self, stage: str) -> Path:
        """What a stage leaves."""
        return self.out / stage / "final"

    @property
    def runs(self) -> dict[str, Path]:
        return {name: self.out / name for name in STAGES}


def make_chain(out: str | Path) -> Chain:
    """The recipes with their defaults, pointed at each other's results in `out`."""
    out = Path(out)

    def common(name: str) -> dict[str, str]:
        return {"run": str(out / name), "data": str(out / "data")}

    def final(name: str) -> str:
        return str(out / name / "final")

    return Chain(
        out=out,
        vfm=ScenesVFM(**common("vfm")),
        stage1=ScenesTokenizer1(**common("stage1"), vfm=final("vfm")),
        stage2=ScenesTokenizer2(
            **common("stage2"), stage1=final("stage1"), perceptual_vfm=final("vfm")
        ),
        unified=ScenesUnified(**common("unified"), tokenizer=final("stage2")),
    )


def resize(chain: Chain, change: Callable[[str, TrainConfig], TrainConfig]) -> Chain:
    """The chain with every stage's `train` as `change(name, train)` makes it.

    The critic keeps its share of stage 2: its last quarter. It costs time, and needs a decoder that
    is worth criticising.
    """
    stages = {name: getattr(chain, name) for name in STAGES}
    stages = {name: replace(s, train=change(name, s.train)) for name, s in stages.items()}
    second = stages["stage2"]
    if second.loss.adversarial_start is not None:
        start = second.train.steps * 3 // 4
        stages["stage2"] = replace(second, loss=replace(second.loss, adversarial_start=start))
    return replace(chain, **stages)


def write_data(chain: Chain, *, train: int, test: int, scale: float, seed: int) -> None:
    """The chain's scenes: `scale` of `train` and `test` pictures, but enough to run on, and never
    more than all."""
    share = min(1.0, scale)
    write_scenes(
        chain.data,
        train=max(600, round(train * share)),
        test=max(100, round(test * share)),
        seed=seed,
    )


def measure(chain: Chain, *, seed: int, device: str, **counts: int) -> dict:
    """Evaluate what the chain trained, with its stages beside each other; report in OUT/report.

    Args:
        counts: numbers of questions, prompts and pictures, as in vqrae.eval.evaluate.
    """
    return evaluate(
        chain.final("unified"),
        chain.data,
        chain.out / "report",
        stage1_tokenizer=chain.final("stage1"),
        teacher=chain.final("vfm"),
        runs=chain.runs,
        seed=seed,
        device=device,
        **counts,
    )


def train_chain(chain: Chain, stage: Callable[[str], None]) -> None:
    """Run the four recipes; what is finished already is not done again.

    Args:
        stage: told the title of each as it begins.
    """
    stage("vision encoder: SigLIP pretraining on captions")
    scenes_vfm(chain.vfm)
    stage("tokenizer, stage 1: the encoder frozen")
    scenes_tokenizer_1(chain.stage1)
    stage("tokenizer, stage 2: the encoder trained, with distillation")
    scenes_tokenizer_2(chain.stage2)
    stage("the one model: captions, questions, drawing, text")
    scenes_unified(chain.unified)


class StageClock:
    """Logs "[2/6] title (1:15)" with the time since it was made."""

    def __init__(self, total: int) -> None:
        self.number, self.total, self.began = 0, total, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def __call__(self, title: str) -> None:
        self.number += 1
        minutes, seconds = divmod(int(self.seconds), 60)
        logger.info("[%d/%d] %s (%d:%02d)", self.number, self.total, title, minutes, seconds)
