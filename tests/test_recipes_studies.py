"""Studies: the grid's bookkeeping, the fitted law, and each study once at a toy size."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel
from vqrae.data import write_scenes
from vqrae.eval.code_loss import code_loss
from vqrae.recipes._grid import Cell, run_grid, write_csv
from vqrae.recipes.study_llm import power_law
from vqrae.scripts.main import main
from vqrae.tokenizer import VQRAEModel


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with scenes, an untrained vision encoder and an untrained tokenizer."""
    home = tmp_path_factory.mktemp("parts")
    write_scenes(home / "data", train=96, test=24, prompts_per_category=2)
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=64, patch_size=16,
    )  # fmt: skip
    SiglipVisionModel(vision).save_pretrained(home / "vfm")
    VQRAEModel.from_vfm(str(home / "vfm"), codebook_size=32, code_dim=40).save_pretrained(
        home / "tokenizer"
    )
    return home


def test_finished_cells_are_skipped_and_others_resumed(tmp_path):
    calls = []

    def cell(name: str, value: int, breaks: bool = False) -> Cell:
        def run(folder: Path) -> dict:
            calls.append(name)
            if breaks:
                raise RuntimeError("killed")
            return {"score": value * 2.5}

        return Cell(name, {"value": value}, run)

    with pytest.raises(RuntimeError):
        run_grid([cell("a", 1), cell("b", 2, breaks=True)], tmp_path)
    rows = run_grid([cell("a", 1), cell("b", 2), cell("c", 3)], tmp_path)
    assert calls == ["a", "b", "b", "c"]
    assert rows == [{"value": v, "score": v * 2.5} for v in (1, 2, 3)]
    with pytest.raises(ValueError, match="was run with value 1, not 9; choose another --out"):
        run_grid([cell("a", 9)], tmp_path)
    write_csv(tmp_path / "table.csv", [*rows, {"value": 4, "other": "x"}])
    read = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert read[0] == {"value": "1", "score": "2.5", "other": ""} and read[3]["other"] == "x"


def test_finished_cells_hold_for_the_same_study_only(tmp_path):
    @dataclass(frozen=True)
    class Study:
        out: str = "here"
        steps: int = 10
        sizes: tuple[int, ...] = (1, 2)

    cells = [Cell("a", {"size": 1}, lambda folder: {"score": 1.0})]
    rows = run_grid(cells, tmp_path, Study(), varied=("sizes",))
    again = run_grid(cells, tmp_path, Study(out="there", sizes=(1,)), varied=("sizes",))
    assert rows == again
    with pytest.raises(ValueError, match="was run with steps 10, not 20;"):
        run_grid(cells, tmp_path, Study(steps=20), varied=("sizes",))


def test_power_law_is_recovered():
    sizes = [1e4, 1e5, 1e6, 1e7]
    law = power_law(sizes, [3.0 * n**-0.12 for n in sizes])
    assert law == pytest.approx({"scale": 3.0, "exponent": 0.12, "r2": 1.0})
    with pytest.raises(ValueError, match="at least two sizes"):
        power_law([5.0], [1.0])


def test_code_loss_does_not_depend_on_the_batch_and_leaves_the_model_alone():
    from test_mllm_parts import noise_image, tiny_model

    model, processor = tiny_model()
    model.train()
    model.language_model.requires_grad_(False)
    samples = [{"key": str(n), "image": noise_image(n), "text": "a star"} for n in range(5)]
    whole, parted = (code_loss(model, processor, samples, batch_size=n) for n in (5, 2))
    assert whole == pytest.approx(parted, rel=1e-5) and whole > 0
    assert model.training and not any(p.requires_grad for p in model.language_model.parameters())
    with pytest.raises(ValueError, match="no picture"):
        code_loss(model, processor, [])


SMALL = ["--steps", "2", "--questions", "4", "--prompts-per-category", "1", "--images", "8"]


@pytest.mark.parametrize(
    ("study", "options", "columns", "rows"),
    [
        (
            "codebook",
            ["--vfm", "vfm", "--dims", "8", "40", "--sizes", "16", "--dim", "40", "--size", "32",
             "--steps", "2", "--images", "8"],
            {"k", "e", "psnr", "ssim", "usage"},
            3,
        ),
        (
            "strategy",
            ["--vfm", "vfm", "--codebook-size", "32", "--code-dim", "40", "--tokenizer-steps",
             "4", *SMALL],
            {"strategy", "psnr", "ssim", "vqa"},
            3,
        ),
        (
            "llm",
            ["--tokenizer", "tokenizer", "--widths", "32", "64", "--depth", "1", *SMALL],
            {"width", "parameters", "t2i_loss", "geneval"},
            2,
        ),
        (
            "guidance",
            ["--scales", "1", "2.5", "--prompts-per-category", "1", "--images-per-prompt", "1"],
            {"guidance_scale", "geneval", "geneval_colors"},
            2,
        ),
        (
            "directions",
            ["--tokenizer", "tokenizer", "--batch-size", "4", *SMALL],
            {"trained", "vqa", "t2i_loss"},
            3,
        ),
    ],
)  # fmt: skip
def test_every_study_runs_and_resumes(parts, monkeypatch, study, options, columns, rows):
    monkeypatch.chdir(parts)
    monkeypatch.setattr("vqrae.mllm.objective._COUNTED_SAMPLES", 64)
    line = ["study", study, "--out", f"out/{study}", "--data", "data", *options]
    assert main(line) == 0
    table = list(csv.DictReader(Path(f"out/{study}/table.csv").read_text().splitlines()))
    assert len(table) == rows and columns <= set(table[0])
    stamps = {p: p.stat().st_mtime_ns for p in Path(f"out/{study}/cells").rglob("row.json")}
    assert main(line) == 0
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items()) and stamps
    assert "</svg>" in Path(f"out/{study}/plot.svg").read_text()
    assert "paper" in Path(f"out/{study}/table.md").read_text() or study in (
        "llm",
        "guidance",
        "directions",
    )


def test_mistakes_are_one_line(capsys):
    assert main(["study", "codebok"]) == 2
    assert "there is no study 'codebok'; choose one of codebook" in capsys.readouterr().err
    argv = ["study", "llm", "--out", "x", "--data", "y", "--tokenizer", "z", "--widths", "33"]
    assert main(argv) == 2
    assert "width 33 is not a multiple of 32" in capsys.readouterr().err
