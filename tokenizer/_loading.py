"""Checkpoints that are whole, or an error of one line; transformers alone would only warn."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers():
    """No progress bars and load reports: what they would say is checked by the caller."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def loading(path: object, what: str):
    """What transformers raises while it loads `what`, as a ValueError of one line."""
    try:
        yield
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot load {what} {str(path)!r}: {reason} "
            "Give a folder written by save_pretrained, or download the model first."
        ) from None


def check_place(path: object, what: str) -> None:
    """Raise ValueError if `path` is written as a folder (not as a hub name) and none is there."""
    text = str(path)
    written_as_folder = text.startswith(("/", ".", "~")) or text.count("/") > 1
    if written_as_folder and not Path(text).is_dir():
        raise ValueError(f"there is no folder {text!r} to load {what} from; check the path")


def check_loaded(path: object, info: dict, what: str) -> None:
    """Raise ValueError if `output_loading_info` reports weights missing or of another shape."""
    wrong_shape = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    for problem, keys in (("lacks", info["missing_keys"]), ("has other shapes for", wrong_shape)):
        if keys:
            keys = sorted(keys)
            raise ValueError(
                f"{what} {str(path)!r} {problem} {len(keys)} weights, {keys[0]!r} first: the file "
                "is not whole or belongs to another configuration; save or copy it again"
            )


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict on the CPU from .safetensors, or from torch's own format without unpickling."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


class StrictLoadingMixin:
    """Mix in before PreTrainedModel: from_pretrained raises ValueError on an incomplete folder."""

    _what = "the checkpoint"

    @classmethod
    def from_pretrained(cls, path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; weights that are missing or misshapen are a ValueError."""
        check_place(path, cls._what)
        # Misshapen weights are then reported, not raised, and refused below in our words.
        kwargs["ignore_mismatched_sizes"] = True
        with quiet_transformers():
            try:
                model, info = super().from_pretrained(
                    path, *args, output_loading_info=True, **kwargs
                )
            except OSError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"cannot load {cls._what} {str(path)!r}: {reason}") from None
        check_loaded(path, info, cls._what)
        return (model, info) if output_loading_info else model
