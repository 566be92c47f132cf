"""Recipes: one function per run; its docstring gives command, cost and expected number."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable

# name: (module:function, config class in that module, what it does)
RECIPES: dict[str, tuple[str, str, str]] = {
    "scenes-vfm": (
        "vqrae.recipes.scenes_vfm:scenes_vfm",
        "ScenesVFM",
        "pretrain the built-in vision encoder with the SigLIP loss",
    ),
    "scenes-tokenizer-1": (
        "vqrae.recipes.scenes_tokenizer:scenes_tokenizer_1",
        "ScenesTokenizer1",
        "tokenizer stage 1: the encoder frozen",
    ),
    "scenes-tokenizer-2": (
        "vqrae.recipes.scenes_tokenizer:scenes_tokenizer_2",
        "ScenesTokenizer2",
        "tokenizer stage 2: the encoder trained, with distillation",
    ),
    "scenes-unified": (
        "vqrae.recipes.scenes_unified:scenes_unified",
        "ScenesUnified",
        "the one model: captions, questions, drawing and text together",
    ),
    "tokenizer-1": (
        "vqrae.recipes.tokenizer:tokenizer_stage1",
        "TokenizerStage1",
        "tokenizer stage 1 on any encoder and pictures, with the paper's numbers",
    ),
    "tokenizer-2": (
        "vqrae.recipes.tokenizer:tokenizer_stage2",
        "TokenizerStage2",
        "tokenizer stage 2 likewise",
    ),
    "siglip2-256-1": (
        "vqrae.recipes.tokenizer:tokenizer_stage1",
        "SigLIP2Stage1",
        "the paper's VQRAE-SigLIP2 at 256 pixels, stage 1",
    ),
    "siglip2-256-2": (
        "vqrae.recipes.tokenizer:tokenizer_stage2",
        "TokenizerStage2",
        "the same, stage 2",
    ),
    "siglip2-512-1": (
        "vqrae.recipes.tokenizer:tokenizer_stage1",
        "SigLIP2Large1",
        "the paper's VQRAE-SigLIP2 at 512 pixels, stage 1",
    ),
    "siglip2-512-2": (
        "vqrae.recipes.tokenizer:tokenizer_stage2",
        "TokenizerStage2",
        "the same, stage 2",
    ),
    "internvit-448-1": (
        "vqrae.recipes.tokenizer:tokenizer_stage1",
        "InternViTStage1",
        "the paper's VQRAE-InternViT at 448 pixels, stage 1",
    ),
    "internvit-448-2": (
        "vqrae.recipes.tokenizer:tokenizer_stage2",
        "InternViTStage2",
        "the same, stage 2",
    ),
    "easy-vqa": (
        "vqrae.recipes.easy_vqa:easy_vqa",
        "EasyVQA",
        "fine-tune a unified model on a world of others",
    ),
    "llava-pretrain": (
        "vqrae.recipes.unified:unified",
        "LlavaPretrain",
        "the paper's understanding: the projector alone (LLaVA-1.5, first stage)",
    ),
    "llava-sft": (
        "vqrae.recipes.unified:unified",
        "LlavaSFT",
        "the same: projector and language model (second stage)",
    ),
    "draw": (
        "vqrae.recipes.unified:unified",
        "Drawing",
        "the paper's generation: a language model that writes codes",
    ),
    "unified": (
        "vqrae.recipes.unified:unified",
        "Unified",
        "both in one run, in any mixture, on any causal language model",
    ),
    "unified-staged": (
        "vqrae.recipes.unified:staged",
        "Staged",
        "the same in stages: projector, rows of the codes, all",
    ),
    "lora": (
        "vqrae.recipes.unified:adapters",
        "Adapters",
        "LoRA or QLoRA for both directions, on your own JSONL",
    ),
}


def load_recipe(name: str) -> tuple[type, Callable]:
    """The config class and the function of a recipe.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no recipe {name!r}; {hint}recipes: {', '.join(RECIPES)}")
    place, config_class, _ = RECIPES[name]
    module_name, function = place.split(":")
    module = importlib.import_module(module_name)
    return getattr(module, config_class), getattr(module, function)


__all__ = ["RECIPES", "load_recipe"]
