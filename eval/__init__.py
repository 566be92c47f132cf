"""Measurement: reconstruction, zero-shot, questions, drawing, the table and the report."""

from __future__ import annotations

from typing import Any

_WHERE = {
    "CodeUsage": "metrics",
    "code_usage": "metrics",
    "load_lpips": "metrics",
    "psnr": "metrics",
    "ssim": "metrics",
    "evaluate_reconstruction": "reconstruction",
    "mean_image": "reconstruction",
    "single_object_scenes": "zero_shot",
    "teacher_encoder": "zero_shot",
    "zero_shot_accuracy": "zero_shot",
    "zero_shot_beside_teacher": "zero_shot",
    "evaluate_vqa": "vqa",
    "evaluate_text_to_image": "text_to_image",
    "Detected": "scenes_detector",
    "detect": "scenes_detector",
    "score": "geneval",
    "Row": "table",
    "build_table": "table",
    "plain_table": "table",
    "rich_table": "table",
    "write_report": "report",
    "evaluate": "run",
}

__all__ = [
    "CodeUsage",
    "Detected",
    "Row",
    "build_table",
    "code_usage",
    "detect",
    "evaluate",
    "evaluate_reconstruction",
    "evaluate_text_to_image",
    "evaluate_vqa",
    "load_lpips",
    "mean_image",
    "plain_table",
    "psnr",
    "rich_table",
    "score",
    "single_object_scenes",
    "ssim",
    "teacher_encoder",
    "write_report",
    "zero_shot_accuracy",
    "zero_shot_beside_teacher",
]


def __getattr__(name: str) -> Any:
    # each name is fetched from its file when first used: a command line stays quick to start
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
