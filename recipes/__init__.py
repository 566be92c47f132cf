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
    "easy-vqa": (
        "vqrae.recipes.easy_vqa:easy_vqa",
        "EasyVQA",
        "fine-tune a unified model on a world of others",
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
