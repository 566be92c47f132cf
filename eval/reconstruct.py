"""The reconstruction benchmark: any images, rFID too, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice, zip_longest
from math import fsum
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from vqrae.data.open_pairs import open_pairs
from vqrae.eval._pictures import pair_sheet, preprocess_of
from vqrae.eval._ranks import join_ranks
from vqrae.eval.benchmark_result import BenchmarkResult, Item, distinct, write_benchmark
from vqrae.eval.frechet import FeatureStatistics, frechet_distance, load_reference
from vqrae.eval.inception import FEATURES, INCEPTION_SHA256, load_inception
from vqrae.eval.metrics import load_lpips
from vqrae.eval.paper_rows import PAPER
from vqrae.eval.protocol import (
    environment_card,
    file_sha256,
    model_card,
    model_dtype,
    picture_sha256,
    set_sha256,
)
from vqrae.eval.reconstruction import evaluate_reconstruction
from vqrae.eval.run import load_models
from vqrae.training._process import gather_objects, pick_device

VERSION = 1
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
) -> BenchmarkResult:
    """Tokenize every image, draw it back from its codes alone, and compare.

    Under torchrun each rank takes its share; no number depends on the ranks or on batch_size.
    Writes OUT/results.json and items.jsonl (see vqrae.eval.benchmark_result) and OUT/pairs.png
    (originals above reconstructions).

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

    Returns the result; its scores are psnr (dB), ssim, lpips, rfid, usage and perplexity.

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
    seen: list[tuple[str, str]] = []
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
        _pictures(data, images, rank, world_size, seen),
        preprocess=preprocess_of(processor),
        lpips=load_lpips(lpips) if lpips else None,
        batch_size=batch_size,
        examples=8 if rank == 0 else 0,
        observe=observe,
    )
    items = _items(seen, found["each"])
    network = None
    if inception:
        network = file_sha256(inception) if any_inception else INCEPTION_SHA256
    about = {
        "images": set_sha256(item["id"] for item in items)[:16],
        "image_size": size,
        "transform": _TRANSFORM,
        "network": f"inception-{network}" if network else None,
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
    scores = {**dict.fromkeys(("psnr", "ssim", "lpips")), **aggregate(items), "rfid": rfid}
    scores |= {name: found[name] for name in ("usage", "perplexity")}
    result = BenchmarkResult(
        benchmark=f"reconstruction-{VERSION}",
        scores=scores,
        higher_is_better={name: name not in ("lpips", "rfid") for name in scores},
        model=model_card({"model": model_dir}),
        protocol={
            **about,
            "count": len(items),
            "lpips_sha256": file_sha256(lpips) if lpips else None,
            # Ours was just found to be of these very images: it changes nothing.
            "reference_sha256": file_sha256(reference) if given and not trusted else None,
            "dtype": model_dtype(model),
        },
        environment=environment_card(str(target)),
        items=items,
        details={
            "window": found["window"],
            "codebook_size": found["codebook_size"],
            "histogram": found["histogram"],
            "distance of the reference from the originals": gap,
        },
    )
    if rank == 0:
        write_benchmark(out, result)
        pair_sheet(found["examples"]).save(Path(out) / "pairs.png")
        if save_reference:
            originals.save(save_reference)
    return result


def aggregate(items: list[Item]) -> dict[str, float]:
    """Means over pictures of psnr, ssim and, where it was measured, lpips."""
    names = [name for name in ("psnr", "ssim", "lpips") if items and name in items[0]]
    return {name: fsum(item[name] for item in items) / len(items) for name in names}


def prepare(items: list[Item]) -> Callable[[np.ndarray], dict[str, float]]:
    """`aggregate` of the items at some places, for the thousand resamples of 50,000 pictures."""
    columns = {name: np.array([item[name] for item in items]) for name in aggregate(items)}
    return lambda places: {name: float(values[places].mean()) for name, values in columns.items()}


def comparison(result: BenchmarkResult) -> list[tuple[str, ...]]:
    """Rows of name, rFID, PSNR and SSIM: ours, then the paper's table."""

    def row(name: str, scores: Mapping[str, float | None]) -> tuple[str, ...]:
        forms = {"rfid": ".2f", "psnr": ".2f", "ssim": ".3f"}
        values = ((scores[key], form) for key, form in forms.items())
        return (name, *("-" if value is None else f"{value:{form}}" for value, form in values))

    rows = {"this model": result.scores, **PAPER["reconstruction"].rows}
    return [row(*pair) for pair in rows.items()]


def _pictures(
    data: str, images: int | None, rank: int, world_size: int, seen: list[tuple[str, str]]
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
        seen.append((sample["key"], picture_sha256(sample["image"])))
        yield sample["image"]


def _items(seen: list[tuple[str, str]], each: list[dict[str, float]]) -> list[Item]:
    """Of the pictures of all ranks, in the order of the data; known by what they show."""
    own = [
        {"id": digest[:16], "key": key, **numbers}
        for (key, digest), numbers in zip(seen, each, strict=True)
    ]
    # Rank r had every world_size-th picture from the r-th on.
    rounds = zip_longest(*gather_objects(own))
    items = [item for turn in rounds for item in turn if item is not None]
    for item, name in zip(items, distinct(item["id"] for item in items), strict=True):
        item["id"] = name
    return items


def _check_about(path: object, theirs: dict, ours: dict) -> None:
    wrong = [key for key in ours if theirs.get(key) != ours[key]]
    if wrong:
        raise ValueError(
            f"'{path}' does not fit: its "
            + ", ".join(f"{key} is {theirs.get(key)!r}, not {ours[key]!r}" for key in wrong)
            + "; leave it out, or save it again with save_reference"
        )
