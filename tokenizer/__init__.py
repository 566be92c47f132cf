"""The VQRAE tokenizer: pictures to continuous features and discrete codes, and back."""

from vqrae.tokenizer.configuration_vqrae import VQRAEConfig
from vqrae.tokenizer.encoders import load_vfm
from vqrae.tokenizer.image_processing_vqrae import VQRAEImageProcessor
from vqrae.tokenizer.modeling_vqrae import VQRAEModel, VQRAEOutput
from vqrae.tokenizer.quantizer import SimVQ

_OBJECTIVES = {
    "TokenizerLossConfig": "objective",
    "TokenizerObjective": "objective",
    "VFMLossConfig": "vfm_objective",
    "VFMObjective": "vfm_objective",
}

__all__ = [
    "SimVQ",
    "TokenizerLossConfig",
    "TokenizerObjective",
    "VFMLossConfig",
    "VFMObjective",
    "VQRAEConfig",
    "VQRAEImageProcessor",
    "VQRAEModel",
    "VQRAEOutput",
    "load_vfm",
]


def __getattr__(name: str):
    # Training is imported only by those who train.
    if name not in _OBJECTIVES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_OBJECTIVES[name]}"), name)
