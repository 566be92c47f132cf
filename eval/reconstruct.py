"""The reconstruction benchmark: any images, rFID too, on any number of ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from vqrae.data._files import write_whole
from vqrae.data.open_pairs import open_pairs
from vqrae.eval._pictures import preprocess_of
from vqrae.eval._ranks import join_ranks
from vqrae.eval.frechet import FeatureStatistics, frechet_distance, load_reference
from vqrae.eval.inception import FEATURES, INCEPTION_SHA256, load_inception
from vqrae.eval.metrics import load_lpips
from vqrae.eval.protocol import package_versions, weight_hashes
from vqrae.eval.reconstruction import evaluate_reconstruction
from vqrae.eval.run import load_models
from vqrae.training._process import gather_objects, pick_device

# ImageNet val 50k at 256: rFID, PSNR in dB, SSIM.
PAPER = {
    "VQRAE-SigLIP2": (1.31, 22.23, 0.762),
    "VQRAE-InternViT": (1.39, 22.88, 0.784),
    "LlamaGen": (2.19, 20.79, 0.675),
    "TokenFlow": (1.37, 21.41, 0.690),
    "RAE (continuous)": (0.49, 19.23, 0.620),
    "Open-MAGVIT2": (1.67, 22.70, 0.640),
    "VAR": (1.00, 22.63, 0.755),
}
_TRANSFORM = "shorter side by bicubic interpolation with antialiasing, centre crop, 8 bit"


def reconstruct(
    model_dir: str | Path,
    data: str,
    out: str | Path,
    *,
    images: int | None = None,
    inception: str | None = None,
    any_inception: bool = False,
    lpips: str | None = None,
    reference: str | None = None,
    largest_gap: float = 1.0,
    save_reference: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, Any]:
    """Tokenize every image, draw it back from its codes alone, and compare.

    Under torchrun each rank takes its share; no number depends on the ranks or on batch_size.
    Writes OUT/results.json and OUT/pairs.png (originals above reconstructions).

    Args:
        data: see data.open_pairs; texts are not needed. An image that cannot be read is an error.
        images: the first so many in the order of their names; None for all.
        inception: file of Inception weights, for rFID; without it rFID is None.
        any_inception: take a file with another hash; its numbers compare with nothing published.
        lpips: file of LPIPS weights; without it LPIPS is None.
        reference: statistics of the originals, instead of computing them: ours, or an .npz of
            others. Ours say of which images they are, and others are refused. An .npz does not:
            then the originals are measured after all, and it is refused if they are further from it
            than `largest_gap` (in FID).
        save_reference: where to save the originals' statistics (.safetensors).

    Returns psnr (dB), ssim, lpips, rfid, usage, perplexity, and the protocol: see results.json.

    Raises:
        ValueError: for what is not there or does not fit, in one line.
    """
    from vqrae.tokenizer import VQRAEImageProcessor

    rank, world_size = join_ranks()
    target = pick_device(device)
    model = load_models(Path(model_dir), target)[0]
    size = model.config.image_size
    if (reference or save_reference) and not inception:
        raise ValueError("reference statistics need inception, a file of Inception weights")
    given = load_reference(reference) if reference else None
    features = None
    if inception:
        features = load_inception(inception, device=target, check=not any_inception)
    keys: list[str] = []
    originals, drawings = FeatureStatistics(), FeatureStatistics()
    trusted = given is not None and given.about is not None

    def observe(pixels: Tensor, drawn: Tensor) -> None:
        if features is not None:
            drawings.add(features(drawn))
            if not trusted or save_reference:
                originals.add(features(pixels))

    processor = VQRAEImageProcessor(size)
    found = evaluate_reconstruction(
        model,
        _pictures(data, images, rank, world_size, keys),
        preprocess=preprocess_of(processor),
        lpips=load_lpips(lpips) if lpips else None,
        batch_size=batch_size,
        examples=8 if rank == 0 else 0,
        observe=observe,
    )
    about = {
        "images": _fingerprint(keys),
        "image_size": size,
        "transform": _TRANSFORM,
        "network": f"inception-{INCEPTION_SHA256}" if not any_inception else "another inception",
    }
    rfid = gap = None
    if features is not None:
        drawings.reduce(FEATURES)
        if not trusted or save_reference:
            originals.reduce(FEATURES)
            originals.about = about
        if given is None:
            wanted = originals.mean, originals.covariance
        else:
            wanted = given.mean, given.covariance
            if trusted:
                _check_about(reference, given.about, about | {"count": drawings.count})
            else:
                gap = frechet_distance(originals.mean, originals.covariance, *wanted)
                if gap > largest_gap:
                    raise ValueError(
                        f"'{reference}' is {gap:.2f} away (in FID) from the originals: it is of "
                        f"other images or of another size; give that of these at {size} pixels, or "
                        "raise largest_gap"
                    )
        rfid = frechet_distance(drawings.mean, drawings.covariance, *wanted)
    examples = found.pop("examples")
    results = {
        **found,
        "rfid": rfid,
        "protocol": {
            **about,
            "count": found["window"]["images"],
            "data": str(data),
            "reference": None if given is None else str(reference),
            "distance of the reference from the originals": gap,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "device": target.type,
            "weights sha256": weight_hashes(model_dir),
            "versions": package_versions(),
        },
    }
    if rank == 0:
        out = Path(out)
        write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
        _pairs(examples, size).save(out / "pairs.png")
        if save_reference:
            originals.save(save_reference)
    return results


def comparison(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of name, rFID, PSNR and SSIM: ours, then the paper's table."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    ours = ("this model", results["rfid"], results["psnr"], results["ssim"])
    rows = [ours, *((name, *numbers) for name, numbers in PAPER.items())]
    return [(name, text(f, ".2f"), text(p, ".2f"), text(s, ".3f")) for name, f, p, s in rows]


def _pictures(
    data: str, images: int | None, rank: int, world_size: int, keys: list[str]
) -> Iterator[Image.Image]:
    dataset = open_pairs(
        data,
        texts=False,
        shuffle=0,
        epochs=1,
        rank=rank,
        world_size=world_size,
        max_bad_share=0.0,
    )
    share = None if images is None else len(range(rank, images, world_size))
    for sample in islice(dataset, share):
        keys.append(sample["key"])
        yield sample["image"]


def _fingerprint(keys: list[str]) -> str:
    """Of the set of images, whatever their order and the ranks."""
    every = sorted(key for some in gather_objects(keys) for key in some)
    return hashlib.sha256("\n".join(every).encode()).hexdigest()[:16]


def _check_about(path: object, theirs: dict, ours: dict) -> None:
    wrong = [key for key in ours if theirs.get(key) != ours[key]]
    if wrong:
        raise ValueError(
            f"'{path}' does not fit: its "
            + ", ".join(f"{key} is {theirs.get(key)!r}, not {ours[key]!r}" for key in wrong)
            + "; leave it out, or save it again with save_reference"
        )


def _pairs(examples: list[dict], size: int) -> Image.Image:
    sheet = Image.new("RGB", (max(1, len(examples)) * size, 2 * size), "white")
    for column, pair in enumerate(examples):
        sheet.paste(pair["original"], (column * size, 0))
        sheet.paste(pair["reconstruction"], (column * size, size))
    return sheet
