"""The one model over text and pictures, its processor and its training objective."""

from vqrae.mllm.configuration_unified import UnifiedConfig
from vqrae.mllm.modeling_unified import UnifiedModel, UnifiedOutput, check_agreement
from vqrae.mllm.processing_unified import UnifiedProcessor

__all__ = [
    "UnifiedConfig",
    "UnifiedModel",
    "UnifiedObjective",
    "UnifiedObjectiveConfig",
    "UnifiedOutput",
    "UnifiedProcessor",
    "check_agreement",
]


def __getattr__(name: str):
    # Training is imported only by those who train.
    if name in ("UnifiedObjective", "UnifiedObjectiveConfig"):
        from vqrae.mllm import objective

        return getattr(objective, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
