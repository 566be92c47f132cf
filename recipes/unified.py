"""The one model on a real language model and real data: the paper's runs, and ours that join them.

The paper trains two models: one that understands (LLaVA-1.5's recipe, section 3.3) and one that
draws. `unified` trains one on both, in one run; `unified-staged` warms the new parts up first.
What the paper leaves open (steps of drawing, shares, adapters) is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from vqrae.data import CodeDataset, LlavaDataset, MixtureDataset, open_pairs
from vqrae.data._stream import StreamDataset
from vqrae.data.codes import MANIFEST
from vqrae.data.jsonl_pairs import JsonlPairs, kinds_in
from vqrae.generation import load_unified
from vqrae.mllm import UnifiedModel, UnifiedObjective, UnifiedObjectiveConfig, UnifiedProcessor
from vqrae.mllm.loading import load_language_model
from vqrae.recipes.scenes_vfm import recipe_settings
from vqrae.tokenizer import VQRAEModel
from vqrae.training import FitResult, TrainConfig, fit


def _train(steps: int, batch: int, deepspeed: str, **others) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=batch,
        betas=(0.9, 0.999),
        clip=1.0,
        precision="bf16",
        engine="deepspeed",
        deepspeed=deepspeed,
        num_workers=8,
        log_every=10,
        save_every=500,
        **others,
    )


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the samples of each kind for which data are given; they need not sum to 1."""

    draw: float = 0.5
    """Pictures drawn from their texts."""
    chat: float = 0.45
    """Conversations; pictures in questions are seen, those in answers drawn."""
    caption: float = 0.0
    """Texts of the pictures to draw, told from the pictures."""
    text: float = 0.05
    """Conversations without pictures."""


@dataclass(frozen=True, kw_only=True)
class Unified:
    """One training of a language model that sees and draws, on whatever data are given."""

    run: str
    """Run directory; model and processor are exported to RUN/final."""
    model: str | None = None
    """A unified model to go on from, in place of --llm and --tokenizer."""
    llm: str | None = None
    """Any causal language model: a hub name in the local cache, or a folder."""
    tokenizer: str | None = None
    """The VQRAE tokenizer: RUN/final of stage 2."""
    chat: str | None = None
    """Conversations: LLaVA's JSON, or JSONL; `<image>` in an answer is drawn."""
    image_root: str | None = None
    """Folder of the pictures that conversations name; by default the file's own."""
    draw: str | None = None
    """Pictures with texts: folder or pattern of .tar or .parquet files, hf:NAME, a folder that
    `vqrae encode` wrote, or JSONL of {"image", "text"}."""
    text: str | None = None
    """Conversations without pictures, to keep the language model's own abilities."""
    shares: Shares = Shares()
    """Of the kinds."""
    codes_like_codebook: bool = True
    """New rows of codes that are alike start alike; False: each independent. All have the mean and
    covariance of the text rows."""
    max_length: int = 2048
    """Longest sequence, in tokens; with --model its own holds. Paper: 2048 to understand, 1536 to
    draw."""
    guidance_scale: float = 3.0
    """At which the model draws where a user names no other. The paper states none."""
    shuffle: int = 10_000
    """Size of the shuffle buffer, in samples."""
    max_bad_share: float = 0.05
    """Share of samples that may be unreadable: they are skipped and named; above it training
    stops."""
    loss: UnifiedObjectiveConfig = UnifiedObjectiveConfig(lr=1e-4, projector_lr=1e-4)
    """What is trained, learning rates, loss weights."""
    train: TrainConfig = field(default_factory=lambda: _train(100_000, 512, "zero2", warmup=4000))
    """Steps, batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class LlavaPretrain(Unified):
    """LLaVA-1.5's first stage, as in the paper: the projector alone, on 595k captions."""

    loss: UnifiedObjectiveConfig = UnifiedObjectiveConfig(train_llm=False, projector_lr=1e-3)
    """What is trained, learning rates, loss weights."""
    train: TrainConfig = field(default_factory=lambda: _train(2325, 256, "zero2", warmup=70))
    """Steps (one epoch of 595k), batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class LlavaSFT(Unified):
    """LLaVA-1.5's second stage, as in the paper: projector and language model, on 665k talks."""

    loss: UnifiedObjectiveConfig = UnifiedObjectiveConfig(lr=2e-5, projector_lr=2e-5)
    """What is trained, learning rates, loss weights."""
    train: TrainConfig = field(default_factory=lambda: _train(5195, 128, "zero3", warmup=156))
    """Steps (one epoch of 665k), batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class Drawing(Unified):
    """The paper's generation: next-token loss on the visual tokens only."""

    max_length: int = 1536
    """Longest sequence, in tokens."""
    loss: UnifiedObjectiveConfig = UnifiedObjectiveConfig(
        lr=1e-4, min_lr=1e-4, train_projector=False, draw_wording=0.0
    )
    """What is trained, learning rates, loss weights."""
    train: TrainConfig = field(
        default_factory=lambda: _train(
            100_000, 512, "zero1", warmup=4000, schedule="constant", eps=1e-15
        )
    )
    """Steps (the paper names no number), batch and the rest of the loop."""


