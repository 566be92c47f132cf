"""Turning a corpus of pictures into shards of codes, once, ahead of training.

Work is cut into units: one .tar or .parquet file, or a run of pictures of a folder or table. A
unit's shard appears whole or not at all, under the unit's own name; which rank writes it does not
matter. So a run that was killed goes on with the units that are not there, on any number of ranks,
and no sample is lost or doubled.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vqrae.data._files import write_whole
from vqrae.data._stream import StreamDataset
from vqrae.data._writing import add_member
from vqrae.data.codes import MANIFEST
from vqrae.data.image_folder import ImageFolderDataset
from vqrae.data.open_pairs import open_pairs
from vqrae.data.shards import ShardDataset
from vqrae.data.tables import ParquetDataset
from vqrae.tokenizer.fingerprint import fingerprint
from vqrae.tokenizer.image_processing_vqrae import VQRAEImageProcessor
from vqrae.tokenizer.modeling_vqrae import VQRAEModel

logger = logging.getLogger(__name__)

_TRANSFORM = "shorter side by bicubic interpolation with antialiasing, centre crop"


@dataclass(frozen=True)
class Unit:
    """A part of the corpus whose codes make one shard."""

    name: str
    """Of the shard, without its ending."""
    open: Callable[[], StreamDataset]
    """Its samples, in order, once."""


def units_of(source: str, *, texts: bool, max_bad_share: float, run: int = 10_000) -> list[Unit]:
    """The units of a corpus, always the same and in the same order.

    Args:
        source: see data.open_pairs.
        run: pictures in a unit of a folder or table, whose files are not units themselves.

    Raises:
        ValueError: for a source that cannot be read, or two files of the same name.
    """
    options: dict[str, Any] = {"texts": texts, "max_bad_share": max_bad_share}
    once = {**options, "shuffle": 0, "epochs": 1}
    whole = open_pairs(source, **once)
    if isinstance(whole, (ShardDataset, ParquetDataset)):
        files = whole.shards if isinstance(whole, ShardDataset) else whole.files
        kind = type(whole)
        names = [Path(file).name.partition(".")[0] for file in files]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two files of '{source}' are named '{twice}'; rename one of them")
        return [
            Unit(name, lambda file=file: kind([file], **once))
            for name, file in zip(names, files, strict=True)
        ]
    starts = range(0, len(whole), run)
    return [
        Unit(f"part-{number:06d}", lambda start=start: _part(source, once, start, start + run))
        for number, start in enumerate(starts)
    ]


def _part(source: str, once: dict, start: int, stop: int) -> StreamDataset:
    dataset = open_pairs(source, **once)
    if isinstance(dataset, ImageFolderDataset):
        dataset.names = dataset.names[start:stop]
    else:
        dataset.table = dataset.table.select(range(start, min(stop, len(dataset.table))))
        dataset.first = start
    return dataset


def encode_corpus(
    model: VQRAEModel,
    source: str,
    out: str | Path,
    *,
    texts: bool = True,
    batch_size: int = 64,
    max_bad_share: float = 0.05,
    run: int = 10_000,
    rank: int = 0,
    world_size: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write OUT/UNIT.tar (KEY.npy, KEY.txt, KEY.json) for every unit that is not there yet.

    OUT/codes.json pins the tokenizer, the size and the transform; when all units are there it is
    marked as finished, with the number of samples of each. Returns it.

    Args:
        model: in eval mode, on its device.
        texts: whether every picture must have a text.
        batch_size: pictures at once.
        max_bad_share: share of samples of one unit that may be bad (they are skipped and named in
            the log).
        rank, world_size: this process takes every world_size-th unit.
        wait: a barrier over the ranks.

    Raises:
        ValueError: if `out` holds codes of another tokenizer, source or setting.
    """
    out = Path(out)
    units = units_of(source, texts=texts, max_bad_share=max_bad_share, run=run)
    manifest = {
        "tokenizer": fingerprint(model),
        "codebook_size": model.config.codebook_size,
        "num_image_tokens": model.config.num_image_tokens,
        "image_size": model.config.image_size,
        "transform": _TRANSFORM,
        "source": str(source),
        "units": [unit.name for unit in units],
    }
    path = out / MANIFEST
    _check_same(path, manifest)
    wait()
    if rank == 0 and not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(manifest | {"finished": False}, indent=1) + "\n")
    if rank == 0:
        for left in out.glob(".*.tmp"):  # by a run that was killed
            left.unlink()
    wait()
    for unit in units[rank::world_size]:
        shard = out / f"{unit.name}.tar"
        if not shard.is_file():
            found = _encode_unit(model, unit, shard, batch_size)
            logger.info("%s: %d pictures", shard, found)
    wait()
    if rank == 0:
        counts = {unit.name: _count(out / f"{unit.name}.tar") for unit in units}
        manifest |= {"finished": True, "counts": counts, "samples": sum(counts.values())}
        write_whole(path, json.dumps(manifest, indent=1) + "\n")
    wait()
    return json.loads(path.read_text(encoding="utf-8"))


def _check_same(path: Path, manifest: dict[str, Any]) -> None:
    if not path.is_file():
        if path.parent.is_dir() and any(path.parent.glob("*.tar")):
            raise ValueError(
                f"'{path.parent}' holds shards but no {MANIFEST}; choose another --out"
            )
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for key, value in manifest.items():
        if found.get(key) != value:
            shown = (found.get(key), value) if key != "units" else ("other files", "these")
            raise ValueError(
                f"'{path.parent}' was encoded with {key} {shown[0]!r}, not {shown[1]!r}; choose "
                "another --out"
            )


@torch.no_grad()
def _encode_unit(model: VQRAEModel, unit: Unit, shard: Path, batch_size: int) -> int:
    processor = VQRAEImageProcessor(model.config.image_size)
    device = next(model.parameters()).device
    small = np.uint16 if model.config.codebook_size <= 2**16 else np.uint32
    aside = shard.with_name(f".{shard.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with aside.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                stream = iter(unit.open())
                while samples := list(islice(stream, batch_size)):
                    pixels = processor([sample["image"] for sample in samples])["pixel_values"]
                    codes = model.tokenize(pixels.to(device)).cpu().numpy().astype(small)
                    for sample, own in zip(samples, codes, strict=True):
                        for name, data in _members(sample, own):
                            add_member(tar, name, data)
                    count += len(samples)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, shard)
    finally:
        aside.unlink(missing_ok=True)
    return count


def _members(sample: dict, codes: np.ndarray) -> Iterator[tuple[str, bytes]]:
    # A dot would end the key, a slash is kept: both are how WebDataset reads names.
    folder, _, name = sample["key"].rpartition("/")
    key = f"{folder}/{name.replace('.', '_')}" if folder else name.replace(".", "_")
    buffer = io.BytesIO()
    np.save(buffer, codes, allow_pickle=False)
    yield f"{key}.npy", buffer.getvalue()
    if sample["text"]:
        yield f"{key}.txt", sample["text"].encode()
    if sample["json"] is not None:
        yield f"{key}.json", json.dumps(sample["json"]).encode()


def _count(shard: Path) -> int:
    with tarfile.open(shard) as tar:
        return sum(member.name.endswith(".npy") for member in tar)
