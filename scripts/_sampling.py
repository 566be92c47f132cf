"""How drawings are sampled, said once for every command that draws."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of `vqrae.generation.draw`."""

    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is none; by default the model's own scale."""
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over a picture's codes: the scale throughout, or from none up to it."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The part of the picture that is guided; behind it drawing is nearly twice as fast."""
    temperature: float = 1.0
    """Sampling temperature; 0 takes the most likely code."""
    top_k: int = 0
    """Keep the k most likely codes; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely codes that make up this probability."""
    min_p: float | None = None
    """Leave out codes less likely, before guidance, than this share of the most likely one; by
    default the model's own."""

    def sampling(self) -> dict:
        """The options by name."""
        return {field.name: getattr(self, field.name) for field in fields(Sampling)}