@dataclass(frozen=True, kw_only=True)
class Staged(Unified):
    """Projector, then rows of the codes, then all: each in a run directory under RUN."""

    projector_steps: int = 2000
    """Steps in which only the projector learns, from conversations and captions."""
    rows_steps: int = 2000
    """Steps in which only the rows of marks and codes learn, from drawing."""
    warmup_lr: float = 1e-3
    """Peak learning rate of both."""


@dataclass(frozen=True, kw_only=True)
class Adapters(Unified):
    """LoRA, or QLoRA with --loss.four-bit, on one GPU: both directions from your own JSONL."""

    data: str | None = None
    """JSONL of conversations and of {"image", "text"} records, in one file; stands for --chat and
    --draw."""
    loss: UnifiedObjectiveConfig = UnifiedObjectiveConfig(
        lr=2e-4, projector_lr=2e-5, lora_rank=16, train_code_rows=True
    )
    """What is trained, learning rates, loss weights."""
    train: TrainConfig = TrainConfig(
        steps=1000,
        batch_size=16,
        betas=(0.9, 0.999),
        warmup=30,
        precision="bf16",
        save_every=100,
    )
    """Steps, batch and the rest of the loop."""


def unified(config: Unified) -> FitResult:
    r"""Train the one model on what data are given, in one run.

    Command:

        torchrun --nproc-per-node 8 -m -- vqrae.scripts.train unified --run runs/unified \
            --llm Qwen/Qwen3-0.6B --tokenizer runs/s2/final --chat llava_v1_5_mix665k.json \
            --image-root pictures --draw 'pretrain/part-{0000..2047}.tar'

    Cost: not measured by us. Expected: the paper trains no such model; its two stand at POPE 88.2
    (SigLIP2-512, Vicuna-13B) and GenEval 0.76 (Qwen3-0.6B).

    Raises:
        ValueError: for a model or data that are not there, or neither --chat, --draw nor --text.
    """
    return _fit(config, "unified")


