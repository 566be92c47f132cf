"""`vqrae export`: the language model as a plain checkpoint, or the encoder inside another MLLM."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from vqrae.scripts._model import model_folder


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the language model as a checkpoint of its own class, which other engines can serve; or,
    with --into, a copy of an MLLM that has this tokenizer's encoder as its vision tower."""

    out: str
    """Folder to write; nothing may be in it."""
    model: str | None = None
    """Folder of a unified model, with --into also of a tokenizer; by default $VQRAE_MODEL or the
    one that ships."""
    into: str | None = None
    """Folder of a LLaVA or InternVL model of transformers that has the encoder's original."""


def main(argv: list[str], prog: str = "vqrae export") -> None:
    config = tyro.cli(Export, args=argv, prog=prog)
    folder = Path(model_folder(config.model))
    import torch
    from vqrae.eval.run import load_models

    vqrae, _, model, processor = load_models(folder, torch.device("cpu"))
    if config.into is not None:
        from vqrae.tokenizer.drop_in import drop_in

        done = drop_in(vqrae, config.into, config.out)
        same = "what" if done.same_features else "other features than"
        sys.stdout.write(f"{config.out}: the MLLM now reads {same} VQRAEModel.encode gives\n")
        return
    if model is None:
        raise ValueError(
            f"'{folder}' is a tokenizer, which has no language model to write; give a unified "
            "model, or --into an MLLM"
        )
    from vqrae.mllm.export_llm import export_language_model

    export_language_model(model, processor, config.out)
    sys.stdout.write(f"{config.out}: its ids are explained in vocabulary.json\n")
