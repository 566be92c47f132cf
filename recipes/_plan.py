"""The objective of a recipe without its weights and data, to see what it would hold in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, InternVLVisionConfig, PreTrainedConfig, SiglipVisionConfig
from vqrae.recipes.scenes_tokenizer import ScenesTokenizer1, ScenesTokenizer2, with_vfm
from vqrae.recipes.tokenizer import TokenizerStage1, TokenizerStage2
from vqrae.tokenizer import TokenizerObjective, VQRAEConfig, VQRAEModel
from vqrae.tokenizer.encoders import load_vfm_config
from vqrae.tokenizer.perceptual import build_perceptual
from vqrae.training import TrainConfig
from vqrae.training.memory import StepMemory, step_memory


@dataclass(frozen=True)
class Planned:
    """What `vqrae.training.memory.step_memory` needs of a recipe."""

    build: Callable[[], TokenizerObjective]
    make_batch: Callable[[int], dict[str, Tensor]]
    train: TrainConfig
    step: int
    """The step that holds most: with the critic, where there is one."""


def so400m(size: int, layers: int = 27) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=layers,
        num_attention_heads=16,
        image_size=size,
        patch_size=16,
        vision_use_head=False,
    )


def _internvit_300m() -> InternVLVisionConfig:
    return InternVLVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=[448, 448],
        patch_size=[14, 14],
    )


# The paper's three, whose shapes are known without their files.
_KNOWN: dict[str, Callable[[], PreTrainedConfig]] = {
    "siglip2-256": lambda: so400m(256),
    "siglip2-512": lambda: so400m(512),
    "internvit-448": _internvit_300m,
}


def plan_recipe(name: str, config: Any) -> Planned:
    """The objective that recipe `name` would train with `config`.

    Raises:
        ValueError: for a recipe that is not of the tokenizer, or an encoder of unknown shape.
    """
    if isinstance(config, ScenesTokenizer1 | TokenizerStage1):
        tokenizer = _fresh(name, config)
    elif isinstance(config, ScenesTokenizer2 | TokenizerStage2):
        tokenizer = _trained(name, config.stage1)
    else:
        raise ValueError(f"recipe {name!r} can't be planned; only those of the tokenizer can")
    vfm = getattr(config, "perceptual_vfm", None) or getattr(config, "vfm", None)
    size, loss = tokenizer.image_size, with_vfm(config.loss, vfm)

    def build() -> TokenizerObjective:
        perceptual = build_perceptual(
            loss.perceptual, loss.perceptual_path, loss.perceptual_layers, load=False
        )
        model = VQRAEModel(tokenizer)
        return TokenizerObjective(model, loss, config.train.steps, perceptual=perceptual)

    return Planned(
        build,
        lambda count: {"pixels": torch.rand(count, 3, size, size)},
        config.train,
        loss.adversarial_start or 0,
    )


def _fresh(name: str, config: ScenesTokenizer1 | TokenizerStage1) -> VQRAEConfig:
    known = _KNOWN.get(name.removesuffix("-1"))
    try:
        encoder = load_vfm_config(config.vfm)
    except ValueError:
        if known is None or Path(config.vfm).exists():
            raise
        encoder = known()
    fields = {"codebook_size": config.codebook_size, "code_dim": config.code_dim}
    for field in ("image_size", "encoder_layer", "final_norm"):
        value = getattr(config, field, None)
        if value is not None:
            fields[field] = value
    return VQRAEConfig(encoder_config=encoder, **fields)


def _trained(name: str, stage1: str) -> VQRAEConfig:
    if (Path(stage1) / "config.json").is_file():
        found = AutoConfig.from_pretrained(stage1)
        if not isinstance(found, VQRAEConfig):
            raise ValueError(f"'{stage1}' holds a {found.model_type} model, not a tokenizer")
        return found
    known = _KNOWN.get(name.removesuffix("-2"))
    if known is None:
        raise ValueError(f"there is no tokenizer in '{stage1}'; name the folder of stage 1's")
    return VQRAEConfig(encoder_config=known())


def fitting_sizes(
    planned: Planned, share: int, gpus: int, room: float, stages: Sequence[int]
) -> dict[int, StepMemory]:
    """What steps with micro-batches that divide `share` hold, looked at by bisection until the
    largest that fits into `room` bytes, in one of the ZeRO stages, is among them."""
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    found: dict[int, StepMemory] = {}
    low, high = -1, len(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        size = sizes[middle]
        found[size] = step_memory(
            planned.build, planned.make_batch, planned.train, size, step=planned.step, gpus=gpus
        )
        fits = min(found[size].peaks[stage] for stage in stages) <= room
        low, high = (middle, high) if fits else (low, middle)
    return found
