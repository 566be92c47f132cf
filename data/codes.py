"""Shards of codes: pictures that a tokenizer has read ahead of training, with their texts.

Beside the shards lies a manifest, which says which tokenizer wrote them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from vqrae.data._stream import BadSample
from vqrae.data.shards import ShardDataset, members_of

MANIFEST = "codes.json"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What `vqrae encode` wrote of a folder. Raises ValueError where it is missing or not whole."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"'{folder}' has no {MANIFEST}; write it with vqrae encode")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _ = manifest["tokenizer"], manifest["num_image_tokens"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"'{path}' is damaged; write the codes again") from None
    if not manifest.get("finished"):
        raise ValueError(
            f"'{folder}' is not finished; run the same vqrae encode again, which goes on"
        )
    return manifest


class CodeDataset(ShardDataset):
    """Samples of a folder that `vqrae encode` wrote.

    Yields {"key": str, "codes": int64 array (N,), "tokenizer": fingerprint, "text": str, "json"}.
    Order, shuffling, ranks and resume are those of ShardDataset.

    Raises:
        ValueError: if the folder has no whole manifest.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.manifest = read_manifest(folder)
        super().__init__(folder, **options)

    def _decode(self, record: dict) -> dict:
        members = members_of(record)
        if "npy" not in members:
            raise BadSample("it has no codes; encode it again")
        try:
            codes = np.load(io.BytesIO(members["npy"]), allow_pickle=False)
            facts = json.loads(members["json"]) if "json" in members else None
        except ValueError as error:
            raise BadSample(f"it is damaged ({error}); encode it again") from None
        manifest = self.manifest
        if codes.shape != (manifest["num_image_tokens"],):
            raise BadSample(f"it has codes of shape {codes.shape}; encode it again")
        return {
            "key": record["__key__"],
            "codes": codes.astype(np.int64),
            "tokenizer": manifest["tokenizer"],
            "text": members.get("txt", b"").decode("utf-8").strip(),
            "json": facts,
        }
