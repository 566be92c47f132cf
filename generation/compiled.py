"""One step of drawing as a compiled graph of fixed shapes: on a GPU a CUDA graph.

Shapes: B rows, R positions that the cache has room for, T text width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer
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
    model.compiled_decoding = CompiledDecoding(model, backend)
    return model


class CompiledDecoding:
    """The compiled step, and caches of fixed places in memory that it works on."""

    def __init__(self, model: UnifiedModel, backend: str):
        # That modules are as they were is asked at no step: it takes as long as their small parts.
        options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        if backend == "inductor" and model.device.type == "cuda":
            options["triton.cudagraphs"] = True  # as mode="reduce-overhead" does
        elif backend == "inductor" and laid_out_for_kernels(model):
            # What lies between the kernels is too little to be shared.
            options["cpp.threads"] = 1
        self._step = torch.compile(
            _step,
            backend=backend,
            dynamic=False,
            fullgraph=True,
            options=options,
            recompile_limit=_GRAPHS,
            # Another model's graph would pass for this one's.
            isolate_recompiles=True,
        )
        self._caches: dict[tuple[int, int], StaticCache] = {}

    @staticmethod
    def room(length: int) -> int:
        """Positions to make room for where `length` are needed."""
        return -(-length // _ROOM) * _ROOM

    def cache(self, model: UnifiedModel, rows: int, room: int) -> StaticCache:
        """An empty cache for B = `rows` and R = `room`; the last one for these is emptied."""
        cache = self._caches.pop((rows, room), None)
        if cache is None:
            cache = StaticCache(config=model.config.text_config, max_cache_len=room)
            # Whole rooms for sliding windows too, whose own layers count in numbers that a graph
            # cannot hold; the mask hides what is out of the window.
            cache.layers = [StaticLayer(room) for _ in cache.layers]
        else:
            cache.reset()
        self._caches[rows, room] = cache
        while len(self._caches) > _CACHES:
            del self._caches[next(iter(self._caches))]
        return cache

    def select(self, model: UnifiedModel, cache: StaticCache, rows: Tensor) -> StaticCache:
        """A cache that holds `rows` (indices, of another number than the rows) of another."""
        selected = self.cache(model, len(rows), cache.layers[0].max_cache_len)
        assert selected is not cache
        for source, target in zip(cache.layers, selected.layers, strict=True):
            keys, values = source.keys[rows], source.values[rows]
            if not target.is_initialized:
                target.lazy_initialization(keys, values)
            target.keys.copy_(keys)
            target.values.copy_(values)
            target.cumulative_length.copy_(source.cumulative_length)
        return selected

    def __call__(
        self,
        model: UnifiedModel,
        embeddings: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: StaticCache,
    ) -> Tensor:
        """(B, 1, T) of one new position each, mask (B, R), positions (B, 1) -> hidden (B, 1, T)."""
        torch.compiler.cudagraph_mark_step_begin()
        with one_position(model, compiled=True):
            return self._step(model, embeddings, mask, positions, cache).clone()


def _step(
    model: UnifiedModel, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: StaticCache
) -> Tensor:
    return model.decode(embeddings, attention_mask=mask, position_ids=positions, cache=cache)
