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
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

_RUNS = 3
_ROWS, _LENGTH, _SCORED = 2, 512, 256
_TEXT, _CODES = 151_936, 16_384


def _text_config():
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=_TEXT + 3 + _CODES,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _ours():
    from transformers import SiglipVisionConfig
    from vqrae.mllm import UnifiedConfig, UnifiedModel
    from vqrae.tokenizer import VQRAEConfig

    encoder = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=256,
        patch_size=16,
    )
    vqrae = VQRAEConfig(encoder_config=encoder, codebook_size=_CODES, code_dim=8)
    model = UnifiedModel(UnifiedConfig(text_config=_text_config(), vqrae_config=vqrae)).train()
    return model.language_model, lambda ids, labels: model(ids, labels=labels).loss


def _plain():
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM(_text_config()).train()
    return model, lambda ids, labels: model(input_ids=ids, labels=labels).loss


def _batch(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_TEXT, (_ROWS, _LENGTH), generator=generator)
    if case == "drawing":
        codes = torch.randint(_CODES, (_ROWS, _SCORED), generator=generator)
        ids[:, -_SCORED:] = _TEXT + 3 + codes
    labels = ids.clone()
    labels[:, :-_SCORED] = -100
    return ids, labels


def _child(name: str, case: str) -> None:
    torch.manual_seed(0)
    model, run = _plain() if name == "plain" else _ours()
    trained = [p for p in model.parameters() if p.requires_grad]
    ids, labels = _batch(case)
    # What it holds now, not the peak while it was made.
    Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize() / 2**20
    for line in sys.stdin:
        if not line.strip():
            break
        start = time.perf_counter()
        run(ids, labels).backward()
        seconds = time.perf_counter() - start
        for parameter in trained:
            parameter.grad = None
        answer = {"seconds": seconds, "peak": _peak() - before}
        answer["weights"] = sum(p.numel() for p in trained) * 4 / 2**20
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _peak() -> float:
    """MiB that this process held at most since clear_refs was written to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _measure(case: str) -> None:
    # Large blocks go back to the system at once: the peak is what was asked for at one time, not
    # what the allocator keeps.
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    pipe = subprocess.PIPE
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--child", name, "--case", case],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=surroundings,
        )
        for name in ("ours", "plain")
    }
    found: dict[str, list[dict]] = {name: [] for name in children}
    for _ in range(_RUNS):
        for name, child in children.items():
            child.stdin.write("go\n")
            child.stdin.flush()
            found[name].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    best = {name: min(run["seconds"] for run in runs) for name, runs in found.items()}
    peak = {name: runs[-1]["peak"] for name, runs in found.items()}
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
