"""`vqrae encode`: a corpus of pictures to shards of codes, resumable, on any number of ranks."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro
from vqrae.scripts._model import model_folder


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Write the codes of a corpus, with its texts. Run again after a kill, it goes on."""

    data: str
    """A folder of pictures, of .tar or of .parquet files, a pattern of such files, or hf:NAME."""
    out: str
    """Folder of the shards of codes."""
    model: str | None = None
    """Folder of a tokenizer or unified model; by default $VQRAE_MODEL or the one that ships."""
    texts: bool = True
    """Every picture must have a text; those without are skipped."""
    batch_size: int = 64
    """Pictures at once."""
    max_bad_share: float = 0.05
    """Share of a file's samples that may be bad; above it the run stops."""
    run: int = 10_000
    """Pictures of a folder or table in one shard; files keep their own."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda; under torchrun each rank takes its own."""


def main(argv: list[str], prog: str = "vqrae encode") -> None:
    config = tyro.cli(Encode, args=argv, prog=prog)
    from pathlib import Path

    import torch.distributed as dist
    from vqrae.eval._ranks import join_ranks
    from vqrae.eval.run import load_models
    from vqrae.tokenizer.encode_corpus import encode_corpus
    from vqrae.training._process import pick_device

    rank, world_size = join_ranks()
    model = load_models(Path(model_folder(config.model)), pick_device(config.device))[0]
    manifest = encode_corpus(
        model,
        config.data,
        config.out,
        texts=config.texts,
        batch_size=config.batch_size,
        max_bad_share=config.max_bad_share,
        run=config.run,
        rank=rank,
        world_size=world_size,
        wait=dist.barrier if world_size > 1 else lambda: None,
    )
    if rank == 0:
        sys.stdout.write(
            f"{config.out}: {manifest['samples']} pictures of {manifest['num_image_tokens']} codes "
            f"in {len(manifest['units'])} shards, tokenizer {manifest['tokenizer']}\n"
        )
