"""Fine-tuning on easy-vqa: the shipped model meets a world that its makers did not make."""

from __future__ import annotations

from dataclasses import dataclass, field

from vqrae.data import Augment, LlavaDataset, MixtureDataset, ShardDataset
from vqrae.generation import load_unified
from vqrae.mllm import UnifiedObjective, UnifiedObjectiveConfig
from vqrae.recipes.scenes_vfm import recipe_settings
from vqrae.training import FitResult, TrainConfig, fit


@dataclass(frozen=True, kw_only=True)
class EasyVQA:
    """Fine-tune a unified model on the questions of a LLaVA-style folder."""

    run: str
    """Run directory; model and processor are exported to RUN/final."""
    data: str
    """Folder written by `vqrae data easy-vqa`, or one of the same layout."""
    model: str
    """Folder of the unified model to start from."""
    captions: float = 0.0
    """Share of captions among the samples; the rest are questions."""
    loss: UnifiedObjectiveConfig = UnifiedObjectiveConfig(
        lr=1e-3,
        min_lr=1e-5,
        projector_lr=1e-3,
        projector_min_lr=1e-5,
        # Shapes stand anywhere and in any size here, which the shipped encoder has never seen.
        train_encoder=True,
        encoder_lr=1e-3,
        encoder_min_lr=1e-5,
        augment=Augment(mirror=True, flip=True, shift=0.125),
        # The others name the shape: with four in a row it was not learnt from the pictures.
        one_question=True,
    )
    """Learning rates and what is trained."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=2500,
            batch_size=64,
            warmup=30,
            save_every=250,
            optimizer="muon",
            muon_factor=20.0,
            betas=(0.9, 0.99),
        )
    )
    """Steps, batch and the rest of the loop."""


def easy_vqa(config: EasyVQA) -> FitResult:
    r"""Fine-tune all but the tokenizer's codes and decoder on questions about pictures.

    The encoder is trained, too, with pictures mirrored and moved: the world it knows has its shapes
    on a grid and in two sizes.

    Command: vqrae data easy-vqa runs/easy-vqa
        vqrae train easy-vqa --run runs/easy --data runs/easy-vqa --model MODEL
        vqrae eval --model runs/easy/final --data runs/easy-vqa --questions 9673
    Cost: about 13 minutes on 2 CPU cores.
    Expected: the shipped model answers 86% of the test questions afterwards (shapes 47%, colours
    99.5%, yes or no 91%); the commonest answer of each type is right for 44%, the commonest answer
    of training to the same words for 67%.
    """
    model, processor = load_unified(config.model, device="cpu")
    objective = UnifiedObjective(model, processor, config.loss)
    seed = config.train.seed
    parts = {
        "vqa": (LlavaDataset(f"{config.data}/train/vqa.json", seed=seed), 1 - config.captions),
        "caption": (ShardDataset(f"{config.data}/train", seed=seed), config.captions),
    }
    dataset = MixtureDataset({name: part for name, part in parts.items() if part[1] > 0}, seed)
    return fit(
        objective,
        dataset,
        config.train,
        config.run,
        recipe="easy-vqa",
        recipe_config=recipe_settings(config),
    )
