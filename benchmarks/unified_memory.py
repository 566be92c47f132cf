"""The unified model's training step beside the plain language model's: time and peak memory.

Run: python benchmarks/unified_memory.py

A Qwen3 of width 256 with two layers and a vocabulary of 151,936 + 3 + 16,384, embeddings tied, in
fp32; two rows of 512 tokens. Both do forward and backward on the same batch, in turns in one run,
each in a process of its own for its memory. The plain model is transformers' own, given labels: it
scores every position over the whole vocabulary. Ours scores the positions with labels only, codes
among codes and text among text. "drawing": a text prompt, and 256 codes with labels. "reading": as
many labels, all of them text, which is dearer.

Aimed at: 0.4 of the plain model's peak memory, and 0.8 of its time, or less.
"""

from __future__ import annotations

import argparse

import torch
from _in_turns import best_and_peak, serve, take_turns
from _unified import CODES, TEXT, text_config, unified_model

_RUNS = 3
_ROWS, _LENGTH, _SCORED = 2, 512, 256


def _text_config():
    return text_config(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=_LENGTH,
    )


def _ours():
    model = unified_model(_text_config(), 256).train()
    return model.language_model, lambda ids, labels: model(ids, labels=labels).loss


def _plain():
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM(_text_config()).train()
    return model, lambda ids, labels: model(input_ids=ids, labels=labels).loss


def _batch(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(TEXT, (_ROWS, _LENGTH), generator=generator)
    if case == "drawing":
        codes = torch.randint(CODES, (_ROWS, _SCORED), generator=generator)
        ids[:, -_SCORED:] = TEXT + 3 + codes
    labels = ids.clone()
    labels[:, :-_SCORED] = -100
    return ids, labels


def _child(name: str, case: str) -> None:
    torch.manual_seed(0)
    model, run = _plain() if name == "plain" else _ours()
    trained = [p for p in model.parameters() if p.requires_grad]
    ids, labels = _batch(case)
    weights = sum(p.numel() for p in trained) * 4 / 2**20

    def step() -> None:
        run(ids, labels).backward()
        for parameter in trained:
            parameter.grad = None

    serve(step, lambda _: {"weights": weights})


def _measure(case: str) -> None:
    found = take_turns(("ours", "plain"), _RUNS, ["--case", case])
    best, peak = best_and_peak(found)
    print(case)
    for name in found:
        print(f"  {name:<6} best of {_RUNS}: {best[name]:6.2f} s, peak {peak[name]:5.0f} MiB more")
    weights = found["ours"][0]["weights"]
    with_weights = (peak["ours"] + weights) / (peak["plain"] + weights)
    print(f"  time: {best['ours'] / best['plain']:.2f} of the plain model's")
    print(f"  peak memory: {peak['ours'] / peak['plain']:.2f} of the plain model's", end="")
    print(f", {with_weights:.2f} with the {weights:.0f} MiB of weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child")
    cases = ("drawing", "reading")
    parser.add_argument("--case", choices=cases)
    given = parser.parse_args()
    if given.child:
        _child(given.child, given.case)
        return
    for case in [given.case] if given.case else cases:
        _measure(case)


if __name__ == "__main__":
    main()
