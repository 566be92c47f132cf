"""DeepSpeed settings by name: ZeRO stage, offload, communication. Nothing else.

Batch size, accumulation, learning rate, clipping and precision belong to the run's TrainConfig,
and are merged in by the engine.
"""

from __future__ import annotations

from pathlib import Path


def names() -> list[str]:
    """Names of the shipped settings."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def path(name_or_path: str) -> Path:
    """The JSON file of a shipped name, or the path itself. ValueError when there is neither."""
    shipped = Path(__file__).parent / f"{name_or_path}.json"
    if shipped.is_file():
        return shipped
    given = Path(name_or_path)
    if given.is_file():
        return given
    raise ValueError(
        f"deepspeed is {name_or_path!r}, which is no file and none of {', '.join(names())}"
    )


__all__ = ["names", "path"]
