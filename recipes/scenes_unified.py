"""The one model of the scenes world: a small Qwen3 that reads features and writes codes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from vqrae.data import (
    LlavaDataset,
    MixtureDataset,
    ShardDataset,
    scene_corpus,
    train_text_tokenizer,
)
from vqrae.data._writing import whole_folder
from vqrae.generation import load_unified
from vqrae.mllm import UnifiedModel, UnifiedObjective, UnifiedObjectiveConfig
from vqrae.mllm.code_bias import fit_code_bias
from vqrae.recipes.scenes_vfm import recipe_settings
from vqrae.tokenizer import VQRAEModel
from vqrae.tokenizer._loading import quiet_transformers
from vqrae.training import FitResult, TrainConfig, fit


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Shares of the training samples; a share of 0 leaves a task out."""

    t2i: float = 0.6
    """Text to image."""
    vqa: float = 0.28
    """Questions and answers."""
    caption: float = 0.05
    """Captions of pictures."""
    text: float = 0.03
    """Text alone."""
    interleaved: float = 0.04
    """Draw, look at the drawing, talk about it."""


@dataclass(frozen=True, kw_only=True)
class ScenesUnified:
    """One training over captions, questions, drawing and text."""

    run: str
    """Run directory; model and processor are exported to RUN/final."""
    data: str
    """Folder written by `vqrae data scenes`."""
    tokenizer: str
    """The VQRAE tokenizer: RUN/final of stage 2."""
    width: int = 128
    """Width of the language model."""
    depth: int = 4
    """Its layers."""
    heads: int = 4
    """Its attention heads."""
    mlp_width: int = 384
    """Width of its gated MLPs."""
    vocab_size: int = 768
    """Size of the text tokenizer, trained on the captions and questions."""
    max_length: int = 512
    """Longest sequence, in tokens."""
    feature_positions: bool = True
    """Add a learnt vector for each place to the features: the small encoder's own hardly say where
    they stand (a linear probe reads the place from 33% of them)."""
    code_positions: bool = True
    """Add a learnt vector for each place to the codes, too."""
    code_mixture: int = 4
    """Softmaxes that the head over codes mixes: as many as a scene has objects at most."""
    guidance_scale: float = 1.5
    """At which the model draws where a user names no other."""
    min_p: float = 0.0
    """Likewise; see vqrae.generation.sample_codes. Only for trainings longer than a few minutes."""
    mixture: MixtureConfig = MixtureConfig()
    """Shares of the tasks."""
    loss: UnifiedObjectiveConfig = UnifiedObjectiveConfig(
        lr=6e-3,
        min_lr=1e-4,
        projector_lr=6e-3,
        projector_min_lr=1e-4,
        weight_t2i=1.5,
        code_rows="shared",
    )
    """Learning rates, loss weights, rate of dropped conditions."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=1100,
            batch_size=32,
            warmup=40,
            save_every=250,
            optimizer="muon",
            # New embeddings have far to go, matrices have not: 6e-3 for the ones, 2e-2 for these.
            muon_factor=3.3,
            betas=(0.9, 0.99),
        )
    )
    """Steps, batch and the rest of the loop."""


def scenes_unified(config: ScenesUnified) -> FitResult:
    r"""Train a small Qwen3 with an extended vocabulary on all tasks at once.

    Command: vqrae train scenes-unified --run runs/unified --data runs/scenes \
        --tokenizer runs/stage2/final
    Cost: about 4.5 minutes on 2 CPU cores.
    Expected: answers well above the commonest answer of each question type; single objects drawn
    more often than not.
    """
    corpus = scene_corpus(config.data)
    text_tokenizer = train_text_tokenizer(corpus, config.vocab_size, fold=True)
    torch.manual_seed(config.train.seed)
    language_model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(text_tokenizer),
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.width // config.heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=True,
            pad_token_id=text_tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=text_tokenizer.eos_token_id,
        )
    )
    model, processor = UnifiedModel.from_parts(
        language_model,
        text_tokenizer,
        VQRAEModel.from_pretrained(config.tokenizer),
        feature_positions=config.feature_positions,
        code_positions=config.code_positions,
        code_mixture=config.code_mixture,
        max_length=config.max_length,
        seed=config.train.seed,
    )
    model.config.guidance_scale, model.config.min_p = config.guidance_scale, config.min_p
    objective = UnifiedObjective(model, processor, config.loss)
    result = fit(
        objective,
        mixture(config),
        config.train,
        config.run,
        recipe="scenes-unified",
        recipe_config=recipe_settings(config),
    )
    drawn = config.mixture.t2i > 0 and config.loss.code_rows == "shared"
    if drawn and os.environ.get("RANK", "0") == "0":
        _offset_undrawn_codes(Path(config.run) / "final", f"{config.data}/train")
    return result


def _offset_undrawn_codes(final: Path, data: str) -> None:
    """Once, into the model that `fit` has exported."""
    model, processor = load_unified(final, device="cpu")
    if model.config.code_bias:
        return
    fit_code_bias(model, processor, ShardDataset(data, epochs=1, shuffle=0))
    with whole_folder(final) as aside, quiet_transformers():
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
        shutil.rmtree(final)


def mixture(config: ScenesUnified) -> MixtureDataset:
    """The tasks that have a share, each over its own files."""
    seed, data = config.train.seed, f"{config.data}/train"
    makers = {
        "t2i": lambda: ShardDataset(data, seed=seed, shuffle=2000),
        "vqa": lambda: LlavaDataset(f"{data}/vqa.json", seed=seed),
        "caption": lambda: ShardDataset(data, seed=seed + 1, shuffle=2000),
        "text": lambda: LlavaDataset(f"{data}/text.json", seed=seed),
        "interleaved": lambda: ShardDataset(data, seed=seed + 2, shuffle=2000),
    }
    shares = {name: getattr(config.mixture, name) for name in makers}
    parts = {name: (makers[name](), share) for name, share in shares.items() if share > 0}
    return MixtureDataset(parts, seed)
