"""What the quantizer adds to an encoder: tokenize() and detokenize() beside the encoder alone.

Run: python benchmarks/tokenizer_speed.py

SigLIP at so400m's width (1152, patches of 16, pictures of 256), fewer layers, random weights; K =
16384 codes of dimension 1536 around the encoder's own latents. All take turns in one run, fp32.
"""

from __future__ import annotations

import argparse
import time

import torch
from vqrae.recipes._plan import so400m
from vqrae.tokenizer import VQRAEConfig, VQRAEModel

_RUNS = 5


def build(layers: int) -> VQRAEModel:
    torch.manual_seed(0)
    model = VQRAEModel(VQRAEConfig(encoder_config=so400m(256, layers))).eval()
    with torch.no_grad():
        latents = model.to_latents(model.encode(torch.rand(4, 3, 256, 256))).flatten(0, 1)
        drawn = latents[torch.randint(len(latents), (model.config.codebook_size,))]
        model.quantizer.fill(drawn + 0.5 * latents.std(0) * torch.randn_like(drawn))
    return model


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8, help="of 27 in so400m")
    parser.add_argument("--pictures", type=int, default=4)
    given = parser.parse_args()
    model = build(given.layers)
    pixels = torch.rand(given.pictures, 3, 256, 256)
    codes = model.tokenize(pixels)
    calls = {
        "encoder alone": lambda: model.encoder(pixel_values=pixels),
        "tokenize": lambda: model.tokenize(pixels),
        "detokenize": lambda: model.detokenize(codes),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(_RUNS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    alone = best["encoder alone"]
    print(f"{given.layers} layers, {given.pictures} pictures, best of {_RUNS}")
    for name, seconds in best.items():
        print(f"{name:<14}{seconds:7.2f} s{seconds / alone:8.2f} times the encoder alone")


if __name__ == "__main__":
    main()
