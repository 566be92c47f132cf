"""Which model a command uses when none is named, and how it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vqrae.assets import nano_folder

if TYPE_CHECKING:
    from vqrae.mllm import UnifiedModel, UnifiedProcessor

# Below, laying weights out anew takes longer than it saves.
_LARGE = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A model that draws and answers."""

    model: str | None = None
    """Folder of the model; by default $VQRAE_MODEL or the one that ships."""
    weights: Literal["auto", "plain", "packed", "bf16", "int8"] = "auto"
    """On a CPU: packed is the same but faster, bf16 takes half the memory and int8 a quarter, and
    they are faster still; auto packs those of language models of more than 50 million. A C++
    compiler makes all of them faster."""

    def load(self, to_compile: bool = False) -> tuple[UnifiedModel, UnifiedProcessor]:
        """Model and processor, in eval mode; `to_compile` keeps from packing what cannot be."""
        folder = model_folder(self.model)
        from vqrae.generation import lay_out_weights, load_unified
        from vqrae.generation._kernels import have_kernels

        if self.weights not in ("auto", "plain"):
            model, processor = load_unified(folder, device="cpu")
            return lay_out_weights(model, self.weights), processor
        model, processor = load_unified(folder)
        size = sum(p.numel() for p in model.language_model.parameters())
        large_on_cpu = model.device.type == "cpu" and size > _LARGE
        if self.weights == "auto" and large_on_cpu and (have_kernels() or not to_compile):
            lay_out_weights(model)
        return model, processor


def model_folder(given: str | None) -> str:
    """--model, else $VQRAE_MODEL, else the model that ships with the package."""
    return given or os.environ.get("VQRAE_MODEL") or str(nano_folder())
