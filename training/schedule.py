"""The learning rate of each step, a pure function of the step."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(step: int, config: TrainConfig, peak: float, low: float) -> float:
    """Learning rate of `step` (0 is the first): linear warm-up, then cosine to `low` or constant.

    The warm-up's first step already moves (peak / warmup); the last step of a cosine is one step
    above `low`, so that no step is spent on a rate of zero.
    """
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    if config.schedule == "constant":
        return peak
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
