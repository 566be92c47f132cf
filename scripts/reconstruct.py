"""`vqrae reconstruct`: rFID, PSNR, SSIM, LPIPS and utilisation of a tokenizer on any images."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from vqrae.scripts._model import model_folder


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Measure how well pictures survive the codes. torchrun spreads the work over ranks."""

    data: str
    """A folder of pictures, of .tar or of .parquet files, a pattern of such files, or hf:NAME."""
    model: str | None = None
    """Folder of a tokenizer or unified model; by default $VQRAE_MODEL or the one that ships."""
    out: str = "runs/reconstruct"
    """Where results.json, items.jsonl and pairs.png go."""
    images: int | None = None
    """The first so many pictures; by default all."""
    inception: str | None = None
    """File of Inception weights (pt_inception-2015-12-05-6726825d.pth), for rFID."""
    any_inception: bool = False
    """Take Inception weights of another hash; the numbers then compare with nothing published."""
    lpips: str | None = None
    """File of LPIPS weights: torchvision's AlexNet or VGG16."""
    reference: str | None = None
    """Statistics of the originals, from --save-reference or an .npz with mu and sigma."""
    largest_gap: float = 1.0
    """FID between an .npz and the originals above which it is refused."""
    save_reference: str | None = None
    """Where to save the originals' statistics, a .safetensors file."""
    batch_size: int = 32
    """Pictures at once; no number depends on it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""


def main(argv: list[str], prog: str = "vqrae reconstruct") -> None:
    config = tyro.cli(Reconstruct, args=argv, prog=prog)
    from vqrae.eval._ranks import join_ranks
    from vqrae.eval.reconstruct import comparison, reconstruct

    options = {
        key: value for key, value in vars(config).items() if key not in ("model", "data", "out")
    }
    result = reconstruct(model_folder(config.model), config.data, config.out, **options)
    if join_ranks()[0]:
        return
    from rich.console import Console
    from rich.table import Table
    from vqrae.eval.paper_rows import PAPER

    scores, details, protocol = result.scores, result.details, result.protocol
    table = Table(
        title=f"{protocol['count']} images; the paper's rows are {PAPER['reconstruction'].about}"
    )
    for head in ("", "rFID", "PSNR (dB)", "SSIM"):
        table.add_column(head, justify="left" if not head else "right")
    for row in comparison(result):
        table.add_row(*row)
    Console().print(table)
    lpips = "" if scores["lpips"] is None else f", LPIPS {scores['lpips']:.4f}"
    sys.stdout.write(
        f"codes used: {scores['usage']:.1%} of {details['codebook_size']} over "
        f"{details['window']['tokens']} tokens, perplexity {scores['perplexity']:.0f}{lpips}\n"
        f"pictures: {Path(config.out) / 'pairs.png'}\n"
    )
