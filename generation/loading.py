"""A folder to a model that draws and answers, or one line that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from vqrae.mllm import UnifiedConfig, UnifiedModel, UnifiedProcessor, check_agreement
from vqrae.mllm.export_llm import VOCABULARY
from vqrae.tokenizer import VQRAEImageProcessor, VQRAEModel
from vqrae.tokenizer._loading import quiet_transformers
from vqrae.tokenizer.fingerprint import fingerprint

_FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_EXPORTED = ("tokenizer.json", "config.json", "vqrae/config.json", "vqrae/model.safetensors")


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
    return model.to(device or _own_device()).eval(), processor


def load_exported(
    path: str | Path, *, device: str | torch.device | None = None
) -> tuple[VQRAEModel, UnifiedProcessor, dict[str, Any]]:
    """What a folder of `vqrae export` holds beside the language model, which is not loaded.

    Returns:
        The tokenizer of pictures, in eval mode, a processor, and what vocabulary.json says, with
        `rows`, those of the language model's head.

    Raises:
        ValueError: naming the file, for a folder that is not whole or mixes files of two models.
    """
    folder = Path(path)
    if not (folder / VOCABULARY).is_file():
        raise ValueError(
            f"{str(path)!r} has no {VOCABULARY}; give a folder that `vqrae export` wrote"
        )
    for name in _EXPORTED:
        if not (folder / name).is_file():
            raise ValueError(f"the folder {str(path)!r} has no {name}; export or copy it again")
    try:
        known = json.loads((folder / VOCABULARY).read_text())
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        with quiet_transformers():
            vqrae = VQRAEModel.from_pretrained(folder / "vqrae")
            processor = UnifiedProcessor(
                VQRAEImageProcessor.from_pretrained(folder / "vqrae"),
                AutoTokenizer.from_pretrained(folder),
                known["num_image_tokens"],
                known["max_length"],
                **known["turn_format"],
            )
        for name in ("image_start_id", "code_offset", "codebook_size", "end_of_turn_id"):
            if known[name] != getattr(processor, name):
                raise ValueError(
                    f"{name} is {known[name]} in {str(folder / VOCABULARY)!r} but "
                    f"{getattr(processor, name)} in its tokenizer.json; export it again"
                )
        if known["tokenizer"] != fingerprint(vqrae):
            raise ValueError(
                f"{str(folder / 'vqrae')!r} is not the tokenizer that drawings of this language "
                "model are codes of; export it again"
            )
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error!r}; export or copy it again") from None
    known = {"min_p": 0.0} | known | {"rows": rows}
    return vqrae.to(device or _own_device()).eval(), processor, known


def _own_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
