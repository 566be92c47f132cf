"""VQRAE on the real DINOv2-small: both stages on photographs, with a small and a large codebook
dimension.

Run: python examples/real_tokenizer/run.py runs/real
     (pip install 'vqrae[real]' first; killed, the same command goes on)

Writes OUT/table.md, OUT/table.csv and OUT/pairs.png: held-out photographs, and what each tokenizer
makes of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from pictures import stamps, write_crops
from PIL import Image
from torch.nn.functional import normalize
from transformers.utils.logging import disable_progress_bar
from vqrae.data import Augment, ImageFolderDataset
from vqrae.eval._pictures import preprocess_of
from vqrae.eval.reconstruction import evaluate_reconstruction
from vqrae.recipes._grid import markdown_table, write_csv
from vqrae.tokenizer import (
    TokenizerLossConfig,
    TokenizerObjective,
    VQRAEImageProcessor,
    VQRAEModel,
)
from vqrae.training import TrainConfig, fit
from weights import RealLPIPS, save_dinov2

SIZE, CODES = 112, 2048
# Neighbours that vote on a stamp's class.
NEIGHBOURS = 5


def losses(stage: int) -> TokenizerLossConfig:
    return TokenizerLossConfig(
        stage=stage,
        decoder_lr=1e-3 if stage == 1 else 5e-4,
        decoder_min_lr=2e-5,
        quantizer_lr_factor=0.1,
        encoder_lr=1e-5,
        distillation_weight=1.0,
        augment=Augment(mirror=True),
        perceptual_weight=1.1,
        codebook_init_images=1024,
        codebook_init_tokens=65536,
        revive_every=100,
        revive_until=0.95,
        usage_window=100,
    )


def train(
    out: Path, stage: int, dim: int, vfm: Path, steps: int, batch: int, precision: str
) -> Path:
    """One stage; returns the folder of its tokenizer."""
    run = out / f"dim-{dim}-stage-{stage}"
    if stage == 1:
        torch.manual_seed(0)
        model = VQRAEModel.from_vfm(str(vfm), codebook_size=CODES, code_dim=dim, image_size=SIZE)
    else:
        model = VQRAEModel.from_pretrained(out / f"dim-{dim}-stage-1" / "final")
    objective = TokenizerObjective(model, losses(stage), steps, perceptual=RealLPIPS())
    config = TrainConfig(
        steps=steps,
        batch_size=batch,
        warmup=steps // 20,
        optimizer="muon",
        betas=(0.9, 0.99),
        save_every=100,
        precision=precision,
    )
    dataset = ImageFolderDataset(str(out / "train"), texts=False, shuffle=2000)
    fit(objective, dataset, config, run, recipe=f"real-tokenizer-{stage}")
    return run / "final"


@torch.no_grad()
def neighbours_accuracy(model: VQRAEModel, processor: VQRAEImageProcessor) -> float | None:
    """Share of the stamps whose class their nearest others' features tell (mean over patches,
    cosine, leave one out)."""
    pictures = list(stamps())
    if not pictures:
        return None
    features = []
    for start in range(0, len(pictures), 32):
        pixels = processor([image for image, _ in pictures[start : start + 32]])["pixel_values"]
        features.append(normalize(model.encode(pixels).mean(1), dim=-1))
    names = sorted({label for _, label in pictures})
    labels = torch.tensor([names.index(label) for _, label in pictures])
    vectors = torch.cat(features)
    similar = vectors @ vectors.T
    similar.fill_diagonal_(-1)
    nearest = labels[similar.topk(NEIGHBOURS).indices]
    votes = torch.nn.functional.one_hot(nearest, len(names)).sum(1)
    return float((votes.argmax(-1) == labels).float().mean())


def measure(model: VQRAEModel, out: Path) -> tuple[dict, list]:
    """A row of the table, and pictures (original, drawn)."""
    processor = VQRAEImageProcessor(SIZE)
    files = sorted((out / "test").glob("*.png"))
    found = evaluate_reconstruction(
        model,
        (Image.open(file).convert("RGB") for file in files),
        preprocess=preprocess_of(processor),
        lpips=RealLPIPS("alex").distances,
        examples=0,
    )
    row = {key: found[key] for key in ("psnr", "ssim", "lpips", "usage")}
    chosen = files[:: len(files) // 8][:8]
    pixels = processor([Image.open(f).convert("RGB") for f in chosen])["pixel_values"]
    drawn = model.detokenize(model.tokenize(pixels))
    return row, [processor.to_images(pixels), processor.to_images(drawn)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", nargs="*", default=[], help="more folders of photographs")
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 384])
    parser.add_argument("--steps", type=int, nargs=2, default=[1000, 500], help="of both stages")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    given = parser.parse_args()
    disable_progress_bar()
    out = given.out
    vfm = out / "dinov2-small"
    if not (out / "written").exists():
        save_dinov2(vfm)
        write_crops(out, size=SIZE, crops=6000, extra=given.pictures)
        (out / "written").touch()

    processor = VQRAEImageProcessor(SIZE)
    fresh = VQRAEModel.from_vfm(str(vfm), codebook_size=2, code_dim=8, image_size=SIZE).eval()
    before = neighbours_accuracy(fresh, processor)
    rows, strips = [], []
    for dim in given.dims:
        for stage in (1, 2):
            folder = train(
                out, stage, dim, vfm, given.steps[stage - 1], given.batch, given.precision
            )
            model = VQRAEModel.from_pretrained(folder).eval()
            row, (originals, drawn) = measure(model, out)
            knn = neighbours_accuracy(model, processor)
            rows.append({"dim": dim, "stage": stage, **row, "knn": knn, "knn_before": before})
            strips = strips or [originals]
            strips.append(drawn)
            print(json.dumps(rows[-1]))
    write(out, rows, strips)


def write(out: Path, rows: list[dict], strips: list[list[Image.Image]]) -> None:
    write_csv(out / "table.csv", rows)
    table = markdown_table(list(rows[0]), [list(row.values()) for row in rows])
    (out / "table.md").write_text(table)
    sheet = Image.new("RGB", (len(strips[0]) * (SIZE + 4), len(strips) * (SIZE + 4)), "white")
    for y, strip in enumerate(strips):
        for x, image in enumerate(strip):
            sheet.paste(image, (x * (SIZE + 4), y * (SIZE + 4)))
    sheet.save(out / "pairs.png")


if __name__ == "__main__":
    main()
