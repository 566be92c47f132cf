"""Training: one loop (`fit`) over an `Objective`, by plain torch or DeepSpeed."""

from ._process import seed_everything
from .config import TrainConfig
from .logging import read_metrics
from .loop import FitResult, Hook, HookState, fit
from .objective import Objective, TrainingStopped, decay_groups
from .run_directory import RunDirectory

__all__ = [
    "FitResult",
    "Hook",
    "HookState",
    "Objective",
    "RunDirectory",
    "TrainConfig",
    "TrainingStopped",
    "decay_groups",
    "fit",
    "read_metrics",
    "seed_everything",
]
