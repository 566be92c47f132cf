"""How fast codes are drawn, beside transformers' `generate`, a plain loop, and the memory's speed.

Run: python benchmarks/sampler.py

A Qwen3 of the 0.6B model's width with four layers, vocabulary 151,936 + 3 + 16,384, embeddings
tied, random weights in fp32; a picture of 256 codes after a prompt of 32 tokens, guidance 3. All on
the same weights in one process, in turns:

    generate    transformers' generate with guidance_scale: two forwards a step, logits of all
    loop        both halves as one batch with a growing cache, logits of all
    ours        vqrae.generation.sample_codes
    packed      the same after vqrae.generation.lay_out_weights
    compiled    packed after vqrae.generation.compile_decoding, once it is compiled
    bf16        compiled after lay_out_weights(model, "bf16")
    int8        compiled after lay_out_weights(model, "int8")
    memory      the weights that a step needs (layers and the codes' rows), read once a step at the
                speed at which this machine sums up as many bytes: the median of readings that are
                taken while ours run, every 16 codes, for on shared machines that speed comes and
                goes; their time is not counted

Aimed at in fp32, for one picture and for four: at least 3 times as fast as generate, at least 2
times as fast as the loop, and at most 1.5 times the memory's time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from _unified import CODES, TEXT, text_config, unified_model
from transformers.cache_utils import DynamicCache
from vqrae.generation import compile_decoding, lay_out_weights, sample_codes

_PROMPT, _UNCONDITIONAL, _SCALE = 32, 6, 3.0


def _model(tokens: int):
    text = text_config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        pad_token_id=0,
    )
    return unified_model(text, 16 * round(tokens**0.5)).eval()


def _generate(model, prompts: torch.Tensor, unconditional: torch.Tensor, tokens: int) -> None:
    model.language_model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        guidance_scale=_SCALE,
        negative_prompt_ids=unconditional,
        negative_prompt_attention_mask=torch.ones_like(unconditional),
        do_sample=True,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
    )


@torch.no_grad()
def _loop(model, prompts: torch.Tensor, unconditional: torch.Tensor, tokens: int) -> None:
    language_model = model.language_model
    pad = prompts.shape[1] - unconditional.shape[1]
    ids = torch.cat([prompts, torch.nn.functional.pad(unconditional, (pad, 0))])
    mask = torch.ones_like(ids)
    mask[len(prompts) :, :pad] = 0
    cache = DynamicCache(config=language_model.config)
    new = ids
    for _ in range(tokens):
        out = language_model(
            input_ids=new,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        own, other = out.logits[:, -1].chunk(2)
        guided = other + _SCALE * (own - other)
        guided[:, : TEXT + 3] = -torch.inf
        drawn = guided.softmax(-1).multinomial(1)
        new = torch.cat([drawn, drawn])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def _ours(
    model,
    prompts: torch.Tensor,
    unconditional: torch.Tensor,
    tokens: int,
    between: Callable[[int, int], None],
) -> None:
    codes = sample_codes(
        model,
        prompts.tolist(),
        unconditional[0].tolist(),
        guidance_scale=_SCALE,
        min_p=0.0,
        progress=between,
    )
    assert codes.shape[1] == tokens


def _needed(model) -> int:
    """Bytes of weights that a step has to read."""
    layers = sum(
        p.numel() * p.element_size() for p in model.language_model.model.layers.parameters()
    )
    rows = CODES * model.config.text_config.hidden_size
    return layers + rows * model.language_model.get_output_embeddings().weight.element_size()


class _Memory:
    """Reads so many bytes, more than any processor's cache holds, and keeps the seconds it took."""

    def __init__(self, size: int):
        self._numbers = torch.ones(size // 4)
        self.seconds: list[float] = []

    def between(self, done: int, _: int) -> None:
        if done % 16 == 0:
            self.seconds.append(_seconds(self._numbers.sum))


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=256, help="codes of a picture, a square")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.manual_seed(0)
    plain = _model(given.tokens)
    ways = {"generate": (_generate, plain), "loop": (_loop, plain), "ours": (_ours, plain)}
    ways["packed"] = (_ours, lay_out_weights(copy.deepcopy(plain), kernels=True))
    for name, kind in (("compiled", "packed"), ("bf16", "bf16"), ("int8", "int8")):
        laid_out = lay_out_weights(copy.deepcopy(plain), kind, kernels=True)
        ways[name] = (_ours, compile_decoding(laid_out))
    size = _needed(plain)
    memory = _Memory(size)
    for pictures in given.pictures:
        prompts = torch.randint(TEXT, (pictures, _PROMPT))
        unconditional = torch.randint(TEXT, (1, _UNCONDITIONAL)).expand(pictures, -1)
        best = dict.fromkeys(ways, float("inf"))
        beside: dict[str, list[float]] = {name: [] for name in ways}  # to the memory's time
        readings = []
        for way, model in ways.values():
            if way is _ours:  # compiles, and touches all for the first time
                way(model, prompts, unconditional, given.tokens, memory.between)
        for _ in range(given.rounds):
            for name, (way, model) in ways.items():
                memory.seconds.clear()
                run = partial(way, model, prompts, unconditional, given.tokens)
                taken = _seconds(partial(run, memory.between) if way is _ours else run)
                step = (taken - sum(memory.seconds)) / given.tokens
                best[name] = min(best[name], step)
                if memory.seconds:
                    readings += memory.seconds
                    beside[name].append(step / median(memory.seconds))
        print(f"{pictures} picture{'s' * (pictures > 1)} of {given.tokens} codes, ms a step:")
        for name, seconds in best.items():
            print(f"  {name:<10} {1000 * seconds:7.1f}")
        readings.sort()
        shown = [readings[int(share * (len(readings) - 1))] for share in (0.1, 0.5, 0.9)]
        print(
            f"  memory     {size / 1e6:.0f} MB in "
            f"{', '.join(f'{1000 * seconds:.1f}' for seconds in shown)} (10%, 50%, 90% of readings)"
        )
        for name in list(ways)[3:]:  # ours, made ready for this machine
            print(
                f"  {name:<8} {best['generate'] / best[name]:5.1f} times as fast as generate, "
                f"{best['loop'] / best[name]:5.1f} times as the loop, "
                f"{median(beside[name]):.2f} times the memory's time"
            )


if __name__ == "__main__":
    main()
