"""A folder to a model that draws and answers, or one line that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from vqrae.mllm import UnifiedConfig, UnifiedModel, UnifiedProcessor, check_agreement
from vqrae.tokenizer._loading import quiet_transformers

_FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load_unified(
    path: str | Path, *, device: str | torch.device | None = None
) -> tuple[UnifiedModel, UnifiedProcessor]:
    """The model, in eval mode, and its processor.

    Args:
        path: a folder that UnifiedModel and UnifiedProcessor were saved into.
        device: where to put the model; left out, a GPU if there is one.

    Raises:
        ValueError: naming the file, for a folder that is not whole, holds another kind of model,
            or mixes files of two models.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"there is no model folder {str(path)!r}; give the folder of a saved one")
    for name in _FILES:
        if not (folder / name).is_file():
            raise ValueError(f"the model folder {str(path)!r} has no {name}; save or copy it again")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ValueError(
            f"the model folder {str(path)!r} has no {_WEIGHTS[0]}; save or copy it again"
        )
    _check_kind(folder)
    try:
        model = UnifiedModel.from_pretrained(folder)
    except SafetensorError as error:
        raise ValueError(
            f"cannot read {str(folder / _WEIGHTS[0])!r}: {error}; save or copy it again"
        ) from None
    with quiet_transformers():
        processor = UnifiedProcessor.from_pretrained(folder)
    check_agreement(model, processor)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), processor


def _check_kind(folder: Path) -> None:
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except (ValueError, AttributeError):
        raise ValueError(f"{str(path)!r} is not a config in JSON; save or copy it again") from None
    if kind != UnifiedConfig.model_type:
        raise ValueError(
            f"{str(path)!r} is of model_type {kind!r}, not {UnifiedConfig.model_type!r}; give the "
            "folder of a unified model"
        )
