"""The paper's numbers (arXiv 2511.23386), once, for all tables, studies and pages.

Scores have the names and units of our benchmarks: shares from 0 to 1, DPG of 100, MME's points.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperTable:
    """One of its tables."""

    about: str
    """What was measured on."""
    rows: dict[str, dict[str, float | None]]
    """System to score to value; None for what it does not give."""
    note: str = ""
    """What to know before comparing."""


def _table(names: str, systems: dict[str, tuple[float | None, ...]]) -> dict[str, dict]:
    return {
        system: dict(zip(names.split(), values, strict=True)) for system, values in systems.items()
    }


PAPER = {
    "reconstruction": PaperTable(
        "ImageNet val at 256",
        _table(
            "rfid psnr ssim",
            {
                "VQRAE-SigLIP2": (1.31, 22.23, 0.762),
                "VQRAE-InternViT": (1.39, 22.88, 0.784),
                "LlamaGen": (2.19, 20.79, 0.675),
                "TokenFlow": (1.37, 21.41, 0.690),
                "RAE (continuous)": (0.49, 19.23, 0.620),
                "Open-MAGVIT2": (1.67, 22.70, 0.640),
                "VAR": (1.00, 22.63, 0.755),
            },
        ),
        "Comparable where the pictures are ImageNet's 50,000 at 256 pixels.",
    ),
    "geneval": PaperTable(
        "GenEval",
        _table(
            "single_object two_object counting colors position color_attr overall",
            {"VQRAE, 0.6B": (0.96, 0.82, 0.64, 0.80, 0.73, 0.58, 0.76)},
        ),
    ),
    "scenes": PaperTable(
        "GenEval",
        _table(
            "geneval.single_object geneval.two_object geneval.counting geneval.colors "
            "geneval.position geneval.color_attr geneval",
            {"VQRAE, 0.6B": (0.96, 0.82, 0.64, 0.80, 0.73, 0.58, 0.76)},
        ),
        "On photographs of everyday things, not on the scenes world: the categories are the same, "
        "the tasks are not.",
    ),
    "dpg": PaperTable(
        "DPG-Bench",
        _table(
            "global entity attribute relation other overall",
            {"VQRAE, 0.6B": (89.78, 93.14, 89.92, 90.34, 91.27, 86.67)},
        ),
    ),
    "vqa": PaperTable(
        "the public benchmarks",
        _table(
            "pope.f1 gqa.accuracy textvqa.accuracy textvqa_ocr.accuracy mmbench.circular "
            "mme.perception seedbench.accuracy mmmu_val.acc ai2d.accuracy",
            {
                "VQRAE, SigLIP2-512, Vicuna-13B": (
                    *(0.882, 0.648, 0.617, 0.617, 0.673),
                    *(1543.3, 0.699, 0.374, 0.598),
                ),
                "VQRAE, InternViT, Qwen2.5-7B": (
                    *(0.905, None, 0.806, 0.806, 0.851),
                    *(1746.8, 0.770, 0.616, 0.848),
                ),
            },
        ),
        "It does not say which of POPE's, MMBench's and SEED-Bench's numbers it gives, nor whether "
        "OCR tokens were shown; taken are those that LLaVA-1.5, whose recipe it follows, reports.",
    ),
}
"""Benchmark to the paper's rows."""

CODEBOOK = {
    (16384, 384): (8.24, 0.261, 0.64),
    (16384, 768): (13.76, 0.398, 0.69),
    (16384, 1152): (17.22, 0.569, 0.83),
    (16384, 1536): (20.14, 0.668, 1.00),
    (16384, 1920): (20.07, 0.664, 0.98),
    (4096, 1536): (8.02, 0.253, 1.00),
    (8192, 1536): (17.02, 0.548, 1.00),
    (32768, 1536): (19.94, 0.645, 0.96),
}
"""(k, e): PSNR in dB, SSIM, utilisation; ImageNet-1K, 20 epochs, encoder width 1152."""

STRATEGY = {
    "end to end, no distillation": (21.35, 0.704, 608.9, 22.3, 48.6, 7.0),
    "end to end, distillation": (19.68, 0.644, 1435.2, 64.9, 52.8, 42.6),
    "two stages, distillation": (20.52, 0.680, 1439.1, 65.8, 53.1, 44.0),
}
"""PSNR in dB, SSIM | MME-P, MMB, AI2D, TQA."""
