"""The VQRAE tokenizer: pictures to continuous features and discrete codes, and back."""

from vqrae.tokenizer.configuration_vqrae import VQRAEConfig
from vqrae.tokenizer.encoders import load_vfm
from vqrae.tokenizer.image_processing_vqrae import VQRAEImageProcessor
from vqrae.tokenizer.modeling_vqrae import VQRAEModel, VQRAEOutput
from vqrae.tokenizer.objective import TokenizerLossConfig, TokenizerObjective
from vqrae.tokenizer.quantizer import SimVQ
from vqrae.tokenizer.vfm_objective import VFMLossConfig, VFMObjective

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
