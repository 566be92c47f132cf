"""SimVQ beside vector-quantize-pytorch's: time and peak memory of forward and backward.

Run: pip install vector-quantize-pytorch && python benchmarks/quantizer.py

K = 16384 codes of dimension 1536, 4096 latents, fp32. Both take turns in one run, each in a process
of its own for its memory; the same codebook, transform and latents, so the indices must be equal.
On a CPU with bf16 instructions ours searches in two passes and is about twice as fast; `--one-pass`
shows what is left without them. The library's rotation trick is off: ours is the plain
straight-through estimator of the paper.
"""

from __future__ import annotations

import argparse

import torch
from _in_turns import best_and_peak, serve, take_turns
from vqrae.tokenizer import _nearest
from vqrae.tokenizer.quantizer import SimVQ

_RUNS = 5


def _ours(codes: int, width: int):
    quantizer = SimVQ(codes, width, 0.25, "euclidean")

    def run(latents):
        found = quantizer(latents)
        return found.latents, found.codes, found.loss

    return quantizer, quantizer.codebook, quantizer.transform, run


def _library(codes: int, width: int):
    from vector_quantize_pytorch import SimVQ

    quantizer = SimVQ(dim=width, codebook_size=codes, rotation_trick=False)
    weight = quantizer.code_transform.weight

    def run(latents):
        values, indices, loss = quantizer(latents[None])
        return values, indices[0], loss

    return quantizer, quantizer.frozen_codebook, weight, run


def _child(name: str, codes: int, width: int, count: int) -> None:
    torch.manual_seed(0)
    codebook = torch.randn(codes, width) * width**-0.5
    transform = torch.eye(width) + 0.3 * torch.randn(width, width) * width**-0.5
    latents = torch.randn(count, width) * width**-0.5
    _, own, weight, run = (_ours if name == "ours" else _library)(codes, width)
    with torch.no_grad():
        own.copy_(codebook)
        # A Linear multiplies by its weight's transpose.
        weight.copy_(transform if name == "ours" else transform.T)
    del codebook, transform
    latents.requires_grad_(True)
    target = torch.randn(count, width)

    def step() -> torch.Tensor:
        values, indices, loss = run(latents)
        ((values.view_as(target) * target).sum() + loss).backward()
        latents.grad = weight.grad = None
        return indices

    serve(step, lambda indices: {"hash": hash(tuple(indices.tolist()))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child")
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--one-pass", action="store_true")
    given = parser.parse_args()
    if given.one_pass:
        _nearest.has_bf16 = lambda: False
    if given.child:
        _child(given.child, given.codes, given.width, given.count)
        return
    shape = ["--codes", str(given.codes), "--width", str(given.width), "--count", str(given.count)]
    shape += ["--one-pass"] * given.one_pass
    found = take_turns(("ours", "library"), _RUNS, shape)
    best, peak = best_and_peak(found)
    same = len({run["hash"] for runs in found.values() for run in runs}) == 1
    print(f"K = {given.codes}, E = {given.width}, {given.count} latents, forward and backward")
    for name in found:
        print(f"{name:<8} best of {_RUNS}: {best[name]:6.2f} s, peak {peak[name]:7.0f} MiB more")
    print(f"speed: {best['library'] / best['ours']:.2f} times the library's")
    print(f"peak memory: {peak['ours'] / peak['library']:.2f} of the library's")
    print(f"same indices: {same}")


if __name__ == "__main__":
    main()