def staged(config: Staged) -> FitResult:
    """The same in three runs: RUN/1-projector, RUN/2-rows, RUN/3-all; each is resumed by itself.

    The projector learns what features mean to the language model before that may change, and new
    rows leave their random start before they move the rest. A stage without data is left out.

    Raises:
        ValueError: as `unified`.
    """
    warm = replace(config.loss, lr=config.warmup_lr, projector_lr=config.warmup_lr)
    stages = []
    if config.projector_steps and (config.chat or (config.draw and config.shares.caption)):
        shares = replace(config.shares, draw=0.0, text=0.0)
        loss = replace(warm, train_llm=False, lora_rank=0, four_bit=False)
        stages.append(("1-projector", config.projector_steps, shares, loss))
    if config.rows_steps and config.draw:
        shares = Shares(draw=1.0, chat=0.0, caption=0.0, text=0.0)
        loss = replace(warm, train_llm=False, train_projector=False, train_code_rows=True)
        loss = replace(loss, lora_rank=0, four_bit=False)
        stages.append(("2-rows", config.rows_steps, shares, loss))
    stages.append(("3-all", config.train.steps, config.shares, config.loss))

    model, result = config.model, None
    for name, steps, shares, loss in stages:
        run = Path(config.run) / name
        train = replace(config.train, steps=steps, warmup=min(config.train.warmup, steps // 10))
        step = replace(config, run=str(run), model=model, shares=shares, loss=loss, train=train)
        if model is not None:
            step = replace(step, llm=None, tokenizer=None)
        result = _fit(step, f"unified-{name[2:]}")
        model = str(run / "final")
    assert result is not None
    return result


def adapters(config: Adapters) -> FitResult:
    """Adapters for both directions, from one JSONL of your own.

    Command:

        vqrae train lora --run runs/mine --model runs/unified/final --data mine.jsonl

    Each line is `{"image": "a.png", "text": "a caption"}` to draw, or
    `{"image": "a.png", "conversations": [...]}` as LLaVA's. RUN/final is an
    ordinary model, adapters merged.
    Cost: not measured by us at full size. Expected: depends on the data.

    Raises:
        ValueError: as `unified`.
    """
    if config.data is not None:
        if config.chat or config.draw:
            raise ValueError("--data stands for --chat and --draw; give it or those")
        kinds = set(kinds_in(config.data))
        config = replace(
            config,
            chat=config.data if "conversations" in kinds else None,
            draw=config.data if "pairs" in kinds else None,
        )
    return _fit(config, "lora")


def _fit(config: Unified, recipe: str) -> FitResult:
    dataset = mixture(config)  # before the models, which take longer to load
    torch.manual_seed(config.train.seed)
    model, processor = load_parts(config)
    model.config.guidance_scale = config.guidance_scale
    objective = UnifiedObjective(model, processor, config.loss)
    return fit(
        objective,
        dataset,
        config.train,
        config.run,
        recipe=recipe,
        recipe_config=recipe_settings(config),
    )


def load_parts(config: Unified) -> tuple[UnifiedModel, UnifiedProcessor]:
    """The model to start from. ValueError unless it is named one way or the other."""
    if config.model is not None:
        if config.llm is not None or config.tokenizer is not None:
            raise ValueError("--model stands for --llm and --tokenizer; give it or those")
        return load_unified(config.model, device="cpu")
    if config.llm is None or config.tokenizer is None:
        raise ValueError("no model to start from: give --llm and --tokenizer, or --model")
    vqrae = VQRAEModel.from_pretrained(config.tokenizer)
    llm, text_tokenizer = load_language_model(config.llm)
    return UnifiedModel.from_parts(
        llm,
        text_tokenizer,
        vqrae,
        codes_like_codebook=config.codes_like_codebook,
        max_length=config.max_length,
        rows_multiple=64,
        seed=config.train.seed,
    )


def mixture(config: Unified) -> MixtureDataset:
    """The kinds of data that are given and have a share. ValueError where none is."""
    shares = config.shares
    options = {
        "seed": config.train.seed,
        "shuffle": config.shuffle,
        "max_bad_share": config.max_bad_share,
    }
    parts: dict[str, tuple[StreamDataset, float]] = {}
    if config.draw and shares.draw > 0:
        parts["t2i"] = (_pictures(config, **options), shares.draw)
    if config.draw and shares.caption > 0:
        if (Path(config.draw) / MANIFEST).is_file():
            raise ValueError(f"'{config.draw}' holds codes: nothing to tell; give shares.caption 0")
        options_too = options | {"seed": config.train.seed + 1}
        parts["caption"] = (_pictures(config, **options_too), shares.caption)
    if config.chat and shares.chat > 0:
        talks = LlavaDataset(config.chat, image_root=config.image_root, **options)
        parts["vqa"] = (talks, shares.chat)
    if config.text and shares.text > 0:
        parts["text"] = (LlavaDataset(config.text, **options), shares.text)
    if not parts:
        raise ValueError("nothing to train on: give --chat, --draw or --text, with a share above 0")
    return MixtureDataset(parts, config.train.seed)


def _pictures(config: Unified, **options) -> StreamDataset:
    draw = str(config.draw)
    if draw.endswith((".json", ".jsonl")):
        return JsonlPairs(draw, image_root=config.image_root, **options)
    if (Path(draw) / MANIFEST).is_file():
        return CodeDataset(draw, **options)
    return open_pairs(draw, **options)
