"""One step of drawing as a compiled graph of fixed shapes: on a GPU a CUDA graph.

Shapes: B rows, R positions that the cache has room for, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._dynamo.types import GuardFilterEntry
from transformers.cache_utils import Cache, StaticCache, StaticLayer
from vqrae.generation._huge_pages import in_huge_pages
from vqrae.generation._step_attention import one_position
from vqrae.generation.cpu_weights import laid_out_for_kernels
from vqrae.mllm import UnifiedModel

# Rooms are rounded up to it: prompts of like length share one graph.
_ROOM = 64
# One graph for each number of rows and each room.
_GRAPHS = 64
# Caches whose memory is kept; a graph is recorded anew where its cache is another.
_CACHES = 6


def compile_decoding(model: UnifiedModel, backend: str = "inductor") -> UnifiedModel:
    """Have the steps of `draw` and `sample_codes` compiled, in place.

    Small models on a GPU spend most of a step on starting kernels; a CUDA graph starts them all at
    once. The first picture of each batch size and prompt length (in steps of 64 positions) takes
    the time of compiling. What is drawn is the same up to rounding. Prompts are read, and texts are
    written, as before. On a CPU, lay the weights out first, with `lay_out_weights`.

    Args:
        backend: of torch.compile.

    Raises:
        ValueError: for weights that are laid out for a CPU without our kernels.
    """
    if model.code_head is not None and not laid_out_for_kernels(model):
        raise ValueError(
            "weights laid out for a CPU can be compiled only where a C++ compiler could build our "
            "kernels for them; install g++, or load the model with plain weights (--weights plain)"
        )
    model.compiled_decoding = CompiledDecoding(backend)
    return model


class CompiledDecoding:
    """The compiled step, and caches of fixed places in memory that it works on."""

    def __init__(self, backend: str):
        self._backend = backend
        self._made_for: tuple = ()

    def _make_for(self, model: UnifiedModel) -> None:
        """Begin anew if the model is no longer what the step was compiled of."""
        config = model.language_model.config.get_text_config()
        made_for = model.dtype, model.device, model.code_head, config._attn_implementation
        if made_for == self._made_for:
            return
        self._made_for = made_for
        self._caches: dict[tuple[int, int], StaticCache] = {}
        options = {"guard_filter_fn": _guards}
        if self._backend == "inductor" and model.device.type == "cuda":
            options["triton.cudagraphs"] = True  # as mode="reduce-overhead" does
        elif self._backend == "inductor" and laid_out_for_kernels(model):
            # What lies between the kernels is too little to be shared.
            options["cpp.threads"] = 1
            # Sines and cosines for all layers and heads at once, not in each.
            options["realize_reads_threshold"] = 1
            # All sizes come from the mask's, which is asked.
            options["size_asserts"] = False
        self._step = torch.compile(
            _step,
            backend=self._backend,
            dynamic=False,
            fullgraph=True,
            options=options,
            recompile_limit=_GRAPHS,
            # Another model's graph would pass for this one's.
            isolate_recompiles=True,
        )

    @staticmethod
    def room(length: int) -> int:
        """Positions to make room for where `length` are needed."""
        return -(-length // _ROOM) * _ROOM

    def cache(self, model: UnifiedModel, source: Cache, rows: Tensor, room: int) -> StaticCache:
        """A cache with R = `room` that holds `rows` (B,) of another; the last one of this shape is
        written over."""
        self._make_for(model)
        length = source.get_seq_length()
        held = [
            (layer.keys[rows, :, :length], layer.values[rows, :, :length])
            for layer in source.layers
        ]
        shape = len(rows), room
        cache = self._caches.pop(shape, None)
        if cache is None:
            cache = StaticCache(config=model.config.text_config, max_cache_len=room)
            # Whole rooms for sliding windows too, whose own layers count in numbers that a graph
            # cannot hold; the mask hides what is out of the window.
            cache.layers = [_Layer(room) for _ in cache.layers]
        else:
            cache.reset()
        for layer, states in zip(cache.layers, held, strict=True):
            layer.update(*states)
        self._caches[shape] = cache
        while len(self._caches) > _CACHES:
            del self._caches[next(iter(self._caches))]
        return cache

    def __call__(
        self,
        model: UnifiedModel,
        ids: Tensor,
        places: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: StaticCache,
    ) -> Tensor:
        """Codes `ids` (B,) at `places` (B,) of their pictures, mask (B, R), positions (B,) ->
        logits (B, K) of the next codes."""
        torch.compiler.cudagraph_mark_step_begin()
        with one_position(model, compiled=True):
            logits = self._step(model, ids, places, mask, positions, cache)
        return logits.clone() if logits.is_cuda else logits  # a CUDA graph writes there again


class _Layer(StaticLayer):
    """Keys and values in huge pages: a step reads all that there are."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        if self.keys.device.type == "cpu":
            self.keys = in_huge_pages(self.keys.shape, self.keys.dtype)
            self.values = in_huge_pages(self.values.shape, self.values.dtype)


def _guards(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    """Of all that a graph depends on, B and R alone are asked for at each step, which the mask
    shows: to ask for the rest takes as long as the small parts of a step."""
    return [guard.name == "mask" for guard in guards]


def _step(
    model: UnifiedModel,
    ids: Tensor,
    places: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: StaticCache,
) -> Tensor:
    embeddings = model.token_embeddings(ids[:, None], places[:, None])
    hidden = model.decode(
        embeddings, attention_mask=mask, position_ids=positions[:, None], cache=cache
    )
    return model.code_logits(hidden[:, -1]).float()
